"""What a fuzz target is: a parser, whose data it meets, and the law it must keep."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Form = Literal["json", "lines", "bytes"]
"""How a seed is bent: as a JSON document, as lines of text, or as bytes."""

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """`feed` gives the parser `data` and says whether it was taken; a documented error is False.

    Any other exception is a finding. So is a seed that is not taken: then nothing behind the parser's door is tried.
    """

    name: str
    whose: str
    """Who makes the data, for the table in README.md."""
    parser: str
    """What reads it, as a Python name without the package's."""
    refusal: str
    """What it raises or answers for data that is none of its kind."""
    form: Form
    seeds: Callable[[], Sequence[bytes]]
    """Well-formed data."""
    feed: Callable[[bytes], bool]
    examples: int = 60
    """How many `make test` tries."""
    cpu_seconds: float = 2.0
    """The most that any data may take, all threads together; data is at most some KiB."""
    mebibytes: int = 64
    """The most memory that it may take beside what was there."""


class TooMuch(Exception):
    """Data cost more time or memory than the target allows."""


def feed_within_limits(target: Target, data: bytes) -> bool:
    """`target.feed`. Raises TooMuch, and what `feed` raises."""
    tracemalloc.start()
    began = time.process_time()
    try:
        is_taken = target.feed(data)
        seconds = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if seconds > target.cpu_seconds:
        raise TooMuch(f"{seconds:.1f} s of CPU for {len(data)} bytes; {target.cpu_seconds:g} s are the most")
    if peak > target.mebibytes * MEBIBYTE:
        raise TooMuch(f"{peak / MEBIBYTE:.0f} MiB for {len(data)} bytes; {target.mebibytes} MiB are the most")
    return is_taken
