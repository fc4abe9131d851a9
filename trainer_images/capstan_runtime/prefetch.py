"""The next batch is read while the device works on this one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from capstan_runtime.engine import Batch


class Prefetch:
    """Batches `first`, `first + 1`, … below `last`, each read on one thread while its predecessor is used."""

    def __init__(self, read: Callable[[int], Batch], first: int, last: int) -> None:
        self._read = read
        self._next = first
        self._last = last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
        self._pending: Future[Batch] | None = None

    def __enter__(self) -> Self:
        self._start_next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def take(self) -> Batch:
        """The next batch. Raises what reading it raised. Waiting is bounded by the supervisor's hang watch, which
        dumps where the reader is stuck."""
        assert self._pending is not None, "take() was called more often than there are batches"
        batch = self._pending.result()
        self._start_next()
        return batch

    def _start_next(self) -> None:
        self._pending = self._thread.submit(self._read, self._next) if self._next < self._last else None
        self._next += 1
