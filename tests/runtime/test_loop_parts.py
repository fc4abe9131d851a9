"""The parts of the loop that need no process."""

import errno
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.agreement import CARRY_ON, Agreement, StopVote, Verdict, Wishes, steps_between, wait_for_rank_0
from capstan_runtime.checkpoint.saver import Outcome as Saved
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.numerical import Numerical
from capstan_runtime.contract.schedules import Schedule
from capstan_runtime.contract.state import Checkpoint, Progress
from capstan_runtime.engine import Batch, EvaluationSums
from capstan_runtime.errors import (
    ConfigError,
    GpuOutOfMemory,
    PeerLost,
    StoreUnavailable,
    exit_code_of,
    failure_class_of,
)
from capstan_runtime.evaluation import add_up
from capstan_runtime.hooks import Log, Outcome, Step
from capstan_runtime.metrics.lines import progress_line
from capstan_runtime.metrics.meter import Meter
from capstan_runtime.numerical import Guard
from capstan_runtime.parallel.ahead import begun_ahead
from capstan_runtime.prefetch import Prefetch
from capstan_runtime.report import Reporter
from capstan_runtime.saving import SaveClock, SaveState
from capstan_runtime.schedules import learning_rate_at, unreached_peak
from capstan_runtime.voice import Voice


def cosine(warmup_steps: int, final_fraction: float = 0.0) -> Schedule:
    return Schedule.parse({"cosine": {"warmupSteps": warmup_steps, "finalFraction": final_fraction}})


def test_warm_up_is_a_line_that_reaches_the_peak_at_the_first_step_after_it() -> None:
    rates = [learning_rate_at(step, 10, 0.5, Schedule.parse({"constant": {"warmupSteps": 4}})) for step in range(7)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])


def test_cosine_falls_from_the_peak_to_the_final_fraction() -> None:
    rates = [learning_rate_at(step, 12, 2.0, cosine(2, 0.1)) for step in range(13)]
    assert rates[2] == 2.0
    assert rates[7] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert rates[12] == pytest.approx(0.2)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert min(rates[:12]) > 0.2


def test_a_run_of_warm_up_alone_has_a_learning_rate_at_every_step() -> None:
    assert [learning_rate_at(step, 2, 1.0, cosine(5)) for step in range(2)] == pytest.approx([1 / 6, 2 / 6])
    assert unreached_peak(5, cosine(5)) is None
    assert unreached_peak(2, cosine(5)) == (
        "spec.schedule.cosine.warmupSteps: 5 of 2 steps: the learning rate comes to 33 % of its peak and no further; "
        "choose fewer"
    )


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("step_seconds", "steps"), [(0.0, 50), (0.001, 50), (0.02, 50), (0.1, 10), (1.0, 1), (30.0, 1)]
)
def test_ranks_talk_about_once_a_second_at_least_every_fifty_steps(step_seconds: float, steps: int) -> None:
    assert steps_between(step_seconds) == steps


@dataclass
class NoSaves:
    """What the agreement asks of saving, when there is none; save by `time` or step on demand."""

    time: bool = False
    every: int | None = None
    is_busy: bool = False

    def is_due_by_step(self, done: int) -> bool:
        return self.every is not None and done % self.every == 0

    def is_due_by_time(self) -> bool:
        return self.time

    def report(self) -> str:
        return ""

    def hear(self, reports: list[str]) -> bool:
        return not self.is_busy


Exchange = Callable[[bytes], list[bytes]]
Ask = Callable[[int], bool]
"""After each step: whether to stop."""


def of_agreement(exchange: Exchange, wants_stop: Callable[[], bool], clock: Clock) -> Ask:
    agreement = Agreement(exchange, Wishes(wants_stop), NoSaves(), clock, 0)
    return lambda done: agreement.after(done).stop


def of_vote(exchange: Exchange, wants_stop: Callable[[], bool], clock: Clock) -> Ask:
    return StopVote(exchange, wants_stop, clock).after


