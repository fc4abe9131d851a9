"""How many requests a replica takes on; the rest hear when to come back."""

import asyncio
import contextlib
from collections import deque
from time import monotonic
from types import TracebackType

from capstan_runtime.serving.refusal import Shed, too_many

_RATE_SECONDS = 1.0
"""Over which the drain rate is taken."""
_LONGEST_WAIT_SECONDS = 60.0


class BoundedQueue:
    """`async with queue:` holds one of the places, and waits for one in the order of arrival. Raises Refusal 429 when
    as many as may wait do; its Retry-After is the time the waiting will take at the pace of the last second."""

    def __init__(self, places: int, may_wait: int) -> None:
        self._places = places
        self._free = places
        self._may_wait = may_wait
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._pace = Pace()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiters)

    @property
    def ongoing(self) -> int:
        """Requests that hold a place or wait for one."""
        return self._places - self._free + len(self._waiters)

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiters) >= self._may_wait:
            raise too_many("the replica's queue is full", Shed.QUEUE, self._pace.seconds_for(len(self._waiters) + 1))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came and it left at the same time
                self._pass_on()
            else:
                with contextlib.suppress(ValueError):  # passed over already
                    self._waiters.remove(turn)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pace.note()
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Pace:
    """How many requests end in a second, over the last one or two."""

    def __init__(self) -> None:
        self._since = monotonic()
        self._count = 0
        self._per_second = 0.0

    def note(self) -> None:
        self._count += 1
        now = monotonic()
        if now - self._since >= _RATE_SECONDS:
            self._per_second = self._count / (now - self._since)
            self._since, self._count = now, 0

    def seconds_for(self, requests: int) -> float:
        """How long so many will take."""
        elapsed = monotonic() - self._since
        per_second = self._per_second
        if elapsed >= _RATE_SECONDS:  # what was true a while ago may not be any more
            per_second = self._count / elapsed
        return min(_LONGEST_WAIT_SECONDS, requests / per_second) if per_second else 1.0
