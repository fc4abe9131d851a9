"""What the main thread is doing: shown to the supervisor at every moment, and added up."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from capstan_runtime.beat import Beat
from capstan_runtime.contract.state import Section
from capstan_runtime.engine import Batch, Engine, EvaluationSums, LocalTensor, StepResult, TensorSource, Trained


class Activity:
    """Where the main thread is, and how long it has been where. Changing costs about 1 us."""

    def __init__(self, beat: Beat, step: int = 0) -> None:
        self.step = step
        """Optimizer steps done; the loop keeps it."""
        self._beat = beat
        self._seconds = dict.fromkeys(Section, 0.0)
        self._section = Section.HOST
        self._since = time.perf_counter()
        beat.enter(self._section, step)

    def enter(self, section: Section) -> Section:
        """The section that is left, to come back to. Whoever fails does not come back: the supervisor wants to know
        what the thread was doing when it did."""
        left, now = self._section, time.perf_counter()
        self._seconds[left] += now - self._since
        self._section, self._since = section, now
        self._beat.enter(section, self.step)
        return left

    def own_seconds(self) -> float:
        """Spent on this rank's own account outside the steps: on the host, and waiting for its data."""
        here = time.perf_counter() - self._since if self._section in (Section.HOST, Section.DATA) else 0.0
        return self._seconds[Section.HOST] + self._seconds[Section.DATA] + here


class ObservedResult:
    """A step's result; waiting for it is part of the step."""

    def __init__(self, result: StepResult, activity: Activity) -> None:
        self._result = result
        self._activity = activity

    def fetch(self) -> dict[str, float]:
        before = self._activity.enter(Section.STEP)
        values = dict(self._result.fetch())
        self._activity.enter(before)
        return values


class ObservedEngine:
    """An engine of which the supervisor sees whether it computes or waits for messages."""

    def __init__(self, engine: Engine, activity: Activity) -> None:
        self.rank, self.world, self.parameters = engine.rank, engine.world, engine.parameters
        self.devices, self.hardware = engine.devices, engine.hardware
        self._engine = engine
        self._activity = activity

    def read_teacher(self) -> None:
        self._engine.read_teacher()

    def memory_limit(self) -> int | None:
        return self._engine.memory_limit()

    def step_memory(self, batch: Batch) -> int | None:
        before = self._activity.enter(Section.STEP)
        peak = self._engine.step_memory(batch)
        self._activity.enter(before)
        return peak

    def train_step(self, batch: Batch, learning_rate: float) -> ObservedResult:
        before = self._activity.enter(Section.STEP)
        result = self._engine.train_step(batch, learning_rate)
        self._activity.enter(before)
        return ObservedResult(result, self._activity)

    def evaluate(self, batches: Iterable[Batch], trained: Trained | None = None) -> EvaluationSums:
        before = self._activity.enter(Section.STEP)
        sums = self._engine.evaluate(batches, trained)
        self._activity.enter(before)
        return sums

    def quantize(self) -> None:
        before = self._activity.enter(Section.STEP)
        self._engine.quantize()
        self._activity.enter(before)

    def sparsity(self) -> float | None:
        before = self._activity.enter(Section.STEP)
        share = self._engine.sparsity()
        self._activity.enter(before)
        return share

    def export_state(self) -> Iterator[LocalTensor]:
        return self._engine.export_state()

    def import_state(self, source: TensorSource) -> None:
        self._engine.import_state(source)

    def exchange(self, payload: bytes) -> list[bytes]:
        before = self._activity.enter(Section.EXCHANGE)
        answers = self._engine.exchange(payload)
        self._activity.enter(before)
        return answers

    def busy_seconds(self) -> float | None:
        """As the engine says, and what this rank spent on its own account outside the steps."""
        in_steps = self._engine.busy_seconds()
        return None if in_steps is None else in_steps + self._activity.own_seconds()

    def trace(self, folder: Path) -> Callable[[], None]:
        return self._engine.trace(folder)

    def poison_next_step(self) -> None:
        self._engine.poison_next_step()

    def exhaust_memory(self) -> NoReturn:
        self._engine.exhaust_memory()

    def close(self) -> None:
        before = self._activity.enter(Section.EXCHANGE)
        self._engine.close()
        self._activity.enter(before)
