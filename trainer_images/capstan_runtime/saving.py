"""When a checkpoint is saved, and what its outcome means for the run."""

import time
from collections.abc import Callable, Sequence

from capstan_runtime.checkpoint.retention import Retention, Rules
from capstan_runtime.checkpoint.saver import Outcome, Saver
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import JobContext
from capstan_runtime.contract.state import Phase, Quarantine, Section
from capstan_runtime.engine import Stateful
from capstan_runtime.errors import StoreUnavailable
from capstan_runtime.hooks import Step
from capstan_runtime.metrics.meter import Clock, Meter
from capstan_runtime.notices import read_keep_list
from capstan_runtime.restore import Start
from capstan_runtime.trainer_state import Carried, trainer_state
from capstan_runtime.voice import Voice

_MOST_FAILED_SAVES = 3


class SaveClock:
    """When the last save was, and whether the next one is due by time."""

    def __init__(self, every_seconds: int | None, clock: Clock, is_owed: bool = False) -> None:
        """`is_owed`: the first one is due at once, because what the run went on from is not in the store."""
        self._is_owed = is_owed
        self._every_seconds = every_seconds
        self._clock = clock
        self._saved_at = clock()

    def is_due(self) -> bool:
        is_time = self._every_seconds is not None and self._clock() - self._saved_at >= self._every_seconds
        return self._is_owed or is_time

    def reset(self) -> None:
        self._saved_at = self._clock()
        self._is_owed = False


