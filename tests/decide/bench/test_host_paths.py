"""An operator that allows no folders of the nodes takes over from one that did: Benchmarks are measured to the end."""

from __future__ import annotations

import pytest

from capstan_operator.observe import OperatorSettings
from tests.support.bench_cases import full_spec
from tests.support.bench_world import World
from tests.support.benchmarks import trial_end

FOLDER = {"results": {"store": {"claim": None, "hostPath": {"path": "/results"}}}}
PATCHED = {"pods": {"podPatch": {"spec": {"volumes": [{"name": "shared", "hostPath": {"path": "/shared"}}]}}}}


@pytest.mark.parametrize("spec", [FOLDER, PATCHED], ids=["store", "podPatch"])
def test_a_benchmark_that_has_begun_makes_all_its_runs_and_its_report(spec: dict[str, object]) -> None:
    world = World(full_spec(spec), settings=OperatorSettings(allow_host_path=True))
    world.settle()
    assert set(world.pods) == {"bench-t00"}
    world.settings = OperatorSettings()
    for name in ("bench-t00", "bench-t01"):
        world.start(name)
        world.settle()
        world.end(name, words=trial_end())
        world.settle()
    world.report()
    world.settle()
    assert (world.status.phase, world.status.progress.summary, world.status.repeated) == ("Succeeded", "2/2", 0)


def test_one_that_makes_jobs_makes_the_next() -> None:
    world = World(full_spec({"workload": "training"} | FOLDER), settings=OperatorSettings(allow_host_path=True))
    world.settle()
    world.settings = OperatorSettings()
    world.end_job("bench-t00")
    world.settle()
    assert world.jobs["bench-t01"].job.spec["checkpoint"]["store"] == {"hostPath": {"path": "/results"}}


@pytest.mark.parametrize("spec", [FOLDER, PATCHED], ids=["store", "podPatch"])
def test_a_new_benchmark_is_refused(spec: dict[str, object]) -> None:
    world = World(full_spec(spec))
    world.settle()
    assert (world.status.phase, world.status.reason, world.pods) == ("Invalid", "InvalidSpec", {})
