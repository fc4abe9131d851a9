"""Micro-steps are made small enough for the memory before the first step, on all ranks alike."""

import itertools
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.context import TrainContext
from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.state import Progress
from capstan_runtime.engine import Batch
from capstan_runtime.errors import ConfigError
from capstan_runtime.fitting import fitted
from capstan_runtime.report import Reporter
from capstan_runtime.voice import Voice
from tests.support.engines import FLAX, MLP, context_of
from tests.support.training_runs import Ended, Run, losses, run_trainers

TOLD = "a micro-step of 6 samples needs 6,000 bytes, and the device has 3,500; from now on it is of 3"


def trained(folder: Path, **faults: str) -> tuple[list[Ended], list[tuple[int, float]]]:
    """Both ranks of a run, and the loss of each step."""
    log = folder / "steps"
    ended = run_trainers(Run(folder), world=2, STEP_LOG=str(log), **faults)
    return ended, [(step, float(loss)) for step, loss in losses(log)] if log.exists() else []


def test_a_run_that_would_not_fit_is_the_same_run_in_smaller_micro_steps(tmp_path: Path) -> None:
    whole, expected = trained(tmp_path / "whole", **{env.DEVICE_MEMORY: "6000"})
    assert all(each.micro_splits is None and each.note is None for ended in whole for each in ended.progress)
    small, found = trained(tmp_path / "small", **{env.DEVICE_MEMORY: "3500"})
    told = [[(each.micro_splits, each.note) for each in ended.progress if each.micro_splits] for ended in small]
    assert told == [[(2, TOLD)], [(2, None)]]
    assert [step for step, _ in found] == [step for step, _ in expected] == list(range(1, 31))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_step_of_unknown_size_is_halved_as_well_and_one_sample_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    (first, second), found = trained(tmp_path, **{env.DEVICE_MEMORY: "900"})
    assert found == []
    for ended in (first, second):
        (end,) = [each for each in ended.progress if each.failure]
        assert (end.failure, end.message) == (
            FailureClass.CONFIG,
            "spec.model: a micro-step of a single sample needs 1,000 bytes, and the device has 900; choose a smaller "
            "model or a larger device",
        )


def test_a_limit_that_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    (ended, _), _ = trained(tmp_path, **{env.DEVICE_MEMORY: "80Gi"})
    (end,) = [each for each in ended.progress if each.failure]
    assert (end.message or "").startswith("CAPSTAN_DEVICE_MEMORY: '80Gi' is no number of bytes; ")


@dataclass
class Ranks:
    """Threads that exchange messages as processes would."""

    world: int
    payloads: dict[int, bytes] = field(default_factory=dict)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world, timeout=10)

    def exchange(self, rank: int, payload: bytes) -> list[bytes]:
        self.payloads[rank] = payload
        self.barrier.wait()
        answers = [self.payloads[each] for each in range(self.world)]
        self.barrier.wait()
        return answers


class Quiet(Reporter):
    def __init__(self) -> None:
        self.sent: list[Progress] = []

    def send(self, progress: Progress) -> None:
        self.sent.append(progress)


@dataclass(frozen=True)
class Device:
    """Of one rank."""

    limit: int | None
    per_sample: int
    weights: int
    """What a step takes, however few its samples."""

    def peak(self, samples: int) -> int:
        return self.weights + self.per_sample * samples


@dataclass
class Outcome:
    """Of one rank."""

    end: int | str = ""
    """How many samples its micro-steps have then, or the error that it raised."""
    events: list[tuple[str, int]] = field(default_factory=list)
    """("look", at so many samples a micro-step) and ("tell", of so many micro-steps), in order of time."""

    @property
    def looks(self) -> list[int]:
        return [samples for what, samples in self.events if what == "look"]


class Noted(Reporter):
    """Puts what is told of micro-steps among the events of a rank."""

    def __init__(self, events: list[tuple[str, int]]) -> None:
        self._events = events

    def send(self, progress: Progress) -> None:
        assert progress.micro_splits is not None
        self._events.append(("tell", progress.micro_splits))


