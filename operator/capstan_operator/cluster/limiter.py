"""Who may ask the API server next: lanes, a token bucket, and a rate that follows what the server can take."""

import asyncio
import heapq
from dataclasses import dataclass, field
from enum import IntEnum

from capstan_operator.cluster.errors import ApiError

MAX_IN_FLIGHT = 112
"""Requests at a time. The session has 128 connections; the rest is for watches and the lease."""
RESERVED_FOR_REPAIR = 16
MAX_WAIT_SECONDS = 60.0
SLOW_SECONDS = 1.0
"""A request that takes longer says that the server has too much to do."""


class Lane(IntEnum):
    """Why a request is made; smaller goes first."""

    SYSTEM = 0
    """Never waits: the lease, watches and lists. Losing the lease to our own limiter would be absurd."""
    REPAIR = 1
    """Mends a broken attempt; strictly before the rest, and has slots of its own."""
    CREATE = 2
    STATUS = 3
    EVENTS = 4


_PATIENCE_SECONDS = {Lane.CREATE: 0.0, Lane.STATUS: 1.0, Lane.EVENTS: 10.0}
"""How much later than a create of the same moment a lane is served. A deadline, not a strict order: nothing starves."""


@dataclass(order=True, slots=True)
class _Waiter:
    deadline: float
    number: int
    lane: Lane = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class Limiter:
    """Additive increase, multiplicative decrease: +20 requests/s per second of full use, halved on a 429 and cut by a
    fifth on a slow answer, at most once a second, between 5 and 2,000 requests/s."""

    def __init__(self, rate: float = 200.0) -> None:
        self.rate = rate
        """Requests per second allowed now."""
        self.in_flight = 0
        self._tokens = self._burst()
        self._refilled_at: float | None = None
        self._paused_until = 0.0
        self._cut_at = float("-inf")
        self._waiting: list[_Waiter] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, lane: Lane) -> None:
        """Wait for this request's turn; `release` must follow. Raises ApiError after a minute in the queue."""
        if lane is Lane.SYSTEM:
            return
        loop = asyncio.get_running_loop()
        self._count += 1
        order = float("-inf") if lane is Lane.REPAIR else loop.time() + _PATIENCE_SECONDS[lane]
        waiter = _Waiter(order, self._count, lane, loop.create_future())
        heapq.heappush(self._waiting, waiter)
        self._pump()
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                await waiter.admitted
        except BaseException as error:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self._leave()
            if isinstance(error, TimeoutError):
                raise ApiError(
                    0, "TooBusy", f"no turn within {MAX_WAIT_SECONDS:.0f} s at {self.rate:.0f} requests/s"
                ) from error
            raise

    def release(self, lane: Lane, seconds: float, *, throttled_for: float | None = None) -> None:
        """The request ended after `seconds`. `throttled_for`: the server said 429 and asked to wait that long."""
        if lane is Lane.SYSTEM:
            return
        now = asyncio.get_running_loop().time()
        if throttled_for is not None:
            self._cut(0.5, now)
            self._paused_until = max(self._paused_until, now + throttled_for)
        elif seconds > SLOW_SECONDS:
            self._cut(0.8, now)
        elif self._waiting:
            self.rate = min(2000.0, self.rate + 20.0 / self.rate)
        self._leave()

    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def _burst(self) -> float:
        return max(16.0, self.rate / 4)

    def _cut(self, factor: float, now: float) -> None:
        if now - self._cut_at >= 1.0:
            self._cut_at = now
            self.rate = max(5.0, self.rate * factor)

    def _leave(self) -> None:
        self.in_flight -= 1
        self._pump()

    def _pump(self) -> None:
        """Admit, in order, all that tokens and slots allow; come back when the next token is due."""
        now = asyncio.get_running_loop().time()
        elapsed = 0.0 if self._refilled_at is None else now - self._refilled_at
        self._tokens = min(self._burst(), self._tokens + elapsed * self.rate)
        self._refilled_at = now
        while self._waiting:
            head = self._waiting[0]
            if head.admitted.done():  # it gave up
                heapq.heappop(self._waiting)
                continue
            slots = MAX_IN_FLIGHT if head.lane is Lane.REPAIR else MAX_IN_FLIGHT - RESERVED_FOR_REPAIR
            if self.in_flight >= slots:
                return  # the next release pumps again
            if now < self._paused_until:
                return self._pump_in(self._paused_until - now)
            if self._tokens < 1.0:
                return self._pump_in((1.0 - self._tokens) / self.rate)
            heapq.heappop(self._waiting)
            self._tokens -= 1.0
            self.in_flight += 1
            head.admitted.set_result(None)

    def _pump_in(self, seconds: float) -> None:
        if self._timer is None or self._timer.cancelled() or self._timer.when() <= asyncio.get_running_loop().time():
            self._timer = asyncio.get_running_loop().call_later(seconds, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._pump()
