"""The values that requests and answers are made of.

Strict, as Go's decoder is: a number in quotes, with a fraction or an exponent is no number. Keys and sizes
are Postgres bigints: what is beyond is refused, never wrapped.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from datas3tfs.core.names import KEY_LIMIT

PART_SIZE = 20 * 2**20  # bytes; what the Go clients cut uploads into, whatever the server says
MOST_PARTS = 10_000  # of an S3 multipart upload

Key = Annotated[int, Field(strict=True, ge=0, lt=KEY_LIMIT, description="A datapoint's key.")]
Count = Annotated[int, Field(strict=True, gt=0, lt=KEY_LIMIT)]
Bytes = Annotated[int, Field(strict=True, ge=0, lt=2**63, description="A size in bytes.")]
RowId = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Name = Annotated[str, Field(max_length=1024)]
Secret = Annotated[str, Field(max_length=1024, repr=False)]


class Request(BaseModel):
    """A request's body. Unknown fields are ignored: clients newer than the server may send some."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class Answer(BaseModel):
    """An answer's body. Unknown fields are ignored: servers newer than the client may send some."""

    model_config = ConfigDict(frozen=True, extra="ignore")
