"""Micro-steps are made small enough for the memory before the first step, on all ranks alike."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
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

TOLD = (
    "a micro-step of 6 samples needs 6,000 bytes, and the device has 3,500; of 3 it needs 3,000, and so they are "
    "computed from now on"
)


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


def outcomes(samples: int, devices: int, ranks: list[Device]) -> list[int | str]:
    """Of each rank: how many samples its micro-steps have then, or the error that it raised."""
    together, found = Ranks(len(ranks)), ["" for _ in ranks]

    def run(rank: int) -> None:
        context = context_of(FLAX, MLP, rank, len(ranks), batch=samples * len(ranks), virtual_ranks=len(ranks))
        engine: Any = SimpleNamespace(
            devices=devices,
            memory_limit=lambda: ranks[rank].limit,
            step_memory=lambda batch: ranks[rank].per_sample * len(batch.targets),
            exchange=lambda payload: together.exchange(rank, payload),
        )
        voice = Voice(Quiet(), 1, 1)

        def read(tried: TrainContext) -> Batch:
            return Batch(np.zeros(0), np.zeros(tried.samples_per_micro_step))

        try:
            found[rank] = fitted(context, engine, read, voice).samples_per_micro_step  # type: ignore[call-overload]
        except ConfigError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(found)


@settings(deadline=None)
@given(
    shares=st.integers(1, 24),
    devices=st.sampled_from([1, 1, 2, 4]),
    ranks=st.lists(st.builds(Device, st.none() | st.integers(1, 400), st.integers(0, 40)), min_size=1, max_size=3),
)
def test_all_ranks_agree_on_the_largest_halving_that_every_one_of_them_has_room_for(
    shares: int, devices: int, ranks: list[Device]
) -> None:
    samples = shares * devices
    found = outcomes(samples, devices, ranks)
    assert len(set(found)) == 1, "all ranks come to one end"
    limits = [each.limit for each in ranks if each.limit is not None]
    if len(limits) < len(ranks):
        assert found[0] == samples, "what one rank cannot tell, nobody predicts"
        return
    room = min(limits) // most if (most := max(each.per_sample for each in ranks)) else samples
    kept = found[0]
    if isinstance(kept, str):
        assert devices > room
        assert kept.startswith("spec.model: a micro-step of ")
        return
    assert kept <= room
    assert samples % kept == kept % devices == 0
    # No larger part of its predecessor would have done: each is the largest that is at most half of the one before.
    tried = samples
    while tried > room:
        tried = max(each for each in range(1, tried // 2 + 1) if tried % each == each % devices == 0)
    assert kept == tried


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
