"""The training loop, the same for every framework: fetch, step, hooks. And the one way in and out of a trainer."""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from capstan_runtime.activity import Activity, ObservedEngine
from capstan_runtime.agreement import CARRY_ON, Agreement, Wishes
from capstan_runtime.beat import Beat, data_comes_nearer
from capstan_runtime.beginning import begin_from_trained
from capstan_runtime.callbacks.early_stopping import EarlyStopping
from capstan_runtime.callbacks.profiler import Profiler
from capstan_runtime.callbacks.system_monitor import watch_system
from capstan_runtime.chaos import Chaos, DisturbedEngine, chaos_of, stalling
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.retention import Retention
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.compressing import Compress
from capstan_runtime.context import TrainContext, require_whole_replicas
from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.state import Phase, Progress, Section
from capstan_runtime.data.plan import SamplePlan, batch_index
from capstan_runtime.data.spec import Dataset
from capstan_runtime.data_check import tell_of_data
from capstan_runtime.data_of_peers import await_data_of_peers
from capstan_runtime.distillation import find_teacher
from capstan_runtime.engine import Batch, Engine, Trained
from capstan_runtime.errors import (
    ConfigError,
    GpuOutOfMemory,
    PeerLost,
)
from capstan_runtime.explain import explain, located
from capstan_runtime.fitting import fitted
from capstan_runtime.flops import work_of
from capstan_runtime.hooks import MEASURED, Evaluate, Hook, Interrupted, Log, Outcome, Step
from capstan_runtime.metrics.meter import Meter
from capstan_runtime.model_signature import signature_of
from capstan_runtime.numerical import Guard
from capstan_runtime.persistence import make_save_state, settle
from capstan_runtime.plateau import PlateauFollower
from capstan_runtime.prefetch import Prefetch
from capstan_runtime.preparing import Prepared, prepare
from capstan_runtime.pruning import require_last_cut
from capstan_runtime.quantization import require_aware_steps
from capstan_runtime.reading import largest_batch, read_batch
from capstan_runtime.recording import Recording
from capstan_runtime.registry.at_end import RegisterAtEnd
from capstan_runtime.report import Reporter
from capstan_runtime.restore import Start, restore
from capstan_runtime.saving import SaveState, begin_retention
from capstan_runtime.schedules import learning_rate_at, unreached_peak
from capstan_runtime.stop_signal import StopSignal
from capstan_runtime.told import read_membership, required
from capstan_runtime.tracking.open import open_tracker
from capstan_runtime.trainer_state import Carried
from capstan_runtime.voice import Voice

MakeEngine = Callable[[TrainContext], Engine]


def main(make_engine: MakeEngine, environ: Mapping[str, str] = os.environ, prepared: Prepared | None = None) -> int:
    """The exit code of one attempt: OK, or STOPPED. Does not return after a failure.

    Reads the run and its membership from `environ`, opens the data, makes the engine, restores, trains, saves. Any
    exception becomes one Progress with failure and message, and the exit code of its class. `prepared` is what
    `prepare` returned, if it was called before.
    """
    stop = StopSignal()
    reporter = Reporter.from_environ(environ)
    try:
        reporter.send(Progress(phase=Phase.STARTING))
        prepared = prepared or prepare(environ, data_comes_nearer(environ))
        return run_attempt(make_engine, environ, reporter, stop, prepared)
    except BaseException as error:
        # A library that calls sys.exit has failed; only this process's own SIGTERM is a wish to stop.
        was_stopped = isinstance(error, SystemExit) and stop.wanted
        code = ExitCode.STOPPED if was_stopped else explain(error, reporter)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `return`: a framework's exit hooks wait for peers that may be gone, for minutes; the answer is known now.
    os._exit(code)


