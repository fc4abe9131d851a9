"""Where a rank speaks: Progress to its supervisor and, on rank 0, lines for people."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TextIO

from capstan_runtime.contract.state import Progress
from capstan_runtime.report import Reporter
from capstan_runtime.tracking.tracker import Tracker


@dataclass(slots=True)
class Voice:
    """One rank's voice."""

    reporter: Reporter
    rank: int
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    """Newest value of each."""
    measured_after: dict[str, int] = field(default_factory=dict)
    """How many steps were done when it was reported."""
    tracker: Tracker | None = None
    """Who else is told of metrics; None: nobody."""

    def report(self, **changed: object) -> None:
        self.reporter.send(Progress.model_validate(changed, by_name=True))

    def report_metrics(self, step: int | None, fresh: Mapping[str, float]) -> None:
        """After `step` steps; None: as many as reported before. A value that is not finite is absent: JSON has no word
        for it, and the old one is no longer true."""
        if self.tracker is not None:
            self.tracker.report(step, fresh)
            if self.tracker.dropped:
                fresh = {**fresh, "tracking_dropped_points": self.tracker.dropped}
        after = max(self.measured_after.values(), default=0) if step is None else step
        self.measured_after |= dict.fromkeys(fresh, after)
        self.metrics = {name: value for name, value in {**self.metrics, **fresh}.items() if math.isfinite(value)}
        self.report(step=step, metrics=dict(self.metrics))

    def forget(self, names: Iterable[str]) -> None:
        """They are no longer true."""
        for name in names:
            self.metrics.pop(name, None)

    def metrics_since(self, step: int) -> dict[str, float]:
        """The newest value of each that was measured after `step` steps or later."""
        return {name: value for name, value in self.metrics.items() if self.measured_after[name] >= step}

    def report_system(self, figures: Mapping[str, float]) -> None:
        """What this worker uses of its machine. From any thread."""
        self.report(system=dict(figures))
        tracker = self.tracker
        if tracker is not None:
            tracker.report(None, {f"system/{name}": value for name, value in figures.items()})

    def report_commit(self, step: int, root: str) -> None:
        """The checkpoint of `step` was committed: to trackers. The supervisor hears of it from who verifies it."""
        if self.tracker is not None:
            self.tracker.report(step, {}, root)

    def end_tracking(self, is_finished: bool, stop_seconds: float) -> None:
        """Gives trackers some of `stop_seconds` to take what is left: half of it once the run is over (`is_finished`),
        a tenth where others wait for this rank to go."""
        tracker, self.tracker = self.tracker, None
        if tracker is None:
            return
        tracker.close(is_finished, stop_seconds / (2 if is_finished else 10))
        if tracker.dropped:
            self.report_metrics(None, {"tracking_dropped_points": tracker.dropped})

    def say(self, line: str) -> None:
        if self.rank == 0:
            _write(sys.stdout, line)

    def warn(self, line: str) -> None:
        """From any rank and any thread."""
        _write(sys.stderr, f"warning: {line}")


def _write(stream: TextIO, line: str) -> None:
    """In one write: without a buffer, `print` makes one of the newline too, and what collects a container's output may
    put its time stamp, or another rank's words, between the two."""
    stream.write(f"{line}\n")
    stream.flush()
