"""A job as the user's own program sees it: where it is in the world, and what it does with each step."""

import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from capstan_runtime.activity import Activity
from capstan_runtime.agreement import CARRY_ON, Agreement, Verdict, Wishes
from capstan_runtime.beat import Beat
from capstan_runtime.chaos import chaos_of
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import JobContext
from capstan_runtime.contract.state import RESERVED_METRICS, Phase, Section
from capstan_runtime.data.plan import SamplePlan, batch_index
from capstan_runtime.data.spec import Ids
from capstan_runtime.errors import ConfigError
from capstan_runtime.hooks import Outcome, Step
from capstan_runtime.metrics.lines import progress_line
from capstan_runtime.metrics.meter import Meter
from capstan_runtime.numerical import Guard
from capstan_runtime.parallel.star import Star
from capstan_runtime.persistence import make_save_state, settle
from capstan_runtime.program.ending import Ending
from capstan_runtime.program.foreign import scalar_later
from capstan_runtime.program.state import ProgramState
from capstan_runtime.report import Reporter
from capstan_runtime.restore import Start, restore
from capstan_runtime.saving import begin_retention
from capstan_runtime.stop_signal import StopSignal
from capstan_runtime.tracking.open import open_tracker
from capstan_runtime.voice import Voice

_METRIC = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class _Told:
    """The metrics of a step, which a device may still be computing."""

    values: Mapping[str, Callable[[], float]]

    def fetch(self) -> Mapping[str, float]:
        return {name: value() for name, value in self.values.items()}


