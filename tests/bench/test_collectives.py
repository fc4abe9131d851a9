"""Bandwidth between ranks: the arithmetic, what must come out of an operation, and both frameworks' real ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.bench.analysis.collectives import BANDWIDTH, LATENCY
from capstan_runtime.bench.collectives import (
    Call,
    Values,
    algorithm_bandwidth,
    bus_bandwidth,
    bus_factor,
    expected_of,
    input_of,
    measure,
    size_text,
)
from capstan_runtime.bench.measured import Measured
from capstan_runtime.bench.workloads.collectives import run
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract.benchmark import COORDINATOR, TrialTask, TrialWork
from capstan_runtime.contract.judged import JUDGED
from capstan_runtime.contract.sizes import size_bytes, sweep
from capstan_runtime.contract.workloads import Collectives, Operation
from capstan_runtime.errors import ConfigError, PeerLost
from capstan_runtime.metrics.environment import observe_environment
from tests.support.rank_threads import Exchange, run_rank_threads
from tests.support.ranks import run_ranks

NOWHERE = FolderStore(Path("not-used"))
OPERATIONS: tuple[Operation, ...] = ("allReduce", "allGather", "reduceScatter", "allToAll")


def test_bandwidths_are_those_of_hand_worked_cases() -> None:
    # 16 MiB = 16,777,216 bytes in 10 ms are 1,677,721,600 B/s. Of 4 ranks each sends, for a sum that everybody has,
    # 2 x 3/4 of that: x 1.5 = 2,516,582,400 B/s.
    assert algorithm_bandwidth(16_777_216, 0.01) == pytest.approx(1_677_721_600)
    assert bus_bandwidth("allReduce", 4, 16_777_216, 0.01) == pytest.approx(2_516_582_400)
    # 8 ranks gather 1,000,000 bytes in 1 ms: 1 GB/s, and each receives all but its own eighth: x 7/8.
    assert bus_bandwidth("allGather", 8, 1_000_000, 0.001) == pytest.approx(875_000_000)
    # 2 ranks reduce and scatter 4,096 bytes in 20 us: 204,800,000 B/s, and each sends the half that it does not keep.
    assert bus_bandwidth("reduceScatter", 2, 4096, 20e-6) == pytest.approx(102_400_000)
    # 3 ranks exchange 3 MB in 6 ms: 500 MB/s, and two of the three parts leave: x 2/3.
    assert bus_bandwidth("allToAll", 3, 3_000_000, 0.006) == pytest.approx(333_333_333.33, rel=1e-9)
    # Two ranks: a sum sends everything once, 2 x 1/2.
    assert [bus_factor(operation, 2) for operation in OPERATIONS] == [1.0, 0.5, 0.5, 0.5]


@given(ranks=st.integers(2, 64), piece=st.integers(1, 1 << 20))
def test_bus_bandwidth_counts_what_a_ring_sends(ranks: int, piece: int) -> None:
    # A ring passes pieces of S/n on: n-1 times to gather or to sum, and for a sum that everybody has both.
    size, seconds = ranks * piece, 0.5
    sent = {operation: (ranks - 1) * piece * (2 if operation == "allReduce" else 1) for operation in OPERATIONS}
    for operation in OPERATIONS:
        assert bus_bandwidth(operation, ranks, size, seconds) == pytest.approx(sent[operation] / seconds)


def test_a_sweep_goes_by_its_factor_and_ends_with_the_largest() -> None:
    assert sweep(4096, 65536, 4, 2) == [4096, 16384, 65536]
    assert sweep(4096, 100_000, 4, 2) == [4096, 16384, 65536, 100_000]
    assert sweep(4096, 4096, 2, 2) == [4096]


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 22), st.integers(2, 64), st.integers(2, 1024))
def test_every_size_of_a_sweep_is_the_same_whole_count_for_every_rank(
    smallest: int, more: int, factor: int, ranks: int
) -> None:
    sizes = sweep(smallest, smallest + more, factor, ranks)
    assert sizes == sorted(set(sizes))
    assert all(size > 0 and size % (4 * ranks) == 0 for size in sizes)
    assert sizes[-1] <= max(smallest + more, 4 * ranks)


@given(st.integers(1, 1 << 40))
def test_a_size_is_read_as_it_was_written(size: int) -> None:
    assert size_bytes(size_text(size)) == size


def reference(operation: Operation, inputs: list[Values], rank: int) -> Values:
    """What comes out at `rank`, in words: sum, concatenation, the own part of the sum, everybody's part for me."""
    parts = [np.array_split(each, len(inputs)) for each in inputs]
    match operation:
        case "allReduce":
            return np.sum(inputs, axis=0)
        case "allGather":
            return np.concatenate(inputs)
        case "reduceScatter":
            return np.sum([each[rank] for each in parts], axis=0)
        case "allToAll":
            return np.concatenate([each[rank] for each in parts])


@given(st.sampled_from(OPERATIONS), st.integers(2, 12), st.integers(1, 100))
def test_what_must_come_out_is_what_the_operation_makes_of_what_goes_in(
    operation: Operation, ranks: int, part: int
) -> None:
    items = ranks * part
    inputs = [input_of(operation, items, rank, ranks) for rank in range(ranks)]
    for rank in range(ranks):
        expected = expected_of(operation, items, rank, ranks)
        np.testing.assert_array_equal(expected, reference(operation, inputs, rank))


