"""Telling the operator that there is something to see. A lost hint costs only the time to its next poll."""

import asyncio

import aiohttp

from capstan_runtime.contract.state import Hint
from capstan_runtime.supervisor.settings import Settings

_SECONDS = 2.0


class Hints:
    """Sends at most one hint at a time; hints that come up meanwhile are made good by one more."""

    def __init__(self, settings: Settings) -> None:
        self._url = f"{settings.operator_url.rstrip('/')}/hint" if settings.operator_url else None
        namespace, _, name = settings.run.job.partition("/")
        self._body = Hint(namespace=namespace, job=name, pod=settings.pod).document()
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def send(self) -> None:
        """Returns at once."""
        if self._url is None:
            return
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = asyncio.get_running_loop().create_task(self._post())

    async def flush(self) -> None:
        """Waits for hints under way; at most about four seconds."""
        if self._task is not None:
            await self._task

    async def _post(self) -> None:
        assert self._url is not None
        while True:
            self._again = False
            try:
                async with (
                    aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session,
                    session.post(self._url, json=self._body, allow_redirects=False),
                ):
                    pass
            except (aiohttp.ClientError, TimeoutError, OSError):
                return  # best effort by design: the operator polls
            if not self._again:
                return
