"""When does waiting become a hang? Pure: time is an argument."""

from collections import deque
from dataclasses import dataclass, field

from capstan_runtime.contract.run_config import Deadlines
from capstan_runtime.contract.state import Phase, Progress

_RECENT = 50
_SLOWNESS = 5.0
_AFTER_SUCCESS_SECONDS = 30.0
"""For leaving the world once everything is committed."""

_START_UP = frozenset({Phase.RESTORING, Phase.COMPILING})


@dataclass(slots=True)
class Watch:
    """Follows one trainer's progress. All times are seconds of one monotonic clock."""

    deadlines: Deadlines
    now: float
    """When the trainer was started."""
    phase: Phase = Phase.STARTING
    step: int = 0
    _since: float = field(init=False)
    _waits: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def __post_init__(self) -> None:
        self._since = self.now

    def note(self, progress: Progress, now: float) -> None:
        """Takes in one line of the trainer's report."""
        moved = progress.step is not None and progress.step > self.step
        changed = progress.phase is not None and progress.phase is not self.phase
        if self.phase is Phase.TRAINING and not changed and moved:
            self._waits.append(now - self._since)
        if self._is_news(progress, changed, moved):
            self._since = now
        self.phase = progress.phase or self.phase
        self.step = progress.step if progress.step is not None else self.step

    def _is_news(self, progress: Progress, changed: bool, moved: bool) -> bool:
        """Whether the wait begins anew. Restoring and compiling share one deadline, however often they report."""
        if changed:
            return not (self.phase in _START_UP and progress.phase in _START_UP)
        return moved or self.phase is Phase.EVALUATING

    def limit(self) -> float:
        """Seconds that the current wait may last."""
        deadlines = self.deadlines
        match self.phase:
            case Phase.STARTING | Phase.IDLE:
                return deadlines.form
            case Phase.RESTORING | Phase.COMPILING | Phase.EVALUATING:
                return deadlines.first_step
            case Phase.SAVING | Phase.STOPPING:
                return deadlines.save + deadlines.hang
            case Phase.SUCCEEDED | Phase.EXITED:
                return _AFTER_SUCCESS_SECONDS
            case Phase.TRAINING:
                return max(deadlines.hang, _SLOWNESS * max(self._waits, default=0.0))

    def overdue(self, now: float) -> str | None:
        """What to say of a hang; None while there is none."""
        waited = now - self._since
        if waited <= self.limit():
            return None
        return (
            f"no progress for {waited:.0f} s in phase {self.phase} after step {self.step}; "
            f"the limit is {self.limit():.0f} s"
        )
