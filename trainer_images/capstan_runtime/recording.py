"""How long the steps of an attempt took, and on what machine: a TrainingRecord in the run's store, of runs that ask."""

import time

from capstan_runtime.checkpoint.layout import record_name
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.benchmark import TrainingRecord
from capstan_runtime.metrics.control import measure_control
from capstan_runtime.metrics.environment import observe_environment
from capstan_runtime.metrics.meter import Clock, Meter
from capstan_runtime.voice import Voice


class WindowMeter(Meter):
    """A meter that keeps what it reads."""

    def __init__(self, clock: Clock, step: int) -> None:
        super().__init__(clock, step)
        self.windows: list[tuple[int, float]] = []
        """(steps done at its end, mean seconds per step) of each."""

    def read(self, step: int) -> float | None:
        step_seconds = super().read(step)
        if step_seconds is not None:
            self.windows.append((step, step_seconds))
        return step_seconds


class Recording:
    """One rank's record of one attempt. All that it measures by itself, it measures before the first step and after the
    last; of the steps it keeps what is read for the log anyway."""

    def __init__(self, context: TrainContext, first_step: int) -> None:
        """`first_step` is the number of steps done when the attempt begins."""
        self._context = context
        self._first_step = first_step
        self._started_at = time.time()
        self._environment = observe_environment(context.environ)
        self._control_before = measure_control()
        self.meter = WindowMeter(time.monotonic, first_step)

    def keep(self, store: Store, parameters: int, voice: Voice, is_complete: bool) -> None:
        """Writes the record. A record that cannot be written ends no run: it is missed by who looks for it."""
        record = self._record(parameters, voice.metrics, is_complete)
        try:
            store.put(record_name(record.fence, record.rank), [record.model_dump_json(by_alias=True).encode()])
            store.settle("")
        except OSError as error:
            voice.warn(f"how long the steps took is not recorded: {error}")

    def _record(self, parameters: int, metrics: dict[str, float], is_complete: bool) -> TrainingRecord:
        context, member = self._context, self._context.membership
        return TrainingRecord(
            job=context.run.job,
            fence=member.fence,
            rank=member.rank,
            world=member.world,
            first_step=self._first_step,
            steps=tuple(step for step, _ in self.meter.windows),
            step_seconds=tuple(step_seconds for _, step_seconds in self.meter.windows),
            samples_per_step=context.run.training.global_batch_size,
            tokens_per_sample=context.data.input_shape[0] if context.data.kind == "tokens" else None,
            parameters=parameters,
            metrics=metrics,
            environment=self._environment,
            control_seconds=(*self._control_before, *measure_control()),
            is_complete=is_complete,
            started_at=self._started_at,
            finished_at=time.time(),
        )