def test_sums_over_as_many_ranks_as_there_may_be_are_exact() -> None:
    largest = expected_of("allReduce", 31 * 1024, 0, 1024).max()
    assert largest == 1024 * 30 + 31 * (1024 * 1023 // 2)
    assert largest < 2**24  # below that fp32 holds every whole number


class ThreadRanks:
    """Ranks in threads that copy; the last one may get a number wrong."""

    backend = "threads"
    notes = ()

    def __init__(self, rank: int, size: int, exchange: Exchange, wrong_after: int) -> None:
        self.rank, self.size, self.exchange = rank, size, exchange
        self.wrong_after = wrong_after
        self.runs = 0

    def prepare(self, operation: Operation, items: int) -> Call:
        return ThreadCall(self, operation)

    def leave(self) -> None:
        pass


class ThreadCall:
    def __init__(self, ranks: ThreadRanks, operation: Operation) -> None:
        self.ranks, self.operation = ranks, operation

    def load(self, values: Values) -> None:
        self.input = values

    def run(self) -> None:
        self.ranks.runs += 1
        told = [np.frombuffer(each, np.float32) for each in self.ranks.exchange(self.input.tobytes())]
        self.output = reference(self.operation, told, self.ranks.rank).copy()
        if self.ranks.runs > self.ranks.wrong_after and self.ranks.rank == self.ranks.size - 1:
            self.output[-1] += 1

    def result(self) -> Values:
        return self.output


@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_ranks_know_the_slowest_ranks_times(operation: Operation) -> None:
    def main(rank: int, exchange: Exchange) -> tuple[list[float], int]:
        ranks = ThreadRanks(rank, 3, exchange, wrong_after=1000)
        return measure(ranks, operation, 120, 4), ranks.runs

    (first, runs), *others = run_rank_threads(3, main)
    assert [others[0][0], others[1][0]] == [first, first]
    assert len(first) == 4
    assert all(seconds > 0 for seconds in first)
    assert runs == 1 + 5 + 4 + 1  # checked, warmed up, timed, checked


@pytest.mark.parametrize("wrong_after", [0, 10], ids=["from the start", "in the end"])
def test_a_wrong_number_at_one_rank_fails_all_of_them(wrong_after: int) -> None:
    def main(rank: int, exchange: Exchange) -> list[float]:
        return measure(ThreadRanks(rank, 2, exchange, wrong_after), "allGather", 80, 4)

    # 80 bytes are 20 numbers; the last is element 9 of rank 1's ten: 9 + 31 = 40.
    told = "allGather of 80B by threads is wrong at rank 1: number 19 is 41, it must be 40; 1 of 20 are wrong"
    assert [str(error) for error in run_rank_threads(2, main)] == [told, told]


def trial_of(kind: str, rank: int, world: int, deadline_seconds: float = 200.0) -> TrialTask:
    task = Collectives(framework={kind: {}}, workers=world, smallest="1KiB", largest="64KiB", factor=64, iterations=3)
    work = TrialWork(collectives=task)
    return TrialTask(trial="t0", seed=0, work=work, rank=rank, world=world, deadline_seconds=deadline_seconds)


def measure_for_real(rank: int, world: int, coordinator: str, kind: str) -> Measured | None:
    return run(trial_of(kind, rank, world), NOWHERE, {COORDINATOR: coordinator})


@pytest.mark.parametrize(("kind", "world"), [("flax", 2), ("deepspeed", 2), ("deepspeed", 3)])
def test_real_processes_measure_right_results_and_rank_0_tells(kind: str, world: int) -> None:
    measured, *others = run_ranks(measure_for_real, world, kind)
    assert others == [None] * (world - 1)
    assert [peer.hardware for peer in measured.peers] == [observe_environment({}).hardware] * (world - 1)
    small, large = ("1KiB", "64KiB") if world == 2 else ("1020B", "65532B")
    figures: list[Any] = [(p.metric, p.labels, p.unit, p.better, p.is_headline) for p in measured.points]
    assert figures == [
        figure
        for operation in OPERATIONS
        for size in (small, large)
        for labels in [{"operation": operation, "size": size}]
        for figure in (
            ("seconds", labels, "s", "lower", False),
            ("algorithm_bandwidth_bytes_per_second", labels, "B/s", "higher", False),
            ("bus_bandwidth_bytes_per_second", labels, "B/s", "higher", size == large),
        )
    ]
    assert {figure[0] for figure in figures} | {LATENCY, BANDWIDTH} == set(JUDGED["collectives"])
    for taken, algorithm, bus in zip(*(iter(measured.points),) * 3, strict=True):
        assert len(taken.samples) == 3
        assert algorithm.value == pytest.approx(size_bytes(taken.labels["size"]) / taken.value)
        assert bus.value == pytest.approx(algorithm.value * bus_factor(taken.labels["operation"], world))
    assert f"{world} ranks, fp32, backend gloo of {'JAX' if kind == 'flax' else 'torch'}" in measured.notes[0]
    assert any("reduce-scatter" in note for note in measured.notes) == (kind == "deepspeed")


def wait_alone(rank: int, world: int, coordinator: str) -> None:
    with pytest.raises(PeerLost):
        run(trial_of("deepspeed", 1, 2, deadline_seconds=1.0), NOWHERE, {COORDINATOR: coordinator})


def test_a_rank_whose_peers_never_come_gives_up_at_its_deadline() -> None:
    run_ranks(wait_alone, 1)


@pytest.mark.parametrize(("rank", "name"), [(0, "CAPSTAN_POD_IP"), (1, "CAPSTAN_BENCH_COORDINATOR")])
def test_a_rank_that_does_not_know_where_to_meet_says_so(rank: int, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not set"):
        run(trial_of("deepspeed", rank, 2), NOWHERE, {})
