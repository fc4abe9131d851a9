"""The one thread on which the model is called, so that the event loop stays free."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

Result = TypeVar("Result")
_Job = tuple[asyncio.Future[Any], Callable[[], Any]]


class Worker:
    """Calls come back in the order they were asked for. The thread is a daemon: a model that hangs cannot keep the
    process from ending."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._busy_since: float | None = None
        threading.Thread(target=self._work, name="model", daemon=True).start()

    @property
    def busy_seconds(self) -> float:
        """How long the call that is under way has taken so far; 0.0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else monotonic() - since

    def run(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """The result of `call()`, from any event loop's thread. A future that is cancelled before its turn is
        skipped."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._jobs.put((future, call))
        return future

    def stop(self) -> None:
        """Ends the thread when what was asked for is done."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            if future.cancelled():
                continue
            self._busy_since = monotonic()
            result: Any = None
            error: BaseException | None = None
            try:
                result = call()
            except BaseException as raised:  # it belongs to whoever asked
                error = raised
            self._busy_since = None
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            del job, future, call, result, error  # or they live until the next job comes


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
