"""Which part of replicated tensors each rank saves, so that every element is saved once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LEAF_ELEMENTS = 1024 * 1024
"""Of fp32, in one leaf of 4 MiB (`checkpoint/digest.py`)."""
_SLACK = 20
"""A cut may lie this part of an even share away from where it would be even."""


@dataclass(frozen=True, slots=True)
class Range:
    """Elements [start, stop) of tensor number `tensor`, flattened in C order."""

    tensor: int
    start: int
    stop: int


def tile_evenly(sizes: Sequence[int], rank: int, world: int) -> Iterator[Range]:
    """This rank's ranges of tensors of `sizes` elements: one contiguous stretch of all elements laid end to end.

    Over all ranks every element is covered once, and no rank has a tenth more or less than its even share. A tensor of
    0 elements belongs to rank 0.
    """
    first, last = _cut(sizes, rank, world), _cut(sizes, rank + 1, world)
    offset = 0
    for number, size in enumerate(sizes):
        start, stop = max(first, offset), min(last, offset + size)
        if start < stop or (size == 0 and rank == 0):
            yield Range(number, max(0, start - offset), max(0, stop - offset))
        offset += size


def _cut(sizes: Sequence[int], rank: int, world: int) -> int:
    """Where the stretch of `rank` begins: an even share further than the one before or, if that is not far from it,
    where a tensor or a leaf of its fp32 elements begins: a leaf that two ranks share is read again at the commit."""
    total = sum(sizes)
    even = total * rank // world
    offset = 0
    for size in sizes:
        if offset + size > even:
            leaf = (even - offset) // LEAF_ELEMENTS * LEAF_ELEMENTS
            below, above = offset + leaf, offset + min(size, leaf + LEAF_ELEMENTS)
            nearest = below if even - below <= above - even else above
            return nearest if abs(nearest - even) * _SLACK * world <= total else even
        offset += size
    return total
