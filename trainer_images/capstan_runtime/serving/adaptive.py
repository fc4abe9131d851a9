"""Finds how many requests at a time a replica can take without making them wait."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from capstan_runtime.contract.serving import AdaptiveLimit
from capstan_runtime.serving.refusal import Shed, too_many

_WINDOW_SECONDS = 0.05
_WINDOW_SAMPLES = 10
"""A window ends when it is so long and holds so many: fewer say little about a median."""
_SMOOTHING = 0.3
"""Weight of a new value of the idle latency."""
_LEAST_GRADIENT = 0.25
"""One window at most brings the limit down to a quarter."""
_HEADROOM = 2
"""A limit falls from at most so many times what there were: more was never tried."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of a request that is worked on."""

    since: float
    was_idle: bool
    """It found the replica idle."""


class AdaptiveLimiter:
    """The gradient of latency decides (as in Netflix's concurrency-limits and Envoy's adaptive concurrency): after each
    window the limit is multiplied by allowed / median latency. It falls in a few windows, and grows by its own square
    root at most, when it was reached.

    Allowed is `latency_ratio` times the latency of an idle replica: that of requests that found fewer than
    `min_ongoing` others. It is known anew whenever there are few requests, and also when the machine has become slower
    for good: the limit then falls to `min_ongoing`, where every request counts as one of an idle replica. So nothing
    needs to be throttled now and then to measure it.
    """

    def __init__(self, config: AdaptiveLimit, most: int, clock: Callable[[], float]) -> None:
        """`most`: never more at a time. The limit starts there, as if nothing were known: what is too much shows in the
        first window, but a slow start would refuse what may well be done."""
        self._least = config.min_ongoing
        self._most = max(most, config.min_ongoing)
        self._ratio = config.latency_ratio
        self._clock = clock
        self._limit = float(self._most)
        self._ongoing = 0
        self._most_ongoing = 0
        self._idle_seconds = math.inf
        self._window: list[float] = []
        self._window_began = clock()

    @property
    def limit(self) -> int:
        return int(self._limit)

    @property
    def ongoing(self) -> int:
        return self._ongoing

    def check(self) -> None:
        """Raises Refusal 429 when there is no room."""
        if self._ongoing >= self.limit:
            self._most_ongoing = max(self._most_ongoing, self._ongoing)
            raise too_many(f"{self._ongoing} requests at a time are all that can be answered in time", Shed.ADAPTIVE, 1)

    def enter(self) -> Place:
        """Takes a place; `leave` must follow. Raises Refusal 429 when there is none."""
        self.check()
        was_idle = self._ongoing < self._least
        self._ongoing += 1
        self._most_ongoing = max(self._most_ongoing, self._ongoing)
        return Place(self._clock(), was_idle)

    def leave(self) -> None:
        """Gives a place back."""
        self._ongoing -= 1

    def learn(self, place: Place) -> None:
        """Now is when the one who holds `place` was served."""
        now = self._clock()
        seconds = now - place.since
        if math.isinf(self._idle_seconds):
            self._idle_seconds = seconds
        elif place.was_idle:
            self._idle_seconds += _SMOOTHING * (seconds - self._idle_seconds)
        self._window.append(seconds)
        if len(self._window) >= _WINDOW_SAMPLES and now - self._window_began >= _WINDOW_SECONDS:
            self._adapt(median(self._window))
            self._window.clear()
            self._window_began = now

    def _adapt(self, seconds: float) -> None:
        """`seconds` is the median of a window."""
        gradient = self._ratio * self._idle_seconds / seconds if seconds > 0.0 else math.inf
        wanted = self._limit
        if gradient < 1.0:
            wanted = min(wanted, _HEADROOM * self._most_ongoing) * max(_LEAST_GRADIENT, gradient)
        elif self._most_ongoing >= self.limit:
            # Where requests wait for each other, one more place makes all of them slower: only what still fits.
            wanted = max(wanted, min(wanted + math.sqrt(wanted), self.limit * gradient))
        self._limit = min(float(self._most), max(float(self._least), wanted))
        self._most_ongoing = self._ongoing
