"""How an attempt's time was spent. Pure: time is an argument."""

from dataclasses import dataclass, field

from capstan_runtime.contract.state import Phase


@dataclass(slots=True)
class Ledger:
    """Adds up one attempt's seconds by phase. They sum to the time from its start to the newest entry."""

    started_at: float
    """Seconds since 1970."""
    started: float
    """The same moment on a clock that never goes back, in seconds; `now` is of that clock."""
    phase: Phase = Phase.STARTING
    seconds: dict[Phase, float] = field(default_factory=dict)
    timeline: dict[Phase, float] = field(default_factory=dict)
    """Seconds since 1970 when each phase was first entered, in that order."""
    _now: float = field(init=False)

    def __post_init__(self) -> None:
        self._now = self.started
        self.enter(self.phase, self.started)

    def enter(self, phase: Phase, now: float) -> None:
        """The time since the last entry was spent in the phase of then; from `now` on it is `phase`, new or not."""
        self.seconds = {**self.seconds, self.phase: self.seconds.get(self.phase, 0.0) + now - self._now}
        if phase not in self.timeline:
            self.timeline = {**self.timeline, phase: self.started_at + now - self.started}
        self.phase, self._now = phase, now
