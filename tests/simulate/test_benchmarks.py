"""Whole lives of Benchmarks in seeded random order: events are late or lost, answers are lost, the operator dies
between any two writes, pods fail and vanish, the API server refuses, the user suspends, breaks the spec and mends it,
and wants another baseline."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.decide.benchmark import decide_benchmark
from capstan_operator.decide.types import Manifest
from capstan_operator.observe_benchmark import ObservedBenching, ObservedTrialJob
from tests.support.bench_cases import full_spec
from tests.support.bench_world import World
from tests.support.benchmarks import summary, trial_end

MOST_STEPS = 6000
ENDED = ("Succeeded", "Failed")


class Died(Exception):
    """The operator is gone, in the middle of what it did."""


class Refused(Exception):
    """The API server does not do it, or its answer is lost."""


@dataclass
class Life:
    """One Benchmark, whoever looks after it, and everything that happens to it."""

    random: random.Random
    world: World
    failing: float
    """How likely a run fails."""
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The operator's cache."""
    version: int = 0
    seen_version: int = 0
    seen_status: BenchmarkStatus = field(default_factory=BenchmarkStatus)
    finished: set[tuple[str, int]] = field(default_factory=set)
    """(run, attempt) of children that succeeded."""
    deaths: int = 0
    judgements: int = 0
    """How often the user will still choose another baseline."""
    written: str = ""
    """The report that wrote last."""

    def __post_init__(self) -> None:
        self.relist()

    # The operator

    def relist(self) -> None:
        world = self.world
        self.seen = {"pods": dict(world.pods), "jobs": dict(world.jobs), "services": dict(world.services)}
        self.seen_version, self.seen_status = self.version, world.status

    def hear(self) -> None:
        """Of one object, or of none: events get lost."""
        kind = self.random.choice(["pods", "jobs", "services", "status"])
        if kind == "status":
            self.seen_version, self.seen_status = self.version, self.world.status
            return
        truth, cache = getattr(self.world, kind), self.seen[kind]
        name = self.random.choice(sorted({*truth, *cache})) if truth or cache else None
        if name in truth:
            cache[name] = truth[name]
        elif name is not None:
            del cache[name]

    def look_and_act(self) -> None:
        truth = self.world.look()
        observed = ObservedBenching(
            benchmark=replace(truth.benchmark, status=self.seen_status),
            pods=tuple(self.seen["pods"].values()),
            jobs=tuple(self.seen["jobs"].values()),
            services=tuple(self.seen["services"].values()),
            lingering=truth.lingering,
        )
        decision = decide_benchmark(observed, self.world.now)
        try:
            for deletion in decision.delete:
                self.may_die()
                self.world.delete(deletion)
            for manifest in decision.create:
                self.may_die()
                self.create(manifest)
            if decision.status != self.seen_status:
                self.may_die()
                self.write(decision.status)
        except Died:
            self.relist()
        except Refused:
            self.seen_version, self.seen_status = self.version, self.world.status

    def may_die(self) -> None:
        if self.random.random() < 0.04:
            self.deaths += 1
            raise Died

    def create(self, manifest: Manifest) -> None:
        if self.random.random() < 0.1:
            raise Refused
        name, kind = manifest["metadata"]["name"], manifest["kind"]
        self.check_alone(manifest["metadata"]["labels"]["capstan.dev/trial"], name)
        self.world.create(manifest)
        if self.random.random() < 0.1:
            raise Refused
        where = {"Pod": "pods", "TrainingJob": "jobs", "InferenceService": "services"}[kind]
        self.seen[where][name] = getattr(self.world, where)[name]

    def write(self, status: BenchmarkStatus) -> None:
        if self.version != self.seen_version:
            raise Refused
        before = self.world.status
        self.world.status = BenchmarkStatus.parse(status.document())
        self.version += 1
        self.check_record(before, status)
        if self.random.random() < 0.1:
            raise Refused
        self.seen_version, self.seen_status = self.version, self.world.status

    # What must always hold

    def check_alone(self, trial: str, name: str) -> None:
        """Nothing of another attempt is alive when anything is made that measures."""
        if trial == "report":
            return
        alive = [pod for pod, one in self.world.pods.items() if one.phase not in ENDED]
        alive += [job for job, one in self.world.jobs.items() if one.live_pods or not one.job.status.finished_at]
        alive += [*self.world.services, *self.world.lingering]
        base = name.split("-r")[0]
        others = [one for one in alive if one != base and not one.startswith(f"{base}-r")]
        assert others == [], f"{name} is made while {others} are alive"

    def check_record(self, before: BenchmarkStatus, after: BenchmarkStatus) -> None:
        assert after.trials[: len(before.trials)] == before.trials, "a run is forgotten"
        assert [one.trial for one in after.trials] == [f"t{place:02d}" for place in range(len(after.trials))]
        for one in after.trials[len(before.trials) :]:
            assert (one.trial, one.attempt) in self.finished, "a run counts that did not succeed"
        for repeat in after.repeats:
            assert repeat.attempt <= 3
        assert len({(repeat.trial, repeat.attempt) for repeat in after.repeats}) == len(after.repeats)
        if after.report is not None:
            assert after.progress.done == after.progress.total == len(after.trials)

    # The machine

    def go_on_with_children(self) -> None:
        world, chance = self.world, self.random.random()
        live = [name for name, pod in world.pods.items() if pod.phase not in ENDED]
        if live:
            name = self.random.choice(sorted(live))
            if world.pods[name].phase == "Pending":
                world.start(name)
            elif chance < self.failing:
                how = self.random.choice(["fail", "evict", "vanish"])
                if how == "vanish":
                    del world.pods[name]
                else:
                    words = trial_end("no luck", is_ok=False) if how == "fail" else ""
                    world.end(name, 1, words, "Error" if how == "fail" else "Evicted")
            elif self.is_complete(name):
                self.note(name)
                world.end(name, words=summary() if "-report-" in name else trial_end())
        jobs = [name for name, one in world.jobs.items() if not one.job.status.finished_at]
        if jobs:
            name = self.random.choice(sorted(jobs))
            if chance < self.failing:
                how = self.random.choice(["restart", "fail", "vanish"])
                if how == "vanish":
                    del world.jobs[name]
                elif how == "restart":
                    world.set_job(name, live_pods=1, phase="Running", restarts={"total": 1})
                else:
                    world.end_job(name, "Failed", "NoProgress")
                    world.set_job(name, live_pods=1)
            elif not world.jobs[name].job.status.restarts.total:
                self.note(name)
                world.end_job(name)
                world.set_job(name, live_pods=1)
        for name, one in list(world.jobs.items()):
            if one.job.status.finished_at and one.live_pods and self.random.random() < 0.3:
                world.jobs[name] = ObservedTrialJob(one.job, live_pods=0)
        for name in world.services:
            if self.random.random() < 0.2:
                world.serve(name)
        if self.random.random() < 0.3:
            world.clear()

    def is_complete(self, pod: str) -> bool:
        """All ranks are there."""
        world = (self.world.tasks[pod].get("trial") or {"world": 1})["world"]
        same = [one for one in self.world.pods if one.rsplit("-r", 1)[0] == pod.rsplit("-r", 1)[0]]
        return world == 1 or len(same) == world

    def note(self, child: str) -> None:
        if "-report-" in child:
            self.written = child
        parts = child.removeprefix("bench-").split("-")
        attempt = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 1
        self.finished.add((parts[0], attempt))

    def go_on(self) -> None:
        what = self.random.choices(
            ["act", "hear", "machine", "time", "relist", "suspend", "resume", "judge", "break", "mend"],
            [8, 8, 5, 5, 0.3, 0.1, 0.6, 0.2, 0.1, 0.6],
        )[0]
        match what:
            case "act":
                self.look_and_act()
            case "hear":
                self.hear()
            case "machine":
                self.go_on_with_children()
            case "time":
                self.world.now += self.random.uniform(0.5, 8.0)
            case "relist":
                self.relist()
            case "suspend" | "resume" if self.world.spec.get("suspend", False) != (what == "suspend"):
                self.world.edit(suspend=what == "suspend")
            case "break" | "mend" if is_broken(self.world) != (what == "break"):
                self.world.edit(gate={} if what == "break" else None)
            case "judge" if self.judgements and self.world.status.progress.done == 4:
                self.judgements -= 1
                self.world.edit(baseline=kept(self.random.choice("ab")))


