"""Which worker has which rank: an attempt's workers by index, ascending; a worker's rank is its position among them."""

from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache


def write_ranks(workers: Iterable[int]) -> str:
    """The text of status for these workers, ascending.

    >>> write_ranks([0, 1, 2, 5]), write_ranks([3]), write_ranks([])
    ('0-2,5', '3', '')
    """
    spans: list[list[int]] = []
    for worker in workers:
        if spans and worker == spans[-1][1] + 1:
            spans[-1][1] = worker
        else:
            spans.append([worker, worker])
    return ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in spans)


@lru_cache(maxsize=1024)
def read_ranks(text: str) -> tuple[int, ...]:
    """The inverse of `write_ranks`. Raises ValueError."""
    spans = (span.partition("-") for span in text.split(",") if span)
    return tuple(worker for first, _, last in spans for worker in range(int(first), int(last or first) + 1))


def rank_of(worker: int, ranks: tuple[int, ...]) -> int | None:
    """The position of `worker` in `ranks`; None: it is not among them."""
    position = bisect_left(ranks, worker)
    return position if position < len(ranks) and ranks[position] == worker else None
