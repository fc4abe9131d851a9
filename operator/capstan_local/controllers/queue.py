"""Keys to reconcile: each at most once at a time, again when woken meanwhile, later when asked or failed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from capstan_local.client import ApiError, Key, Unreachable

log = logging.getLogger(__name__)

WORKERS = 16
FIRST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 30.0


class KeyQueue:
    """`reconcile(key)` returns the seconds after which it wants to look again, or None.

    Errors of the API server are retried with growing pauses; any other exception is logged and retried in the same way,
    so that one malformed object does not stop the rest.
    """

    def __init__(self, name: str, reconcile: Callable[[Key], Awaitable[float | None]]) -> None:
        self._name = name
        self._reconcile = reconcile
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def wake(self, key: Key) -> None:
        if key in self._running:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._running.add(key)
            try:
                await self._attempt(key)
            finally:
                self._running.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.wake(key)

    async def _attempt(self, key: Key) -> None:
        try:
            later = await self._reconcile(key)
            self._failures.pop(key, None)
        except (ApiError, Unreachable) as error:
            later = self._delay(key)
            is_conflict = isinstance(error, ApiError) and error.code == 409
            log.log(logging.DEBUG if is_conflict else logging.WARNING, "%s %s/%s: %s", self._name, *key, error)
        except Exception:
            later = self._delay(key)
            log.exception("%s %s/%s", self._name, *key)
        if later is not None:
            self._wake_later(key, later)

    def _delay(self, key: Key) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return min(FIRST_RETRY_SECONDS * 2.0**failures, LONGEST_RETRY_SECONDS)

    def _wake_later(self, key: Key, seconds: float) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

        def wake() -> None:
            self._timers.pop(key, None)
            self.wake(key)

        self._timers[key] = asyncio.get_running_loop().call_later(max(0.0, seconds), wake)
