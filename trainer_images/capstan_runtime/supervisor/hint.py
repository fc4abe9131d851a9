"""Telling the operator that there is something to see. A lost hint costs only the time to its next poll."""

import asyncio
import contextlib

import aiohttp

from capstan_runtime.contract.state import Hint
from capstan_runtime.supervisor.settings import Settings

_SECONDS = 2.0
_PAUSES_SECONDS = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Before each try. Together with a prompt refusal of each, a hint is given up after eight seconds."""
_FLUSH_SECONDS = 4.0
_WORTH_ANOTHER_TRY = frozenset({429, 500, 502, 503, 504})
"""503 is what an operator says that stands by: the next connection may reach the one that acts."""


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
        self._task = asyncio.get_running_loop().create_task(self._send_until_taken())

    async def flush(self) -> None:
        """Waits for hints under way; at most about four seconds."""
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._task, _FLUSH_SECONDS)

    def cancel(self) -> None:
        """Gives up what is under way."""
        if self._task is not None:
            self._task.cancel()

    async def _send_until_taken(self) -> None:
        """Best effort by design, because the operator polls: after the last try it is given up without a word."""
        while True:
            for pause in _PAUSES_SECONDS:
                await asyncio.sleep(pause)
                self._again = False
                if await self._post():
                    break
            if not self._again:
                return

    async def _post(self) -> bool:
        """Whether an operator took the hint, or there is no use in saying it again.

        Every try has a connection of its own: behind a Service each may end at another replica.
        """
        assert self._url is not None
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session,
                session.post(self._url, json=self._body, allow_redirects=False) as answer,
            ):
                return answer.status not in _WORTH_ANOTHER_TRY
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
