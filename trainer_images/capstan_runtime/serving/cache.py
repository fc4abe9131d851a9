"""Answers of a deterministic model are kept, and computed once for all who ask at the same time."""

import asyncio
from collections.abc import Awaitable, Callable

from cachetools import LRUCache, TTLCache

from capstan_runtime.contract.serving import Cache
from capstan_runtime.serving.exchange import Trip
from capstan_runtime.serving.scores import Floats, Scores

Compute = Callable[[Floats, Trip], Awaitable[Scores]]

_OVERHEAD_BYTES = 1200
"""Of an entry beside its numbers: four arrays, their record, a key and two entries of dictionaries."""


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
        self._flights: dict[str, list[asyncio.Future[Scores | None]]] = {}
        """What is being computed, and who waits for it beside the one who asked first."""

    @property
    def nbytes(self) -> int:
        return int(self._kept.currsize)

    async def scores(self, inputs: Floats, trip: Trip) -> Scores:
        """Of `inputs`, whose digest `trip` holds."""
        key = trip.input_digest
        self._on_lookup(key in self._kept or key in self._flights)
        while True:
            kept = self._kept.get(key)
            if kept is not None:
                trip.is_cached = True
                return kept
            waiting = self._flights.get(key)
            if waiting is None:
                return await self._lead(key, inputs, trip)
            turn: asyncio.Future[Scores | None] = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            scores = await turn
            if scores is not None:
                trip.is_cached = True
                return scores
            # The one who asked first has left without an answer: somebody else must be the first.

    async def _lead(self, key: str, inputs: Floats, trip: Trip) -> Scores:
        waiting = self._flights[key] = []
        try:
            scores = await self._compute(inputs, trip)
        except BaseException as error:
            del self._flights[key]
            for turn in waiting:
                if turn.done():
                    continue
                if isinstance(error, Exception):
                    turn.set_exception(error)
                else:
                    turn.set_result(None)
            raise
        del self._flights[key]
        if _size(scores) <= self._most_bytes:
            self._kept[key] = scores
        for turn in waiting:
            if not turn.done():
                turn.set_result(scores)
        return scores


def _size(scores: Scores) -> int:
    return scores.nbytes + _OVERHEAD_BYTES