def run_together(
    make: Callable[[Exchange, Callable[[], bool], Clock], Ask], step_seconds: list[float], stop_at: int, steps: int
) -> list[tuple[list[int], int]]:
    """Two or more ranks of different speed, stepping together; rank 1 is asked to stop at step `stop_at`.

    For each rank: the steps after which it exchanged, and the step at which it stopped.
    """
    world = len(step_seconds)
    barrier = threading.Barrier(world, timeout=10)
    slots: list[bytes] = [b""] * world
    results: list[tuple[list[int], int]] = [([], 0)] * world

    def rank_main(rank: int) -> None:
        clock, exchanged, now = Clock(), [], [0]

        def exchange(payload: bytes) -> list[bytes]:
            exchanged.append(now[0])
            slots[rank] = payload
            barrier.wait()
            answers = list(slots)
            barrier.wait()
            return answers

        is_to_stop = make(exchange, lambda: rank == 1 and now[0] >= stop_at, clock)
        for done in range(1, steps + 1):
            clock.now += step_seconds[rank]
            now[0] = done
            if is_to_stop(done):
                results[rank] = (exchanged, done)
                return
        results[rank] = (exchanged, 0)

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


@pytest.mark.parametrize("make", [of_agreement, of_vote], ids=["between steps", "amid an evaluation"])
def test_all_ranks_exchange_after_the_same_steps_and_stop_at_the_same_one(make: Any) -> None:
    results = run_together(make, [0.05, 0.1, 0.08], stop_at=27, steps=200)
    assert results == [([1, 11, 21, 31], 31)] * 3, "the slowest rank, 0.1 s a step, sets the pace of ten steps"


def test_a_save_that_ends_amid_an_evaluation_is_heard_of_there() -> None:
    heard: list[list[str]] = []
    saves = SimpleNamespace(report=lambda: "saved by me", hear=heard.append)
    vote = StopVote(lambda payload: [payload, payload], lambda: False, Clock(), saves)  # type: ignore[arg-type]
    assert not vote.after(1)
    assert heard == [["saved by me", "saved by me"]]


def test_only_rank_0_s_clock_decides_when_to_save() -> None:
    answers: list[list[bytes]] = []

    def exchange(payload: bytes) -> list[bytes]:
        answers.append([payload])
        return [payload]

    nobody = Wishes(stop=lambda: False)
    agreement = Agreement(exchange, nobody, NoSaves(time=True), Clock(), 0)
    assert agreement.after(1) == Verdict(stop=False, save=True)
    assert agreement.after(2) == CARRY_ON, "between two exchanges nothing is decided"
    own = answers[0][0]
    silent = Agreement(lambda payload: [payload, own], nobody, NoSaves(), Clock(), 0)
    assert silent.after(1) == CARRY_ON, "what rank 1 wishes does not count"


def test_a_wish_to_leave_waits_for_a_save() -> None:
    saves = NoSaves()
    agreement = Agreement(lambda payload: [payload], Wishes(lambda: False, leave=lambda: True), saves, Clock(), 0)
    assert agreement.after(1) == CARRY_ON
    saves.time = True
    assert agreement.after(51) == Verdict(save=True, leave=True)


@given(
    every=st.integers(1, 12),
    lasts=st.lists(st.integers(0, 40), min_size=120, max_size=120),
    steps=st.integers(1, 120),
    stop_at=st.integers(1, 150),
)
def test_every_save_that_is_due_is_made_late_rather_than_never(
    every: int, lasts: list[int], steps: int, stop_at: int
) -> None:
    """Saves on their way for `lasts` steps each, in a run of steps so quick that many are due meanwhile."""
    saves, saved, free_at, left = NoSaves(every=every), [], 0, iter(lasts)
    clock = Clock()
    agreement = Agreement(lambda payload: [payload], Wishes(lambda: done >= stop_at), saves, clock, 0)
    for done in range(1, steps + 1):
        clock.now += 0.05
        saves.is_busy = done < free_at
        verdict = CARRY_ON if done == steps else agreement.after(done)
        if verdict.save or verdict.stop or done == steps:  # as SaveState.is_due
            saved.append(done)
            free_at = done + next(left)
        if verdict.stop:
            break
    for due in range(every, saved[-1] + 1, every):
        made = min(step for step in saved if step >= due)
        earlier = max((step for step in saved if step < due), default=0)
        is_free = due if earlier == 0 else max(due, earlier + lasts[saved.index(earlier)])
        assert made <= is_free, "as soon as the one before is through"
    assert saved[-1] == done, "nothing that was done is left out"


