"""What happens between two steps: logging, evaluating; `saving.py` saves. The loop knows when, the hooks know what."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from capstan_runtime.agreement import Saves, StopVote, Verdict
from capstan_runtime.checkpoint.manifest import Value
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.state import Phase, Section
from capstan_runtime.data.batches import validation_batches
from capstan_runtime.data.spec import Samples
from capstan_runtime.engine import Batch, Engine, StepResult, Trained
from capstan_runtime.evaluation import add_up
from capstan_runtime.flops import Work
from capstan_runtime.metrics.lines import progress_line
from capstan_runtime.metrics.meter import Meter
from capstan_runtime.voice import Voice

_HEARTBEAT_SECONDS = 1.0


class Outcome:
    """A step's result, fetched at most once however many ask."""

    def __init__(self, result: StepResult) -> None:
        self._result = result
        self._fetched: Mapping[str, float] | None = None

    def fetch(self) -> Mapping[str, float]:
        """`loss` and `gradient_norm`. Waits for the device the first time. Collective where the engine's is."""
        if self._fetched is None:
            self._fetched = self._result.fetch()
        return self._fetched


@dataclass(slots=True)
class Step:
    """One optimizer step that was just queued."""

    done: int
    """Steps done, this one included."""
    is_last: bool
    """None follows: all are done, or an evaluation of this one has ended the run."""
    learning_rate: float
    outcome: Outcome
    verdict: Verdict


MEASURED = ("validation_loss", "accuracy", "sparsity")
"""What an evaluation finds; the first always."""


class Interrupted(Exception):
    """All ranks have agreed to stop, amid an evaluation that a hook makes. Nothing is known of it."""


class Hook(Protocol):
    """Something done after some steps, by all ranks after the same ones."""

    section: Section
    """What the supervisor is told the main thread is doing meanwhile."""

    def is_due(self, step: Step) -> bool:
        """Asked when the hooks before it have run."""
        ...

    def run(self, step: Step) -> None:
        """May raise Interrupted, on all ranks alike."""
        ...


class Log:
    """Reports loss and throughput every `every` steps.

    It fetches a step's result only after the next step was queued, so that the device never waits for the host; unless
    something else needs the step finished anyway.
    """

    def __init__(
        self,
        voice: Voice,
        meter: Meter,
        context: TrainContext,
        busy_seconds: Callable[[], float | None],
        work: Work | None = None,
    ) -> None:
        """`busy_seconds` is the engine's: in all so far, None if it cannot tell. `work` None: not known either."""
        self._voice = voice
        self._meter = meter
        self._work = work
        self._busy_seconds = busy_seconds
        self._busy_before = busy_seconds()
        self._logged = meter.step
        self._every = context.run.training.log_every_steps
        self._samples = context.run.training.global_batch_size
        self._tokens = self._samples * context.data.input_shape[0] if context.data.kind == "tokens" else None
        self._pending: Step | None = None

    def after(self, step: Step, settles: bool) -> None:
        """`settles`: something else waits for this step now."""
        if self._pending is not None:
            self._write(self._pending)
            self._pending = None
        if step.done % self._every == 0 or step.is_last:
            if settles:
                self._write(step)
            else:
                self._pending = step

    def _write(self, step: Step) -> None:
        metrics = {**step.outcome.fetch(), "learning_rate": step.learning_rate}
        step_seconds = self._meter.read(step.done)
        if step_seconds is not None:
            metrics["step_seconds"] = step_seconds
            metrics["samples_per_second"] = self._samples / step_seconds
            if self._tokens is not None:
                metrics["tokens_per_second"] = self._tokens / step_seconds
            if self._work is not None:
                metrics |= self._work.rates(step_seconds)
        busy_seconds = self._busy_seconds_per_step(step.done)
        if busy_seconds is not None:
            metrics["busy_seconds"] = busy_seconds
        self._voice.report_metrics(step.done, metrics)
        shown = {name: value for name, value in metrics.items() if self._tokens is None or name != "samples_per_second"}
        known = {name: self._voice.metrics[name] for name in ("accuracy",) if name in self._voice.metrics}
        self._voice.say(progress_line(step.done, self._voice.steps, {**known, **shown}))

    def _busy_seconds_per_step(self, done: int) -> float | None:
        """This rank's own work, without waiting for others: what tells a slow rank from those that wait for it."""
        now, before, steps = self._busy_seconds(), self._busy_before, done - self._logged
        self._busy_before, self._logged = now, done
        if now is None or before is None or steps <= 0 or now < before:  # threads may end, and their time with them
            return None
        return (now - before) / steps


