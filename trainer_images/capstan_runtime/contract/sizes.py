"""Numbers of bytes, as people write them."""

import re
from typing import Annotated

from pydantic import Field

FP32_BYTES = 4
"""Of what collectives move."""
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SIZE = "^[1-9][0-9]*(B|KiB|MiB|GiB)$"
Size = Annotated[str, Field(max_length=16, description="Bytes with their unit: B, KiB, MiB or GiB, such as 64MiB.")]


def size_bytes(size: str) -> int:
    """Bytes of a Size. Raises ValueError, which names the units there are.

    >>> size_bytes("64MiB")
    67108864
    """
    match = re.fullmatch("([1-9][0-9]*)(B|KiB|MiB|GiB)", size)
    if match is None:
        raise ValueError(f"{size} is no size; write a whole number with one of {', '.join(_UNITS)}, such as 64MiB")
    return int(match[1]) * _UNITS[match[2]]


def sweep(smallest: int, largest: int, factor: int, ranks: int) -> list[int]:
    """Sizes in bytes: from `smallest` on, each `factor` times the one before, and `largest` whatever comes before it.

    Each is rounded down to the same count of whole numbers for every rank, at least one. Ascending, none twice.
    """
    wanted = []
    size = smallest
    while size < largest:
        wanted.append(size)
        size *= factor
    unit = ranks * FP32_BYTES
    return sorted({max(1, size // unit) * unit for size in (*wanted, largest)})


def size_rule(field: str) -> tuple[str, str]:
    """The twin of `size_bytes` in CEL."""
    return (
        f"self.{field}.matches('{SIZE}')",
        f"'{field}: ' + self.{field} + ' is no size; write a whole number with one of {', '.join(_UNITS)}, such as "
        "64MiB'",
    )


def cel_bytes(field: str) -> str:
    """`size_bytes` in CEL, as a floating-point number: a whole one would overflow."""
    units = " : ".join(f"self.{field}.endsWith('{unit}') ? {_UNITS[unit]}.0" for unit in ("GiB", "MiB", "KiB"))
    return f"double(self.{field}.find('^[0-9]+')) * ({units} : 1.0)"


def require_sizes(**sizes: str) -> None:
    """Raises ValueError, which names the field, for the first that is no Size."""
    for field, size in sizes.items():
        try:
            size_bytes(size)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