@pytest.mark.parametrize(("seconds", "patience_seconds", "rounds"), [(0, 60, 1), (7.5, 60, 8), (900, 60, 61)])
def test_however_long_rank_0_takes_nobody_waits_long_for_its_message(
    seconds: float, patience_seconds: float, rounds: int
) -> None:
    clock, answers, spoke_at = Clock(), [], [100.0]

    def wait(at_most: float) -> bool:
        clock.now = min(clock.now + at_most, max(clock.now, 100.0 + seconds))
        return clock.now >= 100.0 + seconds

    def exchange(payload: bytes) -> list[bytes]:
        answers.append([payload, b"?"])
        spoke_at.append(clock.now)
        return answers[-1]

    wait_for_rank_0(exchange, wait, patience_seconds, clock)
    assert len(answers) == rounds
    assert clock.now == 100.0 + min(seconds, patience_seconds)
    assert max(later - earlier for earlier, later in pairwise(spoke_at)) <= 1.0
    heard = iter(answers)
    wait_for_rank_0(lambda payload: next(heard), None, patience_seconds, clock)
    assert next(heard, None) is None, "the others return after the same message"


def test_the_meter_leaves_pauses_out() -> None:
    clock = Clock()
    meter = Meter(clock, step=10)
    clock.now += 4.0
    with meter.paused():
        clock.now += 100.0
    assert meter.read(14) == 1.0
    assert meter.read(14) is None


def test_a_progress_line_is_pleasant() -> None:
    metrics = {"loss": 0.18321, "accuracy": 0.9611, "samples_per_second": 3412.4, "learning_rate": 9.1e-4}
    assert progress_line(120, 560, metrics) == "step 120/560  loss 0.1832  accuracy 0.961  3,412 samples/s  lr 9.1e-04"
    assert progress_line(5, 560, {"loss": 2.0}) == "step   5/560  loss 2.0000"
    assert progress_line(6, 560, {"loss": 2.0, "mfu": 0.4567}) == "step   6/560  loss 2.0000  MFU 45.7%"
    assert progress_line(560, 560, {"validation_loss": 0.1, "accuracy": 1.0}) == (
        "step 560/560  validation loss 0.1000  accuracy 1.000"
    )


def test_the_next_batch_is_read_while_this_one_is_used() -> None:
    read: list[int] = []
    has_read = threading.Event()

    def read_batch(step: int) -> Batch:
        read.append(step)
        if step == 4:
            has_read.set()
        return Batch(np.full((1, 1), step), np.zeros((1, 1)), np.ones((1, 1)))

    with Prefetch(read_batch, 3, 6) as batches:
        assert batches.take().inputs.item() == 3
        assert has_read.wait(10), "step 4 is read before it is asked for"
        assert [batches.take().inputs.item() for _ in range(2)] == [4, 5]
    assert read == [3, 4, 5]


def test_what_reading_raises_reaches_the_loop() -> None:
    def read_batch(step: int) -> Batch:
        raise OSError(errno.EIO, f"no batch {step}")

    with Prefetch(read_batch, 0, 2) as batches, pytest.raises(OSError, match="no batch 0"):
        batches.take()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_so_much_and_no_more_is_begun_ahead(count: int) -> None:
    begun: list[int] = []

    def begin(item: int) -> int:
        begun.append(item)
        return item * 10

    seen = [(value, len(begun)) for value in begun_ahead(range(count), begin, depth=2)]
    assert seen == [(item * 10, min(count, item + 3)) for item in range(count)]


