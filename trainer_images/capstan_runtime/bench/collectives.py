"""Collective operations between ranks: what they move, how they are timed, and what must come out of them.

Bandwidths are those of nccl-tests (doc/PERFORMANCE.md): S is the size of the larger buffer of one rank, which for
all-gather is what comes out and for reduce-scatter what goes in. Algorithm bandwidth is S over the time; bus bandwidth
is that times the share of S that each rank must send, so that it can be compared with a link's speed whatever the
operation and the number of ranks.
"""

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.sizes import FP32_BYTES
from capstan_runtime.contract.workloads import Operation

WARMUPS = 5
"""Calls before those that count, as in nccl-tests."""
_PERIOD = 31
"""Prime, so that no two ranks' parts begin alike; small, so that sums over 1,024 ranks are exact in fp32."""

Values = npt.NDArray[np.float32]
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class Call(Protocol):
    """One operation at one size, on one rank."""

    def load(self, values: Values) -> None:
        """What goes in from now on."""
        ...

    def run(self) -> None:
        """Once; this rank's part is done when it returns. Raises PeerLost."""
        ...

    def result(self) -> Values:
        """What came out of the last run."""
        ...


class Ranks(Protocol):
    """This process among those that take part."""

    rank: int
    size: int
    backend: str
    """What moves the bytes: gloo or nccl."""
    notes: Sequence[str]
    """What a reader must know of this backend."""

    def prepare(self, operation: Operation, items: int) -> Call:
        """The operation, whose larger buffer has `items` numbers on each rank: a multiple of the number of ranks."""
        ...

    def exchange(self, payload: bytes) -> list[bytes]:
        """Every rank's payload, in rank order. Raises PeerLost."""
        ...

    def leave(self) -> None:
        """Says goodbye once all are ready to. Raises PeerLost."""
        ...


def bus_factor(operation: Operation, ranks: int) -> float:
    """Bus bandwidth over algorithm bandwidth.

    A sum that everybody has takes each number to a rank and back: 2(n-1)/n. In the others each rank keeps the part that
    is its own: (n-1)/n.

    >>> bus_factor("allReduce", 4)
    1.5
    """
    kept = (ranks - 1) / ranks
    return 2 * kept if operation == "allReduce" else kept


def algorithm_bandwidth(size: int, seconds: float) -> float:
    """Bytes per second."""
    return size / seconds


def bus_bandwidth(operation: Operation, ranks: int, size: int, seconds: float) -> float:
    """Bytes per second."""
    return algorithm_bandwidth(size, seconds) * bus_factor(operation, ranks)


def size_text(size: int) -> str:
    """As `size_bytes` reads it: 65536 is 64KiB.

    >>> size_text(65536), size_text(4092)
    ('64KiB', '4092B')
    """
    unit, count = next(((unit, count) for unit, count in _UNITS if size % count == 0), ("B", 1))
    return f"{size // count}{unit}"


def input_of(operation: Operation, items: int, rank: int, ranks: int) -> Values:
    """Known numbers: element i of what rank r puts in is i mod 31 + 31 r."""
    count = items // ranks if operation == "allGather" else items
    return _pattern(count) + np.float32(_PERIOD * rank)


def expected_of(operation: Operation, items: int, rank: int, ranks: int) -> Values:
    """What must come out of `input_of` at `rank`, exactly."""
    part = items // ranks
    offsets = np.float32(_PERIOD) * np.arange(ranks, dtype=np.float32)
    if operation == "allGather":
        return (_pattern(part) + offsets[:, None]).reshape(-1)
    own = slice(rank * part, (rank + 1) * part)
    if operation == "allToAll":
        return (_pattern(items)[own] + offsets[:, None]).reshape(-1)
    total = ranks * _pattern(items) + np.float32(_PERIOD * (ranks * (ranks - 1) // 2))
    return total if operation == "allReduce" else total[own]


def _pattern(count: int) -> Values:
    return np.resize(np.arange(_PERIOD, dtype=np.float32), count)


def measure(ranks: Ranks, operation: Operation, size: int, iterations: int) -> list[float]:
    """Seconds of each of `iterations` runs at `size` bytes: for each that of the slowest rank. The same on all ranks.

    Every rank tells its own times after all of them were taken, so the telling is no part of what is timed. What comes
    out is checked before and after. Raises RuntimeError, on every rank, if a number is wrong on one; PeerLost.
    """
    items = size // FP32_BYTES
    call = ranks.prepare(operation, items)
    _require_right(ranks, call, operation, items)
    call.load(np.zeros_like(input_of(operation, items, ranks.rank, ranks.size)))  # sums in place would grow for ever
    for _ in range(WARMUPS):
        call.run()
    clock = time.perf_counter
    seconds = np.empty(iterations, np.float32)
    for iteration in range(iterations):
        started = clock()
        call.run()
        seconds[iteration] = clock() - started
    _require_right(ranks, call, operation, items)
    told = [np.frombuffer(each, np.float32) for each in ranks.exchange(seconds.tobytes())]
    slowest: list[float] = np.max(told, axis=0).tolist()
    return slowest


def _require_right(ranks: Ranks, call: Call, operation: Operation, items: int) -> None:
    """All ranks wait here for each other, too."""
    call.load(input_of(operation, items, ranks.rank, ranks.size))
    call.run()
    problem = _problem(call.result(), expected_of(operation, items, ranks.rank, ranks.size))
    for rank, told in enumerate(ranks.exchange(problem.encode())):
        if told:
            size = size_text(items * FP32_BYTES)
            raise RuntimeError(f"{operation} of {size} by {ranks.backend} is wrong at rank {rank}: {told.decode()}")


def _problem(found: Values, expected: Values) -> str:
    """Empty when they are the same."""
    if found.shape != expected.shape:
        return f"{found.size} numbers came out, {expected.size} must"
    wrong = np.flatnonzero(found != expected)
    if not wrong.size:
        return ""
    first = int(wrong[0])
    return f"number {first} is {found[first]:g}, it must be {expected[first]:g}; {wrong.size} of {found.size} are wrong"
