"""Which pieces of a checkpoint have been read and found right, so that ranks that each read a part can add it up."""

import zlib
from collections.abc import Iterable, Sequence
from itertools import accumulate

LONGEST = 32 * 1024
"""Bytes of one rank's coverage at most, so that it fits into an exchange. Ranks read in long runs, which pack well."""


class Coverage:
    """A set of (file, piece). Any thread may add to it: a byte of its own for each piece, so that none is lost."""

    def __init__(self, pieces: Sequence[int]) -> None:
        """`pieces`: how many each file has."""
        self._first = [0, *accumulate(pieces)]
        self._seen = bytearray(self._first[-1])

    def add(self, file: int, piece: int) -> None:
        self._seen[self._first[file] + piece] = 1

    def has(self, file: int, piece: int) -> bool:
        return bool(self._seen[self._first[file] + piece])

    def missing(self) -> list[tuple[int, int]]:
        """What is not in the set, in order."""
        return [
            (file, piece)
            for file, first in enumerate(self._first[:-1])
            for piece in range(self._first[file + 1] - first)
            if not self._seen[first + piece]
        ]

    def packed(self) -> bytes:
        """For another rank; nothing when it would be too long to send, which is as if nothing had been read."""
        data = zlib.compress(bytes(self._seen))
        return data if len(data) <= LONGEST else b""

    def add_packed(self, others: Iterable[bytes]) -> None:
        """Adds what other ranks have read of the same checkpoint. Raises ValueError when it is another's."""
        for other in filter(None, others):
            seen = zlib.decompress(other)
            if len(seen) != len(self._seen):
                raise ValueError(f"a coverage of {len(seen)} pieces, {len(self._seen)} expected")
            self._seen = bytearray(ours | theirs for ours, theirs in zip(self._seen, seen, strict=True))