def test_sums_are_the_same_on_every_rank_and_exact() -> None:
    payloads: list[bytes] = []
    shares = [EvaluationSums(0.1, 3, 4), EvaluationSums(0.2, 1, 4), EvaluationSums(0.3, 0, 1)]
    for share in shares:
        add_up(lambda payload: payloads.append(payload) or [payload], share)  # type: ignore[func-returns-value]
    total = add_up(lambda _: payloads, shares[0])
    assert total == EvaluationSums(math.fsum([0.1, 0.2, 0.3]), 4, 9)


@pytest.mark.parametrize(
    ("error", "code", "failure"),
    [
        (ConfigError("x"), ExitCode.CONFIG, FailureClass.CONFIG),
        (PeerLost("x"), ExitCode.RETRYABLE, FailureClass.RETRYABLE),
        (GpuOutOfMemory("x"), ExitCode.GPU_OUT_OF_MEMORY, FailureClass.GPU_OUT_OF_MEMORY),
        (MemoryError(), ExitCode.GPU_OUT_OF_MEMORY, FailureClass.HOST_OUT_OF_MEMORY),
        (ValueError("x"), ExitCode.APPLICATION, FailureClass.APPLICATION),
    ],
)
def test_an_exception_has_an_exit_code_and_a_class(error: Exception, code: ExitCode, failure: FailureClass) -> None:
    assert (exit_code_of(error), failure_class_of(error)) == (code, failure)


@pytest.mark.parametrize(("say", "written"), [("say", (1, b"step 1\n")), ("warn", (2, b"warning: step 1\n"))])
def test_a_line_is_one_write_though_the_interpreter_has_no_buffer(say: str, written: tuple[int, bytes]) -> None:
    """As the supervisor starts trainers. On a socket that keeps messages apart, each write is one."""
    command = (
        "from capstan_runtime.report import Reporter; from capstan_runtime.voice import Voice; "
        f"Voice(Reporter(None), 0, 1).{say}('step 1')"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        streams = {"stdout": theirs} if written[0] == 1 else {"stderr": theirs}
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        subprocess.run([sys.executable, "-c", command], env=environ, check=True, timeout=60, **streams)  # type: ignore[call-overload]
        ours.settimeout(10)
        assert ours.recv(100) == written[1]


@dataclass
class Result:
    """A step's result that knows how often the host waited for it."""

    loss: float
    fetches: int = 0
    gradient_norm: float = 1.0

    def fetch(self) -> Mapping[str, float]:
        self.fetches += 1
        return {"loss": self.loss, "gradient_norm": self.gradient_norm}


def step_of(done: int, result: Result, *, is_last: bool = False, verdict: Verdict = CARRY_ON) -> Step:
    return Step(done, is_last, 0.1, Outcome(result), verdict)


def context_of(**training: object) -> Any:
    """The few facts that the hooks look at."""
    values = {"log_every_steps": 2, "global_batch_size": 8, "seed": 0, "virtual_ranks": 2, **training}
    run = SimpleNamespace(
        training=SimpleNamespace(**values), checkpoint=SimpleNamespace(interval=SimpleNamespace(steps=2, seconds=None))
    )
    data = SimpleNamespace(kind="vector", input_shape=(6,), fingerprint="blake3:00")
    return SimpleNamespace(run=run, data=data, data_fingerprint=data.fingerprint, membership=SimpleNamespace(skips=()))


def test_logging_waits_for_a_step_only_after_the_next_was_queued() -> None:
    log = Log(Voice(Reporter(None), 1, 6), Meter(Clock(), 0), context_of(), busy_seconds=lambda: None)
    results = [Result(1.0) for _ in range(6)]
    fetched = []
    for done, result in enumerate(results, start=1):
        log.after(step_of(done, result, is_last=done == 6), settles=done == 6)
        fetched.append([each.fetches for each in results])
    assert fetched == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 0, 1, 0, 1],
    ]