class Job:
    """What `capstan_runtime.attach` returns.

    Every rank calls the same of its methods in the same order, with the same step:

        first, state = job.restore()
        for step in range(first, job.steps):
            ids = job.data_slice(step, len(samples))
            ...
            job.report(step, loss=loss)
            job.save(step, lambda: {"params": ...})
            if job.should_stop():
                break
    """

    def __init__(
        self, context: JobContext, store: Store, star: Star, reporter: Reporter, stop: StopSignal, ending: Ending
    ) -> None:
        membership, training = context.membership, context.run.training
        assert training.virtual_ranks is not None
        self.rank = membership.rank
        """This process's place in the world, from 0."""
        self.world = membership.world
        """Processes in the world. It may be another one after each restart."""
        self.steps = context.steps
        """Optimizer steps in all."""
        self.seed = training.seed
        """`spec.training.seed`; by hand, that of `ByHand`."""
        self.micro_steps = context.micro_steps
        """M: rows of `data_slice`, each small enough for the device's memory."""
        self._context = context
        self._store = store
        self._stop = stop
        self._ending = ending
        self._voice = Voice(reporter, self.rank, self.steps)
        self._activity = Activity(Beat.from_environ(context.environ))
        self._star = star
        self._state = ProgramState(self.rank, self.world, self._exchange)
        self._run: _Run | None = None
        """None before `restore`."""
        self._samples: int | None = None
        self._plan: SamplePlan | None = None
        self.coordinator = self._meeting_place()
        """`address:port` on rank 0's pod, free for the program's framework to meet at: the same on every rank."""
        ending.context = context
        ending.voice = self._voice
        self._voice.report(phase=Phase.RESTORING, steps=self.steps)

    def restore(self) -> tuple[int, Any]:
        """The step to begin with, and the state as it was given to `save`; 0 and None at the beginning. Collective.

        Arrays come back on the host, as those of the library that they were of: torch's and JAX's where the program has
        imported it, else numpy's. Raises CorruptCheckpoint, StoreUnavailable, ConfigError, which the program need not
        catch: they end it with their class.
        """
        if self._run is not None:
            raise RuntimeError("job.restore: was called before; a process restores once")
        start = restore(self._context, self._state, self._store, self._voice)
        saved = self._state.restored
        self._stop.from_now_on_save_first()
        self._ending.step = self._activity.step = start.step
        if saved is not None:
            self._samples = saved["samples"]
            if saved["isLast"]:
                self.steps = self._voice.steps = start.step
        self._voice.tracker = open_tracker(self._context, start, self._store, self._voice)
        self._run = run = _Run(self._context, self._state, self._store, self._voice, self._stop, start)
        self._voice.say(
            f"{self._context.run.job}: steps {start.step} to {self.steps}, "
            f"{self._context.run.training.global_batch_size} samples a step, "
            f"{self.world} {'worker' if self.world == 1 else 'workers'}"
        )
        state = saved["state"] if saved is not None else None
        if start.step >= self.steps:
            if not start.is_in_store:
                self._hold(state, is_last=True)
                self._in(Section.SAVE, lambda: run.save_state.save_again(start.step))
            self._finish(run)
        self._activity.enter(Section.STEP)
        return start.step, state

    def data_slice(self, step: int, samples: int) -> Ids:
        """Numbers of this rank's samples of step `step` (from 0), out of `samples` in all: [micro-steps, n] int64.

        The same step has the same samples in every world: the ranks' rows one after the other are the global batch. So
        average gradients over the rows and the ranks. Nothing of it is read, and nothing is carried from step to step.
        Raises ConfigError for fewer samples than a batch, and for others than the run began with.
        """
        if self._samples is not None and samples != self._samples:
            raise ConfigError(
                f"job.data_slice: {samples:,} samples, and the run began with {self._samples:,}, on which the order "
                "depends; give it the same data, or start a new job"
            )
        if self._plan is None:
            training = self._context.run.training
            assert training.virtual_ranks is not None
            skips = self._context.membership.skips
            self._samples = samples
            self._plan = SamplePlan(training.seed, samples, training.global_batch_size, training.virtual_ranks, skips)
        ids = self._plan.ids_for_rank(step, self.rank, self.world)
        return ids.reshape(self.micro_steps, self._context.samples_per_micro_step)

    def report(self, step: int, **metrics: Any) -> None:
        """Tells what step `step` (from 0) has come to. Numbers, or arrays of one: a device that still computes them is
        waited for only where they are shown, every `training.logEverySteps` steps.

        `loss` and `gradient_norm` are looked at as `spec.recovery.numerical` says: give those of the global batch, the
        same on every rank. Raises NumericalFailure then, ValueError for a name that cannot be one.
        """
        run = self._begun("report")
        for name in metrics:
            if _METRIC.fullmatch(name) is None or name in RESERVED_METRICS:
                raise ValueError(f"job.report: {name} cannot be the name of a metric; use another in small letters")
        told = _Told({name: scalar_later(value) for name, value in metrics.items()})
        done = step + 1
        self._begin_training(run, done)
        if "loss" in metrics:
            run.has_loss = True
            run.guard.note(done, Outcome(_Judged(told)))
        if done % self._context.run.training.log_every_steps == 0 or done == self.steps:
            values = dict(told.fetch())
            step_seconds = run.meter.read(done)
            if step_seconds is not None:
                values["step_seconds"] = step_seconds
                values["samples_per_second"] = self._context.run.training.global_batch_size / step_seconds
            self._voice.report_metrics(done, values)
            self._voice.say(progress_line(done, self.steps, values))

    def save(self, step: int, state: Any, is_last: bool = False) -> None:
        """Tells that step `step` (from 0) is done, and saves `state` if a checkpoint is due. Collective; every step.

        `state`: arrays, numbers, text and None, nested in dicts, lists and tuples, the same on every rank, which each
        save a part of it; or a function that returns that, which is called only when it is needed. When this returns it
        may be changed: it was copied. `is_last` ends the run here, with fewer steps than were asked for.

        Raises ConfigError for what cannot be saved, StoreUnavailable after three failed saves in a row, PeerLost.
        """
        run, done = self._begun("save"), step + 1
        if done != self._ending.step + 1:
            raise ValueError(f"job.save: step {step} after {self._ending.step} steps; call it once after every step")
        if run.has_ended:
            raise RuntimeError("job.save: the job has ended; leave the loop when job.should_stop() is true")
        self._begin_training(run, done)
        self._ending.step = self._activity.step = done
        is_last = is_last or done == self.steps
        if run.agreement.is_due(done):
            run.guard.settle(done - 1)
            self._voice.report(step=done)
        verdict = CARRY_ON if is_last else self._in(Section.HOST, lambda: run.agreement.after(done))
        pause = Step(done, is_last, 0.0, Outcome(_Told({})), verdict)
        if run.save_state.is_due(pause):
            run.guard.settle(done)
            self._hold(state() if callable(state) else state, is_last)
            self._in(Section.SAVE, lambda: run.save_state.run(pause))
        if run.chaos is not None and run.chaos.is_due(pause):
            run.chaos.run(pause)
        if is_last:
            self.steps = done
            self._finish(run)
        elif verdict.stop or run.save_state.has_left:
            self._leave(run, verdict)
        self._activity.enter(Section.STEP)

    def should_stop(self) -> bool:
        """Whether to leave the loop: all is done, or it was asked to stop and has saved. The same on every rank."""
        return self._begun("should_stop").has_ended

    def _begun(self, what: str) -> "_Run":
        if self._run is None:
            raise RuntimeError(f"job.{what}: comes after job.restore(), which says where to begin")
        return self._run

    def _begin_training(self, run: "_Run", done: int) -> None:
        """The first step compiles and warms up; only its end says that training has begun."""
        if not run.has_begun:
            run.has_begun = True
            run.meter.read(done)
            self._voice.report(phase=Phase.TRAINING, step=done)

    def _hold(self, state: Any, is_last: bool) -> None:
        self._state.take(state, isLast=is_last, samples=self._samples)

    def _finish(self, run: "_Run") -> None:
        settle(self._context, self._exchange, self._voice, run.wait_for_retention, is_finished=True)
        # What follows is the program's own, such as a last evaluation: it may take its time if it reports now and then.
        self._voice.report(phase=Phase.EVALUATING)
        run.has_ended = self._ending.has_finished = True

    def _leave(self, run: "_Run", verdict: Verdict) -> None:
        how = "stopped at step" if verdict.stop else "left at the checkpoint of step"
        self._voice.say(f"{how} {self._ending.step}, as asked")
        settle(self._context, self._exchange, self._voice, run.wait_for_retention, is_finished=False)
        run.has_ended = self._ending.has_stopped = True

    def _exchange(self, payload: bytes) -> list[bytes]:
        return self._in(Section.EXCHANGE, lambda: self._star.exchange(payload))

    def _in(self, section: Section, action: Callable[[], Any]) -> Any:
        before = self._activity.enter(section)
        found = action()
        self._activity.enter(before)
        return found

    def _meeting_place(self) -> str:
        """A port that is free right now: libraries listen on all of a machine's addresses, not on this pod's alone, and
        on a laptop other pods are on the same machine."""
        host = self._context.membership.coordinator.rpartition(":")[0]
        with socket.create_server(("", 0)) as probe:
            port = probe.getsockname()[1]
        return self._exchange(f"{host}:{port}".encode())[0].decode()