class Follower(Protocol):
    """What changes the course of a run by its evaluations."""

    def after_evaluation(self, done: int, metrics: Mapping[str, float]) -> None:
        """Takes in what was measured after `done` steps: once for each evaluation, and the same on every rank."""
        ...


class Evaluate:
    """Measures the model on all held-out samples, divided over the ranks."""

    name = "evaluation"
    section = Section.HOST

    def __init__(
        self,
        voice: Voice,
        meter: Meter,
        context: TrainContext,
        engine: Engine,
        held_out: Samples,
        followers: Sequence[Follower] = (),
        saved: Mapping[str, Value] = MappingProxyType({}),
        wants_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`saved` is what `state` returned before, empty at step 0. `wants_stop`: whether this rank was asked to, which
        ends an evaluation on all of them: it may take longer than whoever stops a pod waits for what is to be saved."""
        self._followers = followers
        self._wants_stop = wants_stop
        self.saves: Saves | None = None
        """What may be on its way while it evaluates: it is not to wait for the end to be told of. None: nothing."""
        self._followed_to = int(saved.get("step", 0))
        self._voice = voice
        self._meter = meter
        self._context = context
        self._engine = engine
        self._held_out = held_out
        evaluation = context.run.training.evaluation
        self._every = evaluation.every_steps if evaluation else None
        self._newest: tuple[int, Mapping[str, float]] | None = None

    def is_due(self, step: Step) -> bool:
        # Who is asked to stop has little time, and what was done is not saved yet.
        return step.is_last or (self._is_time(step.done) and not step.verdict.stop)

    def _is_time(self, done: int) -> bool:
        return self._every is not None and done > 0 and done % self._every == 0

    def is_owed(self, done: int) -> bool:
        """Whether a run that goes on after `done` steps was stopped before it could evaluate them, and somebody follows
        what is measured: its course may not depend on where it was stopped."""
        return bool(self._followers) and self._is_time(done) and self._followed_to < done

    def state(self) -> dict[str, Value]:
        return {"step": self._followed_to}

    def run(self, step: Step) -> None:
        self.measure(step.done)

    def metrics_after(self, done: int, then: Phase = Phase.TRAINING) -> Mapping[str, float]:
        """What was measured of the state after `done` steps; now, if it was not: nobody follows that. Collective."""
        if self._newest is None or self._newest[0] != done:
            self.measure(done, then, is_followed=False)
        assert self._newest is not None
        return self._newest[1]

    def measure(self, done: int, then: Phase = Phase.TRAINING, is_followed: bool = True) -> None:
        """Reports `validation_loss` and `accuracy` of the state after `done` steps, and that phase `then` follows.
        Collective. Raises Interrupted."""
        self._voice.report(phase=Phase.EVALUATING, step=done)
        with self._meter.paused():
            metrics = self._measured(None)
            sparsity = self._engine.sparsity()
        if sparsity is not None:
            metrics["sparsity"] = sparsity
        self._voice.report_metrics(done, metrics)
        self._voice.say(progress_line(done, self._voice.steps, metrics))
        self._newest = done, metrics
        if is_followed and done > self._followed_to:
            self._followed_to = done
            for follower in self._followers:
                follower.after_evaluation(done, metrics)
        self._voice.report(phase=then)

    def metrics_of(self, trained: Trained, done: int) -> Mapping[str, float]:
        """`validation_loss` and `accuracy` of a model that is not the run's own, which has done `done` steps and is to
        be compiled. Collective."""
        self._voice.report(phase=Phase.EVALUATING, step=done)
        with self._meter.paused():
            metrics = self._measured(trained)
        self._voice.report(phase=Phase.COMPILING)
        return metrics

    def _measured(self, trained: Trained | None) -> dict[str, float]:
        total = add_up(self._engine.exchange, self._engine.evaluate(self._heard(self._batches()), trained))
        return {"validation_loss": total.loss / total.count, "accuracy": total.correct / total.count}

    def _batches(self) -> Iterator[Batch]:
        return validation_batches(
            self._held_out,
            self._context.data_rank,
            self._context.data_world,
            self._context.micro_steps,
            self._context.samples_per_micro_step,
        )

    def _heard(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the supervisor hears that they are being consumed. Raises Interrupted between two."""
        spoke_at = time.monotonic()
        vote = StopVote(self._engine.exchange, self._wants_stop, time.monotonic, self.saves)
        for number, batch in enumerate(batches):
            if number and vote.after(number):
                raise Interrupted
            if time.monotonic() - spoke_at > _HEARTBEAT_SECONDS:
                self._voice.report(phase=Phase.EVALUATING)
                spoke_at = time.monotonic()
            yield batch
