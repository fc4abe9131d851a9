"""A model that fails again and again is left alone for a while."""

from collections.abc import Callable
from enum import IntEnum

from capstan_runtime.contract.serving import CircuitBreaker
from capstan_runtime.serving.refusal import Outcome, Refusal, Shed, whole_seconds


class Circuit(IntEnum):
    """As it is shown in metrics."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Closed: all pass. Open, after `failures` failed batches in a row: 503 with Retry-After. Half open, `open_seconds`
    later: one request passes as a trial; its batch closes the circuit or opens it again."""

    def __init__(self, config: CircuitBreaker, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._is_on_trial = False

    @property
    def state(self) -> Circuit:
        if self._opened_at is None:
            return Circuit.CLOSED
        return Circuit.OPEN if self._seconds_left() > 0.0 else Circuit.HALF_OPEN

    def admit(self) -> bool:
        """True if this request is the trial: `end_trial` must follow. Raises Refusal while the circuit is open."""
        if self._opened_at is None:
            return False
        left = self._seconds_left()
        if left <= 0.0 and not self._is_on_trial:
            self._is_on_trial = True
            return True
        wait = whole_seconds(left)
        raise Refusal(
            503,
            f"the model failed {self._config.failures} times in a row and is left alone; try again in {wait} s",
            outcome=Outcome.UNAVAILABLE,
            shed=Shed.BREAKER,
            retry_after_seconds=wait,
        )

    def end_trial(self) -> None:
        """The trial has ended, maybe without having reached the model: then the next request is one."""
        self._is_on_trial = False

    def note(self, *, has_failed: bool) -> None:
        """The result of a batch."""
        if not has_failed:
            self._failures, self._opened_at = 0, None
            return
        self._failures += 1
        if self._opened_at is not None or self._failures >= self._config.failures:
            self._opened_at = self._clock()

    def _seconds_left(self) -> float:
        assert self._opened_at is not None
        return self._opened_at + self._config.open_seconds - self._clock()
