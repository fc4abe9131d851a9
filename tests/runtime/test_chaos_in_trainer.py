"""Faults that a rank suffers on purpose: reported first, done exactly when they should be, and nowhere when there are
none."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from capstan_runtime.activity import Activity
from capstan_runtime.agreement import CARRY_ON
from capstan_runtime.beat import Beat
from capstan_runtime.chaos import Chaos, Disturbance, DisturbedEngine, flip_a_bit, newest_shard, stalling
from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.contract.chaos import Fault, Injected, Injection
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.state import Section
from capstan_runtime.engine import Batch, Hardware
from capstan_runtime.errors import CorruptCheckpoint, GpuOutOfMemory
from capstan_runtime.hooks import Outcome, Step
from tests.support.training_runs import Ended, Run, losses, run_trainers

UID = "3f1c-uid"


def injected(ended: Ended) -> list[tuple[str, Fault, int, int]]:
    return [(it.name, it.fault, it.rank, it.step) for it in (each.injected for each in ended.progress) if it]


def suffer(fault: Fault, step: int, rank: int = 0) -> Callable[[int], dict[str, Any]]:
    injection = Injection(name="chosen", fault=fault, step=step)
    return lambda each: {"chaos": [injection]} if each == rank else {}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.KILL, -signal.SIGKILL),
        (Fault.SEGFAULT, -signal.SIGSEGV),
        (Fault.LOSE_NODE, 128 + signal.SIGKILL),
        (Fault.GPU_OUT_OF_MEMORY, ExitCode.GPU_OUT_OF_MEMORY),
    ],
)
def test_a_rank_dies_at_its_step_and_says_so_before(tmp_path: Path, fault: Fault, code: int) -> None:
    run, log = Run(tmp_path), tmp_path / "steps.log"
    ended = run_trainers(run, world=2, more=suffer(fault, 7, rank=1), STEP_LOG=str(log))
    assert [each.code for each in ended] == [ExitCode.RETRYABLE, code], ended[1].output
    assert [injected(each) for each in ended] == [[], [("chosen", fault, 1, 7)]]
    assert losses(log)[-1][0] == 7, "no step later, no step earlier"


def test_running_out_of_memory_says_where_and_how_much_was_asked_at_once(tmp_path: Path) -> None:
    (ended,) = run_trainers(Run(tmp_path), world=1, more=suffer(Fault.GPU_OUT_OF_MEMORY, 7))
    (failure,) = [each for each in ended.progress if each.failure]
    assert failure.failure is FailureClass.GPU_OUT_OF_MEMORY
    assert failure.message == ("step 8, 2 micro-steps of 6 samples: the numpy engine was told to run out of memory")


def test_with_a_single_sample_left_there_is_nothing_to_halve(tmp_path: Path) -> None:
    more = suffer(Fault.GPU_OUT_OF_MEMORY, 7)
    (ended,) = run_trainers(Run(tmp_path), world=1, more=lambda rank: {**more(rank), "micro_splits": 4})
    (failure,) = [each for each in ended.progress if each.failure]
    assert failure.failure is FailureClass.CONFIG
    assert (failure.message or "").startswith(
        "spec.model: step 8: the device runs out of memory with a single sample in a micro-step"
    )


def test_a_hanging_rank_is_stopped_by_the_kernel_with_its_last_step_on_the_page(tmp_path: Path) -> None:
    seen: list[str] = []

    def watch() -> None:
        give_up_at = time.monotonic() + 30
        while time.monotonic() < give_up_at and not seen:
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                    if state == "T" and str(tmp_path) in (process / "environ").read_text():
                        os.kill(int(process.name), signal.SIGKILL)
                        seen.append(state)
                except (FileNotFoundError, ProcessLookupError):
                    continue
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    (ended,) = run_trainers(Run(tmp_path), world=1, more=suffer(Fault.HANG, 7))
    watcher.join()
    assert (seen, ended.code, injected(ended)) == (["T"], -signal.SIGKILL, [("chosen", Fault.HANG, 0, 7)])


def test_the_newest_checkpoint_is_damaged_found_out_and_the_one_before_taken(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (ended,) = run_trainers(run, world=1, more=suffer(Fault.CORRUPT_CHECKPOINT, 23), AWAIT_SAVES="1")
    assert (ended.code, injected(ended)) == (-signal.SIGKILL, [("chosen", Fault.CORRUPT_CHECKPOINT, 0, 23)])
    (ended,) = run_trainers(run, world=1, fence=2, floor_step=20)
    assert ended.code == 0, ended.output
    assert [each.quarantined.step for each in ended.progress if each.quarantined] == [20]
    assert [each.resumed_from.step for each in ended.progress if each.resumed_from] == [10]


def test_without_a_checkpoint_its_damage_waits_for_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (ended,) = run_trainers(run, world=1, more=suffer(Fault.CORRUPT_CHECKPOINT, 3), AWAIT_SAVES="1")
    assert injected(ended) == [("chosen", Fault.CORRUPT_CHECKPOINT, 0, 11)]
    store = FolderStore(run.store)
    (candidate,) = list_candidates(store, UID).candidates
    with pytest.raises(CorruptCheckpoint):
        open_checkpoint(store, candidate.name).verify()


def test_one_bit_of_the_newest_commit_is_flipped_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=20)
    run_trainers(run, world=1, AWAIT_SAVES="1")
    store = FolderStore(run.store)
    key = newest_shard(store, UID)
    assert key is not None
    assert key.startswith("000000000020.1.")
    before = store.get(key)
    flip_a_bit(store, key)
    after = store.get(key)
    difference = [(old ^ new).bit_count() for old, new in zip(before, after, strict=True)]
    assert sum(difference) == 1
    assert newest_shard(store, "another-uid") is None


class Clock:
    """Time that passes by waiting."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class CountingEngine:
    """Does nothing, for 0.1 s a step."""

    rank, world, parameters, devices, hardware = 0, 1, 0, 1, Hardware(1)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.poisoned = 0

    def train_step(self, batch: Batch, learning_rate: float) -> Any:
        self._clock.now += 0.1
        return SimpleNamespace(fetch=lambda: {"loss": 1.0, "gradient_norm": 1.0})

    def exchange(self, payload: bytes) -> list[bytes]:
        return [payload]

    def poison_next_step(self) -> None:
        self.poisoned += 1

    def exhaust_memory(self) -> None:
        raise GpuOutOfMemory("as asked")


