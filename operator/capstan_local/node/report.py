"""Writes a pod's status: one PATCH per change, none without, and never in the way of the containers."""

import asyncio
import logging
from collections.abc import Callable

from capstan_local.client import PODS, STRATEGIC_PATCH, ApiError, Client, Key, Object, Unreachable, version_of
from capstan_local.node.interrupt import pause
from capstan_local.node.status import status_patch

log = logging.getLogger(__name__)

FIRST_WRITE_SECONDS = 0.25
"""A pod that runs within this time is never shown as ContainerCreating, which saves a write."""
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 10.0


class Reporter:
    """Keeps the status on the API server equal to what `build` returns."""

    def __init__(self, client: Client, pod: Object, build: Callable[[Object], Object]) -> None:
        self._client = client
        self._uid = pod["metadata"]["uid"]
        self._key: Key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        self._build = build
        self._version = version_of(pod)
        self.status: Object = pod.get("status") or {}
        """As the API server is known to have it."""
        self._dirty = asyncio.Event()
        self._is_news = asyncio.Event()

    def see(self, pod: Object) -> None:
        """Takes note of what the API server shows. An older version than that of our own last write is ignored."""
        if version_of(pod) >= self._version:
            self._version = version_of(pod)
            self.status = pod.get("status") or {}

    def change(self, *, is_news: bool = True) -> None:
        """Something is to be written; without `is_news`, only if nothing better comes soon."""
        self._dirty.set()
        if is_news:
            self._is_news.set()

    async def run(self) -> None:
        """Writes until cancelled; what fails is tried again."""
        await self._dirty.wait()
        if not self.status.get("startTime"):
            await pause(FIRST_WRITE_SECONDS, self._is_news)
        seconds = FIRST_RETRY_SECONDS
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self.write()
                seconds = FIRST_RETRY_SECONDS
            except (ApiError, Unreachable) as error:
                log.warning("status of pod %s/%s not written, next try in %.1f s: %s", *self._key, seconds, error)
                await asyncio.sleep(seconds)
                seconds = min(2 * seconds, LONGEST_RETRY_SECONDS)
                self._dirty.set()

    async def write(self) -> None:
        """Writes what differs, if anything. A pod that is gone, or whose name another one has, is left alone."""
        patch = status_patch(self.status, self._build(self.status))
        if not patch:
            return
        try:
            answer = await self._client.patch(
                PODS,
                self._key,
                {"metadata": {"uid": self._uid}, "status": patch},
                subresource="status",
                content_type=STRATEGIC_PATCH,
            )
        except ApiError as error:
            if error.code in (404, 409):  # the watch will tell
                return
            raise
        self.see(answer)
