"""Who has gone away needs no answer: the work for it is cancelled."""

import asyncio
from typing import Any

from capstan_runtime.serving.exchange import Exchange

_PATIENCE_SECONDS = 0.05
"""Most requests are answered sooner; for them nobody looks."""


class Watch:
    """Cancels the task it was made in when the request's client disconnects, from a moment after the body was read."""

    def __init__(self, exchange: Exchange) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(_PATIENCE_SECONDS, self._look)
        self.is_gone = False

    def forgive(self) -> None:
        """The cancellation was this one's: the task goes on to its end."""
        self._task.uncancel()

    def stop(self) -> None:
        self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()

    def _look(self) -> None:
        if self._exchange.trip.admitted:
            self._looking = self._loop.create_task(self._wait())
        else:  # the body is being read, which notices by itself
            self._timer = self._loop.call_later(_PATIENCE_SECONDS, self._look)

    async def _wait(self) -> None:
        await self._exchange.until_gone()
        self.is_gone = True
        self._task.cancel()
