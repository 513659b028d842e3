"""Sizes in bytes as people write them: "10GiB", "500M", "1.5 GB".

For settings, flags and listings; not for formats, where sizes are plain integers.
"""

from __future__ import annotations

import re
from fractions import Fraction

from datas3tfs.core.names import printable
from datas3tfs.errors import Invalid

# A bare letter is binary, as in dd, rsync and mount options; "kB" and "MB" are the decimal SI units.
_PREFIXES = "kmgtpe"
_UNITS = (
    {"": 1, "b": 1}
    | {prefix: 1024**power for power, prefix in enumerate(_PREFIXES, 1)}
    | {f"{prefix}ib": 1024**power for power, prefix in enumerate(_PREFIXES, 1)}
    | {f"{prefix}b": 1000**power for power, prefix in enumerate(_PREFIXES, 1)}
)
_SIZE = re.compile(r"(?P<number>[0-9]{1,19}(?:\.[0-9]{1,9})?)\s*(?P<unit>[a-z]*)", re.ASCII | re.IGNORECASE)
_LIMIT = 2**63  # what files, Postgres and C libraries can count


def parse_size(text: str) -> int:
    """Return the bytes that *text* means, fractions of a byte dropped. Raises Invalid, quoting it."""
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        raise Invalid(f"{printable(text)}: not a size (as 512, 500M, 10GiB or 1.5GB)")
    size = int(Fraction(match["number"]) * factor)
    if size >= _LIMIT:
        raise Invalid(f"{printable(text)}: a size must be below 8 EiB")
    return size


def format_size(size: int) -> str:
    """Return *size* bytes for a person, in binary units with three digits: "1.50 MiB", "512 B"."""
    if size < 1024:
        return f"{size} B"
    amount, power = size / 1024, 0
    # Not 1024: what would round to "1024 KiB" is better read as "1.00 MiB".
    while amount >= 1023.5:
        amount, power = amount / 1024, power + 1
    decimals = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
    return f"{amount:.{decimals}f} {_PREFIXES[power].upper()}iB"