def outcomes(samples: int, devices: int, ranks: list[Device]) -> list[Outcome]:
    """Of each rank that makes a micro-step of `samples` as small as it takes."""
    together, found = Ranks(len(ranks)), [Outcome() for _ in ranks]

    def run(rank: int) -> None:
        context = context_of(FLAX, MLP, rank, len(ranks), batch=samples * len(ranks), virtual_ranks=len(ranks))
        engine: Any = SimpleNamespace(
            devices=devices,
            memory_limit=lambda: ranks[rank].limit,
            step_memory=lambda batch: ranks[rank].peak(len(batch.targets)),
            exchange=lambda payload: together.exchange(rank, payload),
        )
        mine = found[rank]

        def read(tried: TrainContext) -> Batch:
            mine.events.append(("look", tried.samples_per_micro_step))
            return Batch(np.zeros(0), np.zeros(tried.samples_per_micro_step))

        try:
            mine.end = fitted(context, engine, read, Voice(Noted(mine.events), 1, 1)).samples_per_micro_step
        except ConfigError as error:
            mine.end = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_second_look_is_at_what_the_first_says_that_there_is_room_for_and_is_told_before_it() -> None:
    (found,) = outcomes(24, 1, [Device(limit=250, per_sample=100, weights=0)])
    assert found.end == 2
    assert found.events == [("look", 24), ("tell", 12), ("look", 2)]


def test_where_weights_take_some_of_the_room_more_looks_follow_and_each_is_told_before_it() -> None:
    (found,) = outcomes(24, 2, [Device(limit=1000, per_sample=100, weights=500)])
    assert found.end == 4
    assert found.events == [("look", 24), ("tell", 3), ("look", 8), ("tell", 6), ("look", 4)]


@given(
    shares=st.integers(1, 24),
    devices=st.sampled_from([1, 1, 2, 4]),
    ranks=st.lists(
        st.builds(Device, st.none() | st.integers(0, 400), st.integers(0, 40), st.sampled_from([0, 0, 10, 200])),
        min_size=1,
        max_size=3,
    ),
)
def test_all_ranks_agree_on_the_largest_micro_step_at_most_half_as_large_that_each_has_room_for(
    shares: int, devices: int, ranks: list[Device]
) -> None:
    samples = shares * devices
    first, *others = outcomes(samples, devices, ranks)
    assert all(each == first for each in others), "all ranks look at the same, and come to one end"
    limits = [each.limit for each in ranks if each.limit is not None]
    if len(limits) < len(ranks):
        assert (first.end, first.events) == (samples, []), "what one rank cannot tell, nobody predicts"
        return

    def fits(tried: int) -> bool:
        return max(each.peak(tried) for each in ranks) <= min(limits)

    looks = first.looks
    told_first = [each for tried in looks for each in (("tell", samples // tried), ("look", tried))]
    assert first.events == told_first[1:], "all but the first look are told of before"
    if isinstance(first.end, str):
        assert first.end.startswith("spec.model: a micro-step of ")
        assert not fits(devices)
        assert looks[-1] == devices, "it is not given up before it was looked at"
    else:
        assert [fits(tried) for tried in looks] == [False] * (len(looks) - 1) + [True]
        assert looks[-1] == first.end
    for before, after in itertools.pairwise(looks):
        assert before % after == after % devices == 0
        larger = [each for each in range(after + 1, before // 2 + 1) if before % each == each % devices == 0]
        assert not any(fits(each) for each in larger), "no look passes over a size for which there is room"


@pytest.mark.parametrize("memory", [None, 10**9])
def test_a_model_that_needs_its_samples_together_is_not_split(memory: int | None) -> None:
    norm = {"cnn": {"channels": [8, 16], "norm": {"batch": {}}}}
    context = context_of(FLAX, norm, batch=16, virtual_ranks=1)
    engine: Any = SimpleNamespace(
        devices=1,
        memory_limit=lambda: memory,
        step_memory=lambda batch: 2 * 10**9,
        exchange=lambda payload: [payload],
    )
    if memory is None:
        assert fitted(context, engine, lambda tried: Batch(np.zeros(0), np.zeros(0)), Voice(Quiet(), 1, 1)) is context
        return
    with pytest.raises(ConfigError, match=r"^spec\.model\.cnn\.norm\.batch: a virtual rank's 16 samples do not fit"):
        fitted(context, engine, lambda tried: Batch(np.zeros(0), np.zeros(0)), Voice(Quiet(), 1, 1))