def run_attempt(
    make_engine: MakeEngine, environ: Mapping[str, str], reporter: Reporter, stop: StopSignal, prepared: Prepared
) -> int:
    """One attempt from start to end: OK when all steps are done and committed, STOPPED when asked to stop."""
    run, dataset, membership = prepared.run, prepared.dataset, read_membership(environ)
    stop.leave_wanted |= membership.leave_at_checkpoint
    training = run.training
    assert training.virtual_ranks is not None
    plan = SamplePlan(
        training.seed, len(dataset.train), training.global_batch_size, training.virtual_ranks, membership.skips
    )
    require_whole_replicas(run, membership)
    plan.micro_steps(membership.world // run.workers_per_replica)  # refuses what does not divide the virtual ranks
    steps = training.steps or (training.epochs or 0) * plan.steps_per_epoch
    require_last_cut(run.compression, training, steps)
    require_aware_steps(run.compression, training, steps)
    context = TrainContext(run=run, membership=membership, data=dataset.spec, steps=steps, environ=environ)
    store = open_store(required(environ, env.STORE), environ)
    voice = Voice(reporter, membership.rank, steps)
    activity = Activity(Beat.from_environ(environ))
    chaos = chaos_of(context, store, voice)
    if run.data.is_in_bucket:
        await_data_of_peers(context, data_comes_nearer(environ, Section.EXCHANGE))
    context = replace(context, teacher=find_teacher(context, store, voice))
    engine: Engine = make_engine(context)
    engine = DisturbedEngine(engine, activity, chaos.disturbance) if chaos else ObservedEngine(engine, activity)
    tell_of_data(dataset, store, voice)
    voice.report(phase=Phase.RESTORING, steps=steps)
    engine.read_teacher()
    registering = RegisterAtEnd(context, store) if run.register_as is not None and membership.rank == 0 else None
    start = restore(context, engine, store, voice)
    origin = begin_from_trained(context, engine, store, voice, activity) if start.root is None else None
    reference = context.teacher or origin
    stop.from_now_on_save_first()
    activity.step = start.step
    if start.step < steps:
        context = fitted(context, engine, lambda tried: largest_batch(tried, dataset, plan, start.step), voice)
    recording = Recording(context, start.step) if run.record else None
    meter = recording.meter if recording is not None else Meter(time.monotonic, start.step)
    attempt = _Attempt(
        context, dataset, plan, engine, voice, stop, start, store, activity, chaos, meter, registering, reference
    )
    voice.tracker = open_tracker(context, start, store, voice)
    watch_system(run.callbacks.system_monitor, voice)
    finished = False
    try:
        finished = attempt.train()
    finally:
        voice.end_tracking(finished, run.deadlines.stop)
    if recording is not None:
        recording.keep(store, engine.parameters, voice, finished)
    if finished:
        voice.report(phase=Phase.SUCCEEDED, step=activity.step)
    try:
        engine.close()
    except PeerLost as error:
        voice.warn(f"{error}; all is saved that is to be saved, and nobody is needed any more")
    return ExitCode.OK if finished else ExitCode.STOPPED


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Everything one attempt is made of."""

    context: TrainContext
    dataset: Dataset
    plan: SamplePlan
    engine: Engine
    voice: Voice
    stop: StopSignal
    start: Start
    store: Store
    activity: Activity
    chaos: Chaos | None
    meter: Meter
    registering: RegisterAtEnd | None
    """Rank 0's, of a run that registers what it ends with."""
    reference: Trained | None
    """The model that the run learns or begins from; None: there is none, or it began before."""

    def train(self) -> bool:
        """True when all steps are done and committed, False when stopped early."""
        try:
            return self._train()
        except GpuOutOfMemory as error:
            raise located(error, self.context, self.activity.step, "spec.model") from error

    def _train(self) -> bool:
        retention = begin_retention(self.context, self.store, self.start, self.voice, self.context.run.judged_from)
        guard = self._guard()
        early_stopping = self._early_stopping()
        plateau = self._plateau()
        followers = [each for each in (plateau, early_stopping) if each is not None]
        evaluate = Evaluate(
            self.voice,
            self.meter,
            self.context,
            self.engine,
            self.dataset.validation,
            followers,
            self.start.callbacks.get(Evaluate.name, {}),
            lambda: self.stop.wanted,
        )
        compress = self._compress(evaluate)
        carried = [*([evaluate, *followers] if followers else []), *([compress] if compress else [])]
        save_state = evaluate.saves = self._save_state(retention, guard, carried)
        profiler = self._profiler()
        between = [hook for hook in (early_stopping, compress) if hook is not None]
        hooks: list[Hook] = [evaluate, *between, save_state]
        if profiler is not None:
            hooks.append(profiler)
        if self.chaos is not None:
            hooks.append(self.chaos)
        self._introduce()
        steps = self._queued_steps(save_state, guard, plateau, profiler)
        try:
            finished = self._is_finished(evaluate, early_stopping, compress, save_state)
            finished = finished or self._make_steps(hooks, save_state, steps, guard)
        except Interrupted:  # before the first step
            finished = False
            self.activity.enter(Section.HOST)
            if not self.start.is_in_store:
                self._save_again(save_state, is_stopping=True)
            self._say_stopped(self.start.step)
        self._settle(finished, retention)
        return finished

    def _is_finished(
        self,
        evaluate: Evaluate,
        early_stopping: EarlyStopping | None,
        compress: Compress | None,
        save_state: SaveState,
    ) -> bool:
        """Whether nothing is left to be done but what comes after the last step, which is done then."""
        done = self.start.step
        if compress is not None:
            compress.note_reference(done)
        is_owed = evaluate.is_owed(done)
        if is_owed:
            evaluate.measure(done, then=Phase.COMPILING)
        if compress is not None and compress.is_owed(done):
            compress.note_before(done, then=Phase.COMPILING)
        has_stopped_early = early_stopping is not None and early_stopping.is_over
        if done < self.context.steps and not has_stopped_early:
            self._require_trainable()
            return False
        if not is_owed:
            evaluate.measure(done)
        if early_stopping is not None and done < self.context.steps:
            early_stopping.tell(done)
        is_another = compress is not None and compress.finish(done)
        is_measured = MEASURED[0] in self.start.metrics  # a run that was stopped amid its last evaluation is not
        if is_another or not is_measured or not self.start.is_in_store:
            self._save_again(save_state)
        return True

    def _save_again(self, save_state: SaveState, is_stopping: bool = False) -> None:
        before = self.activity.enter(save_state.section)
        save_state.save_again(self.start.step, is_stopping)
        self.activity.enter(before)

    def _require_trainable(self) -> None:
        if self.start.has_integers:
            raise ConfigError(
                f"spec.training.steps: {self.context.steps}, and the checkpoint of step {self.start.step} is a "
                "finished model of integers; adopt the one before it"
            )

    def _make_steps(self, hooks: list[Hook], save_state: SaveState, steps: Iterator[Step], guard: Guard) -> bool:
        """True when the last step is done and committed, False when stopped or left before it."""
        work = work_of(self.context.run, self.context.data, self.engine.hardware)
        log = Log(self.voice, self.meter, self.context, self.engine.busy_seconds, work)
        for step in steps:
            is_settled = any(hook.is_due(step) for hook in hooks)
            if is_settled:
                guard.settle(step.done)
            log.after(step, settles=is_settled)
            for hook in hooks:
                if hook.is_due(step):
                    self._run(hook, step)
            if step.is_last:
                return True
            if step.verdict.stop:
                self._say_stopped(step.done)
                break
            if save_state.has_left:
                self.voice.say(f"left at the checkpoint of step {step.done}, as asked")
                break
        return False

    def _run(self, hook: Hook, step: Step) -> None:
        before = self.activity.enter(hook.section)
        try:
            hook.run(step)
        except Interrupted:  # what comes after it is for after the next start, and what there is must be saved now
            if step.is_last:  # what was measured is of an earlier model, and is not to stay with the last one
                self.voice.forget((*MEASURED, Compress.measured))
            step.is_last, step.verdict = False, replace(step.verdict, stop=True)
        self.activity.enter(before)

    def _settle(self, finished: bool, retention: Retention | None) -> None:
        """Waits for what rank 0 still does after the last save: reading it back and, if asked to, registering it."""
        wait: Callable[[float], bool] | None = retention.wait if retention is not None else None
        registering = self.registering if finished else None
        if registering is not None:
            wait = registering.wait_after(wait, self.activity.step)
        settle(self.context, self.engine.exchange, self.voice, wait, finished)
        if registering is not None:
            registered = registering.result()
            self.voice.say(f"registered as {registered.name} {registered.version}, {registered.root[:23]}")
            self.voice.report(registered=registered)

    def _queued_steps(
        self, save_state: SaveState, guard: Guard, plateau: PlateauFollower | None, profiler: Profiler | None
    ) -> Iterator[Step]:
        """Each step right after it was queued, with what the ranks agreed to do after it."""
        first, steps = self.start.step, self.context.steps
        peak: float = self.context.run.optimizer.value.learning_rate
        wants_profile = profiler.is_asked_for if profiler is not None else lambda: False
        wishes = Wishes(lambda: self.stop.wanted, lambda: self.stop.leave_wanted, wants_profile)
        agreement = Agreement(self.engine.exchange, wishes, save_state, time.monotonic, first)
        read: Callable[[int], Batch] = functools.partial(read_batch, self.context, self.dataset, self.plan)
        read = stalling(read, self.chaos.disturbance) if self.chaos else read
        with Prefetch(read, first, steps) as batches:
            for done in range(first + 1, steps + 1):
                reached = plateau.fraction if plateau is not None else 1.0
                learning_rate = learning_rate_at(done - 1, steps, peak, self.context.run.schedule, reached)
                self.activity.enter(Section.DATA)
                batch = batches.take()
                self.activity.enter(Section.HOST)
                outcome = Outcome(self.engine.train_step(batch, learning_rate))
                self.activity.step = done
                guard.note(done, outcome)
                if done == first + 1:
                    guard.settle(done)  # the first step compiles; only its end says that training has begun
                    self.meter.read(done)
                    self.voice.report(phase=Phase.TRAINING, step=done)
                elif agreement.is_due(done):
                    guard.settle(done - 1)  # the host never runs ahead by more than one agreement: times stay true
                    self.voice.report(step=done - 1)
                is_last = done == steps
                verdict = CARRY_ON if is_last else agreement.after(done)
                yield Step(done, is_last, learning_rate, outcome, verdict)

    def _guard(self) -> Guard:
        run, skips = self.context.run, self.context.membership.skips

        return Guard(run.numerical, lambda done: batch_index(done - 1, skips), self._tell, self.start.loss)

    def _tell(self, note: str) -> None:
        """All ranks have noticed the same; one says so."""
        if self.context.membership.rank == 0:
            self.voice.report(note=note)
            self.voice.say(note)

    def _plateau(self) -> PlateauFollower | None:
        plateau, saved = self.context.run.schedule.plateau, self.start.callbacks.get(PlateauFollower.name, {})
        return (
            None if plateau is None else PlateauFollower(plateau, saved, self.voice.say, self.context.run.judged_from)
        )

    def _profiler(self) -> Profiler | None:
        plan = self.context.run.callbacks.profiler
        if plan is None:
            return None
        return Profiler(plan, self.context, self.engine.trace, self.store, self.voice, self.start.step)

    def _early_stopping(self) -> EarlyStopping | None:
        plan, saved = self.context.run.callbacks.early_stopping, self.start.callbacks.get(EarlyStopping.name, {})
        return None if plan is None else EarlyStopping(plan, saved, self.voice, self.context.run.judged_from)

    def _compress(self, evaluate: Evaluate) -> Compress | None:
        plan = self.context.run.compression
        if plan is None:
            return None
        saved = self.start.callbacks.get(Compress.name, {})
        return Compress(plan, self.context, self.engine, evaluate, self.voice, saved, self.reference)

    def _save_state(self, retention: Retention | None, guard: Guard, carried: Sequence[Carried]) -> SaveState:
        run = self.context.run
        return make_save_state(
            self.context,
            self.engine,
            self.store,
            self.voice,
            self.meter,
            self.start,
            retention,
            guard.newest_loss,
            run.framework.kind,
            signature_of(run, self.context.data),
            carried,
            run.judged_from,
        )

    def _say_stopped(self, done: int) -> None:
        self.voice.say(f"stopped at step {done}, as asked")

    def _introduce(self) -> None:
        training, world = self.context.run.training, self.context.membership.world
        self.voice.say(
            f"{self.context.run.job}: steps {self.start.step} to {self.context.steps}, "
            f"{training.global_batch_size} of {len(self.dataset.train):,} {self.dataset.spec} a step, "
            f"{world} {'worker' if world == 1 else 'workers'}"
        )
        unreached = unreached_peak(self.context.steps, self.context.run.schedule)
        if unreached is not None and self.start.step == 0:
            self._tell(unreached)
