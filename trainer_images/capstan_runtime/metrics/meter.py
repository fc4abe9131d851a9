"""Seconds per step and throughput, without what is not training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], float]
"""Seconds from some fixed point; never goes back."""


class Meter:
    """Measures windows between two readings. Time spent inside `paused()` does not count."""

    def __init__(self, clock: Clock, step: int) -> None:
        """`step` is the number of steps done when measuring starts."""
        self.step = step
        """Steps done at the last reading."""
        self._clock = clock
        self._since = clock()

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - started

    def read(self, step: int) -> float | None:
        """Mean seconds per step since the last reading, None if no step came or no time passed since."""
        now = self._clock()
        steps, seconds = step - self.step, now - self._since
        if steps <= 0 or seconds <= 0.0:
            return None
        self.step, self._since = step, now
        return seconds / steps
