"""How figures look to people."""

import sys
import time
from collections.abc import Iterable, Sequence

_PROGRESS_SECONDS = 0.5


def size(count: float) -> str:
    """
    >>> [size(count) for count in (17, 2_340, 14_200_000, 1_120_000_000_000)]
    ['17 B', '2.34 KB', '14.2 MB', '1,120 GB']
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.3g} {unit}" if count < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:g} B"


def counted(count: int, noun: str, plural: str = "") -> str:
    """
    >>> [counted(count, "rank") for count in (0, 1, 1200)]
    ['0 ranks', '1 rank', '1,200 ranks']
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def span(seconds: float) -> str:
    """
    >>> [span(seconds) for seconds in (3.4, 95, 7300, 200_000)]
    ['3s', '95s', '122m', '56h']
    """
    for unit, scale, most in (("s", 1, 120), ("m", 60, 180 * 60), ("h", 3600, 72 * 3600)):
        if seconds < most:
            return f"{seconds / scale:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def moment(at: float) -> str:
    """Local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def short(digest: str | None) -> str:
    """Enough of a digest to name a checkpoint by."""
    return "-" if digest is None else digest.removeprefix("blake3:")[:12]


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


class Progress:
    """One line on a terminal that is written over; nothing where stderr is no terminal."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._is_seen = sys.stderr.isatty()
        self._spoke_at = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        if self._is_seen and time.monotonic() - self._spoke_at > _PROGRESS_SECONDS:
            self._spoke_at = time.monotonic()
            line = f"{self._what}: {size(self._done)} of {size(self._total)}"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._is_seen:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
