"""Which part of replicated tensors each rank saves, so that every element is saved once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Elements [start, stop) of tensor number `tensor`, flattened in C order."""

    tensor: int
    start: int
    stop: int


def tile_evenly(sizes: Sequence[int], rank: int, world: int) -> Iterator[Range]:
    """This rank's ranges of tensors of `sizes` elements: one contiguous stretch of all elements laid end to end.

    Over all ranks every element is covered once, and no rank has more than one element more than another. A tensor of
    0 elements belongs to rank 0.
    """
    total = sum(sizes)
    first, last = total * rank // world, total * (rank + 1) // world
    offset = 0
    for number, size in enumerate(sizes):
        start, stop = max(first, offset), min(last, offset + size)
        if start < stop or (size == 0 and rank == 0):
            yield Range(number, max(0, start - offset), max(0, stop - offset))
        offset += size
