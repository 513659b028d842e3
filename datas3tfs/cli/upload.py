"""`datas3tfs upload list | cancel`: what is in flight, and holds keys until it is done."""

from __future__ import annotations

from typing import Annotated

import typer

from datas3tfs.cli import output
from datas3tfs.cli.catalog import YesFlag, ask_client, confirm
from datas3tfs.cli.context import JsonFlag, settings
from datas3tfs.cli.running import run
from datas3tfs.core.sizes import format_size
from datas3tfs.wire.answers import UploadInfo

app = typer.Typer(help="Uploads in flight: what clients have begun, through URLs, and not completed.")

_COLUMNS = (
    output.Column("id", "id", right=True),
    output.Column("kind", "kind"),
    output.Column("first_key", "first key", right=True),
    output.Column("last_key", "last key", right=True),
    output.Column("bytes", "size", show=format_size, right=True),
    output.Column("begun", "begun"),
    output.Column("expires", "expires"),
)


@app.command("list")
def list_uploads(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help="The dataset.")],
    as_json: JsonFlag = False,
) -> None:
    """List the uploads in flight to a dataset, in key order, and until when they hold their keys."""
    found = run(lambda: ask_client(settings(ctx), lambda client: client.uploads(dataset)))
    output.print_table([_record(one) for one in found], _COLUMNS, as_json=as_json)


@app.command("cancel")
def cancel(
    ctx: typer.Context,
    upload: Annotated[int, typer.Argument(help="Its id.", min=1, max=2**63 - 1)],
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Give an upload up: its keys are free. Whoever is still uploading it fails."""
    confirm(f"give upload {upload} up?", yes)
    run(lambda: ask_client(settings(ctx), lambda client: client.cancel_upload(upload), needs_key=True))
    if as_json:
        output.print_json({"id": upload})
    else:
        output.say(f"upload {upload} given up")


def _record(one: UploadInfo) -> dict[str, object]:
    first, count = one.first_datapoint_index, one.number_of_datapoints
    return {
        "id": one.datarange_upload_id,
        "kind": "aggregate" if one.is_aggregate else "upload",
        "first_key": first,
        "last_key": first + count - 1,
        "bytes": one.data_size,
        "object": one.object_key,
        "begun": one.begun_at,
        "expires": one.expires_at,
    }
