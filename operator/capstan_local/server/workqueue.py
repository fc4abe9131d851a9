"""A queue of keys for the controllers that run inside the server."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from capstan_local.server.errors import ApiError
from capstan_local.server.storage import StorageFailed

log = logging.getLogger(__name__)

Item = TypeVar("Item", bound=Hashable)

_AT_ONCE = 64  # so many items share a group commit
_RETRY_SECONDS = 0.5
_SLOWEST_RETRY_SECONDS = 60.0


class WorkQueue(Generic[Item]):
    """Each added item is processed once however often it was added meanwhile; a failed one again, ever more slowly."""

    def __init__(self, name: str, process: Callable[[Item], Awaitable[None]]) -> None:
        self._name = name
        self._process = process
        self._waiting: dict[Item, None] = {}
        self._failures: dict[Item, int] = {}
        self._wake = asyncio.Event()

    def add(self, item: Item) -> None:
        self._waiting[item] = None
        self._wake.set()

    async def run(self) -> None:
        """Process items until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [item for item, _ in zip(self._waiting, range(_AT_ONCE), strict=False)]
                for item in batch:
                    del self._waiting[item]
                await asyncio.gather(*(self._attempt(item) for item in batch))

    async def _attempt(self, item: Item) -> None:
        try:
            await self._process(item)
        except (ApiError, StorageFailed) as error:
            failures = self._failures[item] = self._failures.get(item, 0) + 1
            delay = min(_RETRY_SECONDS * 2**failures, _SLOWEST_RETRY_SECONDS)
            log.warning("%s: %s: %s; trying again in %.0f s", self._name, item, error, delay)
            asyncio.get_running_loop().call_later(delay, self.add, item)
        except Exception:
            # One object that trips the controller must not stop it for all others.
            log.exception("%s: %s could not be processed", self._name, item)
        else:
            self._failures.pop(item, None)