class FailingSaver:
    """Fails to save at the steps in `failing`. Never busy."""

    is_open = False

    def __init__(self, failing: set[int]) -> None:
        self.failing = failing
        self.saved: list[int] = []
        self._outcome: Saved | None = None

    def begin(self, trainer: Any, tensors: object, metrics: object) -> None:
        step = trainer.step
        if step in self.failing:
            self._outcome = Saved(step, None, f"step {step}: No space left on device", 0.0, 0)
            return
        self.saved.append(step)
        self._outcome = Saved(step, Checkpoint(step=step, root="blake3:" + "0" * 64, at=0.0), "", 0.0, 0)

    def hear(self, reports: list[str]) -> Saved | None:
        outcome, self._outcome = self._outcome, None
        return outcome

    def settle(self) -> Saved | None:
        return self.hear([])


def save_state(saver: FailingSaver) -> SaveState:
    clock = Clock()
    voice = Voice(Reporter(None), 1, 100)
    engine: Any = SimpleNamespace(export_state=lambda: iter(()))
    guard = Guard(Numerical(), lambda done: done - 1, lambda note: None, loss=1.0)
    saving: Any = saver
    return SaveState(
        voice, Meter(clock, 0), context_of(), engine, saving, SaveClock(None, clock), None, guard.newest_loss
    )


def test_training_goes_on_without_two_saves_but_not_without_three_in_a_row() -> None:
    saver = FailingSaver({2, 4, 8, 10, 12})
    hook = save_state(saver)
    for done in (2, 4, 6, 8, 10):
        hook.run(step_of(done, Result(1.0)))
        hook.hear([])
    assert saver.saved == [6]
    hook.run(step_of(12, Result(1.0)))
    with pytest.raises(StoreUnavailable, match=r"^checkpoint not saved, 3 times in a row: step 12: No space left"):
        hook.hear([])


def test_the_last_step_must_be_saved_and_a_stop_need_not() -> None:
    hook = save_state(FailingSaver({7, 8}))
    hook.run(step_of(7, Result(1.0), verdict=Verdict(stop=True)))
    with pytest.raises(StoreUnavailable, match="step 8: No space left"):
        hook.run(step_of(8, Result(1.0), is_last=True))


def test_a_run_leaves_only_after_a_save_that_was_committed() -> None:
    hook = save_state(FailingSaver({2}))
    left = []
    for done in (2, 4):
        hook.run(step_of(done, Result(1.0), verdict=Verdict(save=True, leave=True)))
        left.append(hook.has_left)
    assert left == [False, True]


def test_a_metric_that_is_not_finite_is_absent_and_spoils_no_report() -> None:
    reading, writing = os.pipe()
    voice = Voice(Reporter(writing), 0, 6)
    voice.report_metrics(1, {"loss": 0.5, "validation_loss": 2.0})
    voice.report_metrics(2, {"loss": 0.4, "validation_loss": math.inf})
    os.close(writing)
    with os.fdopen(reading) as lines:
        found = [Progress.model_validate_json(line) for line in lines]
    assert found == [
        Progress(step=1, metrics={"loss": 0.5, "validation_loss": 2.0}),
        Progress(step=2, metrics={"loss": 0.4}),
    ]


def test_saves_are_due_at_the_end_and_when_agreed() -> None:
    hook = save_state(FailingSaver(set()))
    due = [
        hook.is_due(step_of(4, Result(1.0))),
        hook.is_due(step_of(5, Result(1.0), is_last=True)),
        hook.is_due(step_of(5, Result(1.0), verdict=Verdict(stop=True))),
        hook.is_due(step_of(5, Result(1.0), verdict=Verdict(save=True))),
    ]
    assert due == [False, True, True, True]
    assert [hook.is_due_by_step(done) for done in (3, 4)] == [False, True]


def test_a_save_by_time_is_due_when_the_clock_says_so() -> None:
    clock = Clock()
    save_clock = SaveClock(30, clock)
    due = []
    for seconds in (29, 1, 1):
        clock.now += seconds
        due.append(save_clock.is_due())
    save_clock.reset()
    assert (due, save_clock.is_due()) == ([False, True, True], False)


def test_a_save_that_is_owed_is_due_at_once_and_only_once() -> None:
    save_clock = SaveClock(None, Clock(), is_owed=True)
    due = [save_clock.is_due(), save_clock.is_due()]
    save_clock.reset()
    assert (due, save_clock.is_due()) == ([True, True], False)
