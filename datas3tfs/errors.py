"""Every error the product raises on purpose, in one tree, by what the caller can do about it.

    Datas3tError
    ├── NotFound      the thing named does not exist: name another
    ├── Conflict      somebody else has it, or it has changed meanwhile: choose another or look again
    ├── Invalid       what was given breaks a rule of the product: correct it
    │   └── Forbidden     … whatever is given: datapoints that are committed stay as they are
    ├── Corrupt       stored bytes are not what they must be: restore them; retrying does not help
    └── Unavailable   S3 or Postgres did not answer in time or said no: try again later
        └── Full          no room in the journal: wait until it is committed, or give it more

The message is for a person: one line, names the thing, never contains a secret. Adapters translate
their library's exceptions into these (`raise … from exc`); nothing above an adapter catches a
library's exception. fs/errnos.py maps the branches to errnos; a test checks that none is missing.
"""


class Datas3tError(Exception):
    """Base of the tree; raise one of the five branches instead."""


class NotFound(Datas3tError):
    """The thing named does not exist."""


class Conflict(Datas3tError):
    """Somebody else holds it, or it has changed meanwhile."""


class Invalid(Datas3tError):
    """What was given breaks a rule of the product."""


class Corrupt(Datas3tError):
    """Stored bytes are not what they must be."""


class Unavailable(Datas3tError):
    """S3 or Postgres did not answer in time, or refused."""


class Forbidden(Invalid):
    """The product never does this, whatever is given."""


class Full(Unavailable):
    """The journal's disk or quota has no room left."""
