"""The keyed queue: which object is looked at next. A key is in it once, and is worked on by one at a time."""

import asyncio
import heapq
import random
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import NamedTuple

from capstan_operator.metrics import Metrics

FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 60.0
RETRY_FLOOR_SECONDS = 1.0
"""A failing key that is woken all the time is still tried only about once a second."""


class ObjectKey(NamedTuple):
    """Which object of ours."""

    namespace: str
    name: str
    kind: str = "TrainingJob"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def log_fields(self) -> dict[str, str]:
        """For `extra` of a line of the log: the field says what kind of object it is about."""
        return {{"TrainingJob": "job", "Benchmark": "benchmark"}.get(self.kind, "service"): str(self)}


class Priority(IntEnum):
    """Smaller goes first."""

    REPAIR = 0
    """A pod failed or went away."""
    NORMAL = 1
    BACKGROUND = 2
    """The periodic look at everything."""


@dataclass(slots=True)
class _Failures:
    count: int
    last_at: float
    delay: float


class WorkQueue:
    """Dirty set + in-flight set + delays. A key added while it is worked on is worked on once more afterwards."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._ready: tuple[dict[ObjectKey, float], ...] = ({}, {}, {})
        """By priority: key -> when it became ready. Dicts keep the order of arrival."""
        self._in_flight: set[ObjectKey] = set()
        self._again: dict[ObjectKey, Priority] = {}
        self._delayed: dict[ObjectKey, float] = {}
        self._heap: list[tuple[float, ObjectKey]] = []
        self._failures: dict[ObjectKey, _Failures] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        self._repair_getters: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = asyncio.Event()
        """Set while nothing is in flight."""
        self._quiet.set()
        for priority in Priority:
            metrics.queue_depth.labels(priority.name.lower()).set_function(partial(self._depth_of, priority))

    def add(self, key: ObjectKey, priority: Priority = Priority.NORMAL) -> None:
        """Look at `key` as soon as possible; if its last look failed, not sooner than a second after that."""
        failures = self._failures.get(key)
        if failures is not None:
            earliest = failures.last_at + min(failures.delay, RETRY_FLOOR_SECONDS)
            wait = earliest - asyncio.get_running_loop().time()
            if wait > 0:
                return self.add_after(key, wait)
        self._make_ready(key, priority)

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        """Look at `key` in `seconds`, or sooner if something else asks for it."""
        due = asyncio.get_running_loop().time() + seconds
        if due < self._delayed.get(key, float("inf")):
            self._delayed[key] = due
            heapq.heappush(self._heap, (due, key))
            if len(self._heap) > 2 * len(self._delayed) + 64:
                # A key that is woken before it is due leaves its date behind: of a deadline next week, one per look.
                self._heap = [(due, key) for key, due in self._delayed.items()]
                heapq.heapify(self._heap)
            self._set_timer()

    def retry(self, key: ObjectKey) -> float:
        """Look at `key` again after a failure: 0.2 s, doubling to 60 s, jittered. Returns the seconds."""
        now = asyncio.get_running_loop().time()
        count = self._failures[key].count + 1 if key in self._failures else 1
        delay = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(count - 1, 20))
        delay *= random.uniform(0.75, 1.0)  # nosec B311  # jitter
        self._failures[key] = _Failures(count, now, delay)
        self._delayed.pop(key, None)  # an earlier date was set by a pass that knew of no failure
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: ObjectKey) -> None:
        """Forget the failures of `key`."""
        self._failures.pop(key, None)

    def forget(self, key: ObjectKey) -> None:
        """`key` no longer exists: no failures, no timer."""
        self._failures.pop(key, None)
        self._delayed.pop(key, None)

    async def get(self, *, only_repairs: bool = False) -> tuple[ObjectKey, Priority]:
        """The next key and why; `done` must follow. Waits until there is one."""
        getters = self._repair_getters if only_repairs else self._getters
        priorities = (Priority.REPAIR,) if only_repairs else tuple(Priority)
        while True:
            for priority in priorities:
                if ready := self._ready[priority]:
                    key, since = next(iter(ready.items()))
                    del ready[key]
                    self._in_flight.add(key)
                    self._quiet.clear()
                    self._metrics.queue_seconds.observe(asyncio.get_running_loop().time() - since)
                    return key, priority
            woken = asyncio.get_running_loop().create_future()
            getters.append(woken)
            try:
                await woken
            except asyncio.CancelledError:
                if woken.done() and not woken.cancelled():
                    self._wake_getter(Priority.REPAIR)  # the wake-up was meant for whoever is still here
                raise
            finally:
                if woken in getters:
                    getters.remove(woken)

    def done(self, key: ObjectKey) -> None:
        """The look at `key` is over."""
        self._in_flight.discard(key)
        if not self._in_flight:
            self._quiet.set()
        if (priority := self._again.pop(key, None)) is not None:
            self.add(key, priority)

    def depth(self) -> int:
        """Keys that are ready."""
        return sum(map(len, self._ready))

    async def wait_until_nothing_in_flight(self) -> None:
        """Returns when no key is being worked on."""
        await self._quiet.wait()

    def is_idle(self) -> bool:
        """Nothing is ready and nothing is worked on; delays may be running."""
        return not self._in_flight and self.depth() == 0

    def _depth_of(self, priority: Priority) -> float:
        return float(len(self._ready[priority]))

    def _make_ready(self, key: ObjectKey, priority: Priority) -> None:
        if key in self._in_flight:
            self._again[key] = min(priority, self._again.get(key, priority))
            return
        since = asyncio.get_running_loop().time()
        for other in Priority:
            if key in self._ready[other]:
                if other <= priority:
                    return
                since = self._ready[other].pop(key)
        self._delayed.pop(key, None)
        self._ready[priority][key] = since
        self._wake_getter(priority)

    def _wake_getter(self, priority: Priority) -> None:
        groups = (self._getters, self._repair_getters) if priority is Priority.REPAIR else (self._getters,)
        for getters in groups:
            while getters:
                getter = getters.popleft()
                if not getter.done():
                    getter.set_result(None)
                    return

    def _set_timer(self) -> None:
        while self._heap and self._delayed.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if not self._heap:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._timer_fired)

    def _timer_fired(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            due, key = heapq.heappop(self._heap)
            if self._delayed.get(key) == due:
                del self._delayed[key]
                self._make_ready(key, Priority.NORMAL)
        self._set_timer()
