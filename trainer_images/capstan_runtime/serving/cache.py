"""Answers of a deterministic model are kept, and computed once for all who ask at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cachetools import LRUCache, TTLCache

from capstan_runtime.contract.serving import Cache
from capstan_runtime.serving.exchange import Trip
from capstan_runtime.serving.scores import Floats, Scores

Compute = Callable[[Floats, Trip], Awaitable[Scores]]

_OVERHEAD_BYTES = 1200
"""Of an entry beside its numbers: four arrays, their record, a key and two entries of dictionaries."""


@dataclass(slots=True)
class _Flight:
    task: asyncio.Task[Scores]
    waiting: int = 0


class AnswerCache:
    """Least recently used first out, bounded in bytes. Failures are not kept."""

    def __init__(
        self,
        config: Cache,
        compute: Compute,
        clock: Callable[[], float],
        on_lookup: Callable[[bool], None],
    ) -> None:
        """`on_lookup` hears of every request, whether its answer was there or under way."""
        most_bytes = config.max_mebibytes * 1024 * 1024
        self._kept: LRUCache[str, Scores] | TTLCache[str, Scores]
        if config.ttl_seconds is None:
            self._kept = LRUCache(most_bytes, getsizeof=_size)
        else:
            self._kept = TTLCache(most_bytes, config.ttl_seconds, timer=clock, getsizeof=_size)
        self._most_bytes = most_bytes
        self._compute = compute
        self._on_lookup = on_lookup
        self._flights: dict[str, _Flight] = {}

    @property
    def nbytes(self) -> int:
        return int(self._kept.currsize)

    async def scores(self, inputs: Floats, trip: Trip) -> Scores:
        """Of `inputs`, whose digest `trip` holds."""
        key = trip.input_digest
        kept = self._kept.get(key)
        if kept is not None:
            trip.is_cached = True
            self._on_lookup(True)
            return kept
        flight = self._flights.get(key)
        self._on_lookup(flight is not None)
        if flight is None:
            flight = self._start(key, inputs, trip)
        else:
            trip.is_cached = True
        flight.waiting += 1
        try:
            # Shielded: the one who came first may leave without taking the answer from the others.
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._flights.pop(key, None)
                flight.task.cancel()

    def _start(self, key: str, inputs: Floats, trip: Trip) -> _Flight:
        async def compute() -> Scores:
            return await self._compute(inputs, trip)

        task = asyncio.get_running_loop().create_task(compute())
        flight = _Flight(task)
        self._flights[key] = flight
        task.add_done_callback(lambda done: self._land(key, flight))
        return flight

    def _land(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.cancelled() or flight.task.exception() is not None:
            return
        scores = flight.task.result()
        if _size(scores) <= self._most_bytes:
            self._kept[key] = scores


def _size(scores: Scores) -> int:
    return scores.nbytes + _OVERHEAD_BYTES
