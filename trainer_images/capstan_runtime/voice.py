"""Where a rank speaks: Progress to its supervisor and, on rank 0, lines for people."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TextIO

from capstan_runtime.contract.state import Progress
from capstan_runtime.report import Reporter


@dataclass(slots=True)
class Voice:
    """One rank's voice."""

    reporter: Reporter
    rank: int
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    """Newest value of each."""

    def report(self, **changed: object) -> None:
        self.reporter.send(Progress.model_validate(changed, by_name=True))

    def report_metrics(self, step: int | None, fresh: Mapping[str, float]) -> None:
        """After `step` steps; None: as many as reported before. A value that is not finite is absent: JSON has no word
        for it, and the old one is no longer true."""
        self.metrics = {name: value for name, value in {**self.metrics, **fresh}.items() if math.isfinite(value)}
        self.report(step=step, metrics=dict(self.metrics))

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