def is_broken(world: World) -> bool:
    """Its spec is refused: four repetitions cannot be judged."""
    return "gate" in world.spec


def kept(key: str) -> dict[str, Any]:
    return {"configMap": {"name": "kept", "key": key}}


def is_told(life: Life) -> bool:
    """What status says is said of the spec as it is."""
    return life.world.status.observed_generation == life.world.generation


@pytest.mark.parametrize("workload", ["training", "collectives", "serving", "roofline"])
@pytest.mark.parametrize("seed", range(8))
def test_no_run_is_lost_counted_twice_or_disturbed(workload: str, seed: int) -> None:
    spec = full_spec({} if workload == "roofline" else {"workload": workload}) | {"repetitions": 4}
    rng = random.Random(f"{workload} {seed}")
    life = Life(rng, World(spec | {"baseline": kept("a")}), failing=rng.choice([0.0, 0.1, 0.3]), judgements=5)
    for _ in range(MOST_STEPS):
        life.go_on()
        status = life.world.status
        is_over = status.phase in ENDED and (status.phase == "Failed" or not life.judgements)
        if is_over and is_told(life) and not life.world.spec.get("suspend") and not is_broken(life.world):
            break
    assert status.phase in ENDED, status.message
    if status.phase == "Succeeded":
        assert [one.trial for one in status.trials] == ["t00", "t01", "t02", "t03"]
        assert status.report is not None
        told = life.world.tasks[status.report.log]["report"]
        assert [(one["trial"], one["attempt"]) for one in told["trials"]] == [
            (one.trial, one.attempt) for one in status.trials
        ]
        assert told["baseline"]["file"].endswith(f"/{life.world.spec['baseline']['configMap']['key']}")
        assert status.report.log == life.written, "what is in the store is what status says"
    else:
        assert sum(repeat.trial == status.given_up for repeat in status.repeats) == 3
    life.relist()
    before = life.world.made
    for _ in range(50):
        life.look_and_act()
    assert life.world.made == before, "nothing is made after the end"


@pytest.mark.parametrize("workload", ["training", "collectives", "serving", "roofline"])
@pytest.mark.parametrize("seed", range(4))
def test_a_suspension_leaves_nothing_alive_though_the_spec_is_refused(workload: str, seed: int) -> None:
    spec = full_spec({} if workload == "roofline" else {"workload": workload}) | {"repetitions": 4}
    rng = random.Random(f"suspended {workload} {seed}")
    life = Life(rng, World(spec | {"baseline": kept("a")}), failing=0.1)
    for _ in range(rng.randrange(20, 300)):
        life.go_on()
    world = life.world
    world.edit(suspend=True, gate={})
    for _ in range(100):
        life.relist()
        life.look_and_act()
    live = [name for name, pod in world.pods.items() if pod.phase not in ENDED]
    live += [name for name, one in world.jobs.items() if not one.job.status.finished_at]
    assert (live, list(world.services), world.status.running, world.status.phase) == ([], [], None, "Invalid")
