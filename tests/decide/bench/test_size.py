"""The report can be started, whatever became of the runs: the spec is refused before the first of them otherwise."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from capstan_operator.api.benchmark_status import RepeatStatus, TrialStatus
from capstan_operator.decide.bench.outcome import REASON_LENGTH
from capstan_operator.decide.bench.record import REPEATS_KEPT
from tests.support import bench_world
from tests.support.bench_cases import full_spec
from tests.support.bench_world import World

RUNS = 200
UID = "01234567-89ab-cdef-0123-456789abcdef"
REASONS = {
    "plain": "e" * REASON_LENGTH,
    "emoji": "\N{PILE OF POO}" * REASON_LENGTH,
    "quotes": '"' * REASON_LENGTH,
}


def world_of(padding: int) -> World:
    spec: dict[str, Any] = full_spec({"workload": "batches", "repetitions": RUNS // 2})
    spec["job"]["workers"]["podPatch"] = {"metadata": {"annotations": {"a": "x" * padding}}}
    return World(spec)


def is_refused(padding: int) -> bool:
    status = world_of(padding).decide().status
    assert status.phase != "Invalid" or "or choose fewer repetitions" in status.message
    return status.phase == "Invalid"


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of padding of the longest spec that is not refused, of a Benchmark with the longest name."""
    monkeypatch.setattr(bench_world, "NAME", "b" * 32)
    fits, too_much = 0, 88_000
    while too_much - fits > 1:
        middle = (fits + too_much) // 2
        fits, too_much = (fits, middle) if is_refused(middle) else (middle, too_much)
    return fits


def test_of_the_longest_spec_a_report_can_be_started(longest: int) -> None:
    assert is_refused(longest + 1)
    for reason in REASONS.values():
        world = world_of(longest)
        world.settle()
        trials = [TrialStatus(trial=f"t{place:02d}", attempt=3, uid=UID) for place in range(RUNS)]
        repeats = [RepeatStatus(trial="t199", attempt=3, reason=reason)] * REPEATS_KEPT
        world.status = world.status.model_copy(update={"trials": trials, "repeats": repeats, "running": None})
        world.settle()
        task = json.dumps(world.tasks[f"{'b' * 32}-report-1"], separators=(",", ":"), ensure_ascii=False)
        assert len(json.loads(task)["report"]["repeats"]) == REPEATS_KEPT
        subprocess.run(["true"], env={"CAPSTAN_BENCH": task, "PATH": "/usr/bin:/bin"}, check=True)