class SaveState:
    """Saves when the ranks agreed to, at the last step, and before stopping: a hook of the loop, and what the agreement
    asks about saves.

    A save in the middle of a run is committed behind the loop's back, and its outcome comes with a later agreement. The
    last one, and the one before a stop, are waited for.
    """

    section = Section.SAVE

    def __init__(
        self,
        voice: Voice,
        meter: Meter,
        context: JobContext,
        state: Stateful,
        saver: Saver,
        save_clock: SaveClock,
        retention: Retention | None,
        newest_loss: Callable[[], float | None],
        carried: Sequence[Carried] = (),
        judged_from: int = 0,
    ) -> None:
        """`retention` is rank 0's; None elsewhere. `newest_loss` knows every step that `run` is given; None: nobody
        has told any. What is `carried` is saved as it is when a save begins. Of metrics, a save from `judged_from` on
        has none of steps before that: they are of another model."""
        self._context = context
        self._voice = voice
        self._meter = meter
        self._state = state
        self._saver = saver
        self._save_clock = save_clock
        self._retention = retention
        self._newest_loss = newest_loss
        self._carried = carried
        self._judged_from = judged_from
        self._every = context.run.checkpoint.interval.steps
        self._failures = 0
        self._blocked_seconds = 0.0
        self.has_left = False
        """Whether a save was committed after which the world was to change: nothing more is to be trained or saved."""

    def is_due_by_step(self, done: int) -> bool:
        return self._every is not None and done % self._every == 0

    def is_due_by_time(self) -> bool:
        return self._save_clock.is_due()

    def report(self) -> str:
        return self._saver.report() if self._saver.is_open else ""

    def hear(self, reports: list[str]) -> bool:
        """Raises StoreUnavailable when a newer attempt has taken over, or three saves in a row have failed."""
        outcome = self._saver.hear(reports)
        if outcome is not None:
            self._tell(outcome)
            self._require_few_failures(outcome)
        return not self._saver.is_open

    def is_due(self, step: Step) -> bool:
        return step.verdict.save or step.verdict.stop or step.is_last

    def run(self, step: Step) -> None:
        """Raises StoreUnavailable when the last step, or three saves in a row, could not be saved."""
        loss = self._newest_loss()
        self._voice.report(phase=_phase_of(step), step=step.done)
        with self._meter.paused():
            if step.is_last or step.verdict.stop or step.verdict.leave:
                self._save_before_leaving(step, loss)
            else:
                self._begin(step.done, loss)
        if not (step.is_last or step.verdict.stop or self.has_left):
            self._voice.report(phase=Phase.TRAINING)

    def save_again(self, done: int, is_stopping: bool = False) -> None:
        """Saves the last step once more, as it was restored: it was in memory, and perhaps nowhere else, or it is known
        better now.

        Raises StoreUnavailable when it could not be saved, unless the run is to stop anyway.
        """
        phase = Phase.STOPPING if is_stopping else Phase.SAVING
        self._voice.report(phase=phase, step=done)
        outcome = self._save_and_wait(done, self._newest_loss(), phase)
        if outcome.checkpoint is None and not is_stopping:
            self._fail(outcome)

    def _begin(self, done: int, loss: float | None) -> None:
        """Blocks the loop until the state is staged."""
        started = time.perf_counter()
        metrics = self._voice.metrics_since(self._judged_from if done >= self._judged_from else 0)
        metrics |= {} if loss is None else {"loss": loss}
        state = trainer_state(self._context, done, loss, self._carried)
        self._saver.begin(state, self._state.export_state(), metrics)
        self._blocked_seconds = time.perf_counter() - started
        self._save_clock.reset()

    def _save_and_wait(self, done: int, loss: float | None, phase: Phase) -> Outcome:
        before = self._saver.settle()
        if before is not None:
            self._tell(before)
            self._voice.report(phase=phase)  # that wait is over, and another begins
        self._begin(done, loss)
        outcome = self._saver.settle()
        assert outcome is not None
        self._tell(outcome)
        return outcome

    def _save_before_leaving(self, step: Step, loss: float | None) -> None:
        outcome = self._save_and_wait(step.done, loss, _phase_of(step))
        self.has_left = step.verdict.leave and not step.is_last and outcome.checkpoint is not None
        if step.is_last and outcome.checkpoint is None:
            self._fail(outcome)
        if not step.verdict.stop:
            self._require_few_failures(outcome)

    def _tell(self, outcome: Outcome) -> None:
        """To people, supervisor and retention."""
        measured = {
            "save_blocked_seconds": self._blocked_seconds,
            "save_seconds": outcome.seconds,
            "save_bytes": float(outcome.size),
        }
        self._voice.report_metrics(None, measured)
        if outcome.checkpoint is None:
            self._failures += 1
            self._voice.say(f"checkpoint not saved: {outcome.problem}")
            if self._voice.rank == 0:  # all ranks have heard the same
                self._voice.report(note=f"checkpoint not saved: {outcome.problem}")
            return
        self._failures = 0
        self._voice.report_commit(outcome.step, outcome.checkpoint.root)
        self._voice.say(f"checkpoint at step {outcome.step} committed, {outcome.checkpoint.root[:23]}")
        if self._retention is not None:
            self._retention.after_commit(outcome.checkpoint)

    def _require_few_failures(self, outcome: Outcome) -> None:
        """A missed save is no reason to stop training, unless they keep failing."""
        if outcome.checkpoint is None and self._failures >= _MOST_FAILED_SAVES:
            self._fail(outcome)

    def _fail(self, outcome: Outcome) -> None:
        raise StoreUnavailable(f"checkpoint not saved, {self._failures} times in a row: {outcome.problem}")


def begin_retention(
    context: JobContext, store: Store, start: Start, voice: Voice, judged_from: int = 0
) -> Retention | None:
    """Rank 0's, which alone removes old checkpoints; None elsewhere. `judged_from` is the run's."""
    run, membership = context.run, context.membership
    if membership.rank != 0:
        return None

    def tell_quarantine(quarantined: Quarantine) -> None:
        voice.warn(f"checkpoint of step {quarantined.step} is quarantined: {quarantined.reason}")
        voice.report(quarantined=quarantined)

    verify = run.checkpoint.verify
    retention = Retention(
        Rules(
            store,
            run.uid,
            membership.fence,
            run.checkpoint.retention,
            verify.level,
            verify.public_key,
            membership.floor_step,
            lambda: read_keep_list(context.environ),
            judged_from,
        ),
        on_checkpoint=lambda checkpoint: voice.report(checkpoint=checkpoint),
        on_quarantine=tell_quarantine,
        on_trouble=voice.warn,
    )
    if start.root is not None and start.is_proven:
        retention.note_verified(start.root)
    retention.begin()
    return retention


def _phase_of(step: Step) -> Phase:
    return Phase.STOPPING if step.verdict.stop else Phase.SAVING
