"""The next batches are read while the device works on this one."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from capstan_runtime.engine import Batch

_AHEAD = 2
"""Batches that are read, or being read, while one is used: with one, a batch that took longer than its predecessor's
step would be waited for, however soon the others came."""


class Prefetch:
    """Batches `first`, `first + 1`, … below `last`, read on one thread while their predecessors are used."""

    def __init__(self, read: Callable[[int], Batch], first: int, last: int) -> None:
        self._read = read
        self._next = first
        self._last = last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
        self._pending: deque[Future[Batch]] = deque()

    def __enter__(self) -> Self:
        for _ in range(_AHEAD):
            self._start_next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def take(self) -> Batch:
        """The next batch. Raises what reading it raised. Waiting is bounded by the supervisor's hang watch, which
        dumps where the reader is stuck."""
        assert self._pending, "take() was called more often than there are batches"
        batch = self._pending.popleft().result()
        self._start_next()
        return batch

    def _start_next(self) -> None:
        if self._next < self._last:
            self._pending.append(self._thread.submit(self._read, self._next))
            self._next += 1