BATCH = Batch(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1)))


def disturbed() -> tuple[Clock, CountingEngine, Disturbance, DisturbedEngine]:
    clock, disturbance = Clock(), Disturbance()
    inner: Any = CountingEngine(clock)
    return clock, inner, disturbance, DisturbedEngine(inner, Activity(Beat()), disturbance, clock, clock.wait)


def test_a_slow_rank_takes_three_times_as_long_for_a_while() -> None:
    clock, _, disturbance, engine = disturbed()
    for _ in range(3):
        engine.train_step(BATCH, 0.1)
    assert clock.waits == []
    disturbance.slow_until = clock.now + 0.5
    for _ in range(4):
        engine.train_step(BATCH, 0.1)
    assert clock.waits == pytest.approx([0.2, 0.2])


def test_on_a_slow_network_every_collective_is_late_for_a_while() -> None:
    clock, _, disturbance, engine = disturbed()
    disturbance.late_until = clock.now + 0.6
    for _ in range(2):
        engine.train_step(BATCH, 0.1)
        assert engine.exchange(b"x") == [b"x"]
    assert clock.waits == [0.2, 0.2, 0.2]


def test_memory_runs_out_and_a_step_is_poisoned_on_demand_only() -> None:
    _, inner, disturbance, engine = disturbed()
    engine.train_step(BATCH, 0.1)
    disturbance.poisons = True
    for _ in range(2):
        engine.train_step(BATCH, 0.1)
    assert inner.poisoned == 1
    disturbance.lacks_memory = True
    with pytest.raises(GpuOutOfMemory, match="as asked"):
        engine.train_step(BATCH, 0.1)


def test_one_batch_is_late() -> None:
    clock, disturbance = Clock(), Disturbance(stall_seconds=4.0)
    read = stalling(lambda step: BATCH, disturbance, clock.wait)
    assert [read(step) for step in range(3)] == [BATCH] * 3
    assert clock.waits == [4.0]


def step_of(done: int) -> Step:
    result: Any = SimpleNamespace(fetch=lambda: {"loss": 1.0, "gradient_norm": 1.0})
    return Step(done, False, 0.1, Outcome(result), CARRY_ON)


def test_faults_by_the_clock_count_from_the_first_step_and_each_comes_once() -> None:
    clock, told = Clock(), list[Injected]()
    injections = (
        Injection(name="late", fault=Fault.NAN, seconds=5.0),
        Injection(name="past", fault=Fault.SLOW_RANK, step=3),
    )
    chaos = Chaos(injections, 2, told.append, lambda: None, lambda key: None, clock)
    clock.now += 50.0  # restoring and compiling
    due = []
    for done in range(11, 15):
        step = step_of(done)
        due.append(chaos.is_due(step))
        if due[-1]:
            chaos.run(step)
        clock.now += 3.0
    assert due == [True, False, True, False]
    assert [(each.name, each.rank, each.step) for each in told] == [("past", 2, 11), ("late", 2, 13)]


def test_the_section_says_who_waits_and_who_works() -> None:
    _, _, disturbance, engine = disturbed()
    activity = engine._activity
    before = activity.enter(Section.DATA)
    assert before is Section.HOST
    disturbance.lacks_memory = True
    with pytest.raises(GpuOutOfMemory):
        engine.train_step(BATCH, 0.1)
    assert activity.enter(Section.HOST) is Section.STEP, "whoever fails leaves its section behind"