@dataclass(frozen=True, slots=True)
class _Judged:
    """A step's metrics as the guard looks at them."""

    told: _Told

    def fetch(self) -> Mapping[str, float]:
        values = self.told.fetch()
        return {"loss": values["loss"], "gradient_norm": values.get("gradient_norm", 0.0)}  # not told: nothing to judge


class _Run:
    """Everything that there is from `restore` on."""

    def __init__(
        self, context: JobContext, state: ProgramState, store: Store, voice: Voice, stop: StopSignal, start: Start
    ) -> None:
        self.meter = Meter(time.monotonic, start.step)
        retention = begin_retention(context, store, start, voice)
        self.wait_for_retention = retention.wait if retention is not None else None
        skips = context.membership.skips
        self.guard = Guard(
            context.run.numerical, lambda done: batch_index(done - 1, skips), self._teller(voice), start.loss
        )
        self.has_loss = False
        """The program has told one."""
        self._loss_before: float | None = start.loss
        self.save_state = make_save_state(
            context,
            state,
            store,
            voice,
            self.meter,
            start,
            retention,
            self._newest_loss,
            framework="program",
            signature=None,
        )
        wishes = Wishes(stop=lambda: stop.wanted, leave=lambda: stop.leave_wanted)
        self.agreement = Agreement(state.exchange, wishes, self.save_state, time.monotonic, start.step)
        self.chaos = chaos_of(context, store, voice)
        self.has_begun = False
        """The first step of this attempt is done."""
        self.has_ended = False
        """Nothing more is to be trained."""

    def _newest_loss(self) -> float | None:
        return self.guard.newest_loss() if self.has_loss else self._loss_before

    @staticmethod
    def _teller(voice: Voice) -> Callable[[str], None]:
        def tell(note: str) -> None:
            """All ranks have noticed the same; one says so."""
            if voice.rank == 0:
                voice.report(note=note)
                voice.say(note)

        return tell
