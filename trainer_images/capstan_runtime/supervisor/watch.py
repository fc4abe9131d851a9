"""When does waiting become a hang? Pure: time is an argument."""

import math
from collections import deque
from dataclasses import dataclass, field

from capstan_runtime.contract.run_config import Deadlines
from capstan_runtime.contract.state import Phase, Progress, Section

_RECENT = 200
_PERCENTILE = 0.99
"""Not the slowest of all: one step that a full disk held up for minutes would hide every hang for hours."""
_SLOWNESS = 5.0
_AFTER_SUCCESS_SECONDS = 30.0
"""For leaving the world once everything is committed."""

_START_UP = frozenset({Phase.RESTORING, Phase.COMPILING})
_IN_STAGES = frozenset({Phase.STARTING, Phase.SAVING, Phase.STOPPING})
"""The save before, this one, reading it back: each is said anew, and each may take as long as a save."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A wait that is over its limit."""

    phase: Phase
    step: int
    """Optimizer steps done."""
    waited: float
    """Seconds."""
    limit: float
    """Seconds."""

    def __str__(self) -> str:
        if self.phase is Phase.TRAINING:
            return f"no step for {self.waited:.0f} s (limit {self.limit:.0f} s) after step {self.step}"
        return f"no progress for {self.waited:.0f} s (limit {self.limit:.0f} s) in phase {self.phase}"


@dataclass(slots=True)
class Watch:
    """Follows one trainer's progress. All times are seconds of one monotonic clock."""

    deadlines: Deadlines
    now: float
    """When the trainer was started."""
    phase: Phase = Phase.STARTING
    step: int = 0
    has_data: bool | None = None
    """While it starts: whether its data is there. None: its page says nothing yet."""
    data_at: float | None = None
    """When its data last came nearer; None: it did not show that."""
    splits: int = 1
    """Micro-steps of a virtual rank, as the membership says and then as the trainer has found."""
    split_at: float | None = None
    """When it last found, before its first step, that they must be at least twice as many; None: it did not."""
    _since: float = field(init=False)
    _waits: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """Between two steps that were seen, in seconds."""

    def __post_init__(self) -> None:
        self._since = self.now

    def note(self, progress: Progress, now: float) -> None:
        """Takes in one line of the trainer's report."""
        was, self.phase = self.phase, progress.phase or self.phase
        changed = self.phase is not was
        moved = progress.step is not None and progress.step > self.step
        self.step = max(self.step, progress.step or 0)
        if was is Phase.TRAINING and not changed and moved:
            self._waits.append(now - self._since)
        # Restoring and compiling share one deadline, however often they report. Other micro-steps are another program:
        # to compile that is work of its own. Their number doubles at least, which bounds how often that may be.
        is_starting_up = was in _START_UP and self.phase in _START_UP
        if is_starting_up and (progress.micro_splits or 1) >= 2 * self.splits:
            self.splits, self.split_at, self._since = progress.micro_splits or 1, now, now
        has_begun = self.phase in _IN_STAGES and progress.phase is not None
        if (changed or moved or has_begun or self.phase is Phase.EVALUATING) and not is_starting_up:
            self._since = now

    def glance(self, step: int, now: float) -> None:
        """Takes in the step that the trainer's page shows."""
        if step <= self.step:
            return
        self.step = step
        if self.phase is Phase.TRAINING:
            self._waits.append(now - self._since)
        if self.phase not in _START_UP:
            self._since = now

    def stir(self, section: Section, at: float) -> None:
        """Takes in when the trainer wrote its page last, and what. While it starts it does so each time its data comes
        nearer, which may take far longer than the world may take to form; and before the first step at each matrix that
        it makes smaller, which takes seconds to minutes each."""
        if self.phase is Phase.STARTING:
            self._since = max(self._since, at)
            self.has_data = section is not Section.DATA
            self.data_at = at
        elif self.phase in _START_UP and section is Section.FACTORS:
            self._since = max(self._since, at)

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
                return max(deadlines.hang, _SLOWNESS * self._slow_wait())

    def _slow_wait(self) -> float:
        """The 99th percentile of the recent waits, by nearest rank; 0 before there are any."""
        waits = sorted(self._waits)
        return waits[math.ceil(_PERCENTILE * len(waits)) - 1] if waits else 0.0

    def overdue(self, now: float) -> Overdue | None:
        """The current wait, if it has lasted too long."""
        waited, limit = now - self._since, self.limit()
        return Overdue(self.phase, self.step, waited, limit) if waited > limit else None
