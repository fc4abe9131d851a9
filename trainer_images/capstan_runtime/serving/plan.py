"""Which guards there are, decided once: one that is not configured leaves no code in a request's way.

Their order is that of their cost, cheapest first: API key, rate limit, adaptive limit, then (the body is read and
checked by the protocol) cache, circuit breaker, bounded queue, batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.contract.serving import Guards
from capstan_runtime.errors import ConfigError
from capstan_runtime.serving.adaptive import AdaptiveLimiter
from capstan_runtime.serving.auth import ApiKeys
from capstan_runtime.serving.breaker import Breaker
from capstan_runtime.serving.cache import AnswerCache, Compute
from capstan_runtime.serving.exchange import Exchange, Trip
from capstan_runtime.serving.metrics import Metrics
from capstan_runtime.serving.queue import BoundedQueue
from capstan_runtime.serving.rate_limit import RateLimiter
from capstan_runtime.serving.refusal import Refusal
from capstan_runtime.serving.scores import Floats, Scores

Admit = Callable[[Exchange], None]
"""Raises Refusal before the body is read."""


@dataclass(frozen=True, slots=True)
class Doors:
    """The guards of one application. None: it is not configured."""

    keys: ApiKeys | None
    rate: RateLimiter | None
    adaptive: AdaptiveLimiter | None
    breaker: Breaker | None
    queue: BoundedQueue

    def authorize(self, exchange: Exchange) -> None:
        if self.keys is not None:
            exchange.client = self.keys.client_of(exchange.headers)

    def admissions(self) -> tuple[Admit, ...]:
        """What an inference must pass before its body is read."""
        admissions: list[Admit] = []
        if self.keys is not None:
            admissions.append(self.authorize)
        if (rate := self.rate) is not None:
            admissions.append(lambda exchange: rate.take(exchange.client))
        if (adaptive := self.adaptive) is not None:
            admissions.append(lambda _: adaptive.check())
        return tuple(admissions)


def build_doors(
    guards: Guards, api_keys: Path | None, clock: Callable[[], float], warn: Callable[[str], None]
) -> Doors:
    """Raises ConfigError when keys are asked for and `api_keys` is None, or the other way round."""
    if guards.auth is not None and api_keys is None:
        raise ConfigError("guards.auth asks for API keys, but no folder of keys is there; mount the Secret")
    if guards.auth is None and api_keys is not None:
        raise ConfigError(f"guards.auth is not set, but a folder of API keys is given, {api_keys}; set it")
    keys = None if api_keys is None else ApiKeys(api_keys, clock, warn)
    queue = guards.queue
    places = queue.max_ongoing_requests
    adaptive = guards.adaptive_limit
    return Doors(
        keys=keys,
        rate=None if guards.rate_limit is None else RateLimiter(guards.rate_limit, clock),
        adaptive=None if adaptive is None else AdaptiveLimiter(adaptive, places + queue.max_queued_requests, clock),
        breaker=None if guards.circuit_breaker is None else Breaker(guards.circuit_breaker, clock),
        queue=BoundedQueue(places, queue.max_queued_requests),
    )


def guard(
    compute: Compute, doors: Doors, guards: Guards, metrics: Metrics, clock: Callable[[], float]
) -> tuple[Compute, AnswerCache | None]:
    """`compute` behind all guards that follow the body, outermost first: cache, adaptive limit, breaker, queue."""
    guarded = _queued(compute, doors.queue)
    if doors.breaker is not None:
        guarded = _behind_breaker(guarded, doors.breaker)
    if doors.adaptive is not None:
        guarded = _counted(guarded, doors.adaptive)
    if guards.cache is None:
        return guarded, None
    cache = AnswerCache(guards.cache, guarded, clock, metrics.note_lookup)
    return cache.scores, cache


def _queued(compute: Compute, queue: BoundedQueue) -> Compute:
    async def queued(inputs: Floats, trip: Trip) -> Scores:
        async with queue:
            return await compute(inputs, trip)

    return queued


def _behind_breaker(compute: Compute, breaker: Breaker) -> Compute:
    async def behind_breaker(inputs: Floats, trip: Trip) -> Scores:
        if not breaker.admit():
            return await compute(inputs, trip)
        try:
            return await compute(inputs, trip)
        finally:
            breaker.end_trial()

    return behind_breaker


def _counted(compute: Compute, adaptive: AdaptiveLimiter) -> Compute:
    async def counted(inputs: Floats, trip: Trip) -> Scores:
        place = adaptive.enter()
        try:
            scores = await compute(inputs, trip)
        except BaseException as error:
            # Who was turned away further on, never got to the model, and says nothing about how long that takes.
            if not (isinstance(error, Refusal) and error.shed is not None):
                adaptive.learn(place)
            raise
        else:
            adaptive.learn(place)
            return scores
        finally:
            adaptive.leave()

    return counted
