"""Whole lives of every example, and at no stage a difference to git, whoever brought it into the cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from capstan_operator.api.recovery_spec import Budgets
from capstan_operator.cluster.kinds import BENCHMARKS, INFERENCE_SERVICES, PODS, TRAINING_JOBS
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from tests.gitops.scene import Document, Scene, examples, scene
from tests.support.bench_machine import env_of
from tests.support.control_planes import ControlPlane


def small(document: Document) -> Document:
    """A Benchmark of few runs, as an overlay would make it: more of them show nothing more here."""
    if document["kind"] == "Benchmark":
        document["spec"]["repetitions"] = 5 if "gate" in document["spec"] else 1
        document["spec"]["workload"].get("scalingLaw", {}).get("grid", {}).update(steps=[20, 50, 110])
    return document


GIT = [small(one) for one in examples("digits-service/service.yaml", "*/*.yaml")]
SAMPLE = [
    small(one) for one in examples("digits-service/service.yaml", "digits-service/*.yaml", "bench-serving/*.yaml")
]
JOBS = {one["metadata"]["name"]: one["spec"] for one in GIT if one["kind"] == "TrainingJob"}
BENCHES = [one["metadata"]["name"] for one in GIT if one["kind"] == "Benchmark"]
SERVICES = [one["metadata"]["name"] for one in GIT if one["kind"] == "InferenceService"]
EXPECTED = {
    ("TrainingJob", "Pending", "Progressing"),
    ("TrainingJob", "Running", "Healthy"),
    ("TrainingJob", "Suspended", "Suspended"),
    ("TrainingJob", "Failed", "Degraded"),
    ("TrainingJob", "Succeeded", "Healthy"),
    ("InferenceService", "TrainingJobNotDone", "Progressing"),
    ("InferenceService", "Canary", "Progressing"),
    ("InferenceService", "CorruptCheckpoint", "Degraded"),
    ("InferenceService", "Live", "Healthy"),
    ("Benchmark", "Running", "Progressing"),
    ("Benchmark", "Suspended", "Suspended"),
    ("Benchmark", "Succeeded", "Degraded"),  # by its gate
    ("Benchmark", "Succeeded", "Healthy"),
}
"""(kind, phase or reason, what Argo CD shows) that these lives pass through at least."""
FAILING = ["chaos-deepspeed", "digits-deepspeed"]


def of(names: Iterable[str], word: str) -> dict[str, str]:
    return dict.fromkeys(sorted(names), word)


async def test_every_example_lives_its_whole_life_without_a_difference_to_git(control_plane: ControlPlane) -> None:
    async with scene(control_plane, GIT, SAMPLE) as it:
        for place in it.places:
            place.node.held, place.node.is_idle, place.node.holds_trials = set(JOBS), True, True
        await it.sync()
        assert await it.differences() == []
        async with it.operator():
            await begin(it)
            await resize_suspend_and_resume(it)
            await break_and_mend(it)
            await end(it)
            await roll_out_and_back(it)
            await outlive_the_end(it)
        await meet_another_version(it)
    assert it.healths >= EXPECTED, EXPECTED - it.healths


async def begin(it: Scene) -> None:
    await it.until(TRAINING_JOBS, JOBS, lambda status: status["phase"] == "Pending")
    await it.until(INFERENCE_SERVICES, SERVICES, bool)
    assert await it.differences() == []
    assert await it.words(TRAINING_JOBS) == of(JOBS, "Progressing")
    for place in it.places:
        place.node.is_idle = False
    await it.until(TRAINING_JOBS, JOBS, lambda status: status.get("phase") == "Running")
    assert await it.differences() == []
    assert await it.words(TRAINING_JOBS) == of(JOBS, "Healthy")
    assert await it.words(INFERENCE_SERVICES) == of(SERVICES, "Progressing")
    assert await it.words(BENCHMARKS) == of(BENCHES, "Progressing")


async def resize_suspend_and_resume(it: Scene) -> None:
    large = [
        name
        for name, spec in JOBS.items()
        if spec["workers"]["max"] > 1
        and not {"chaos", "parallelism"} & spec.keys()  # whose replicas are of two workers
    ]
    await it.commit(TRAINING_JOBS, large, workers={"min": 1, "max": 1})
    await it.until(TRAINING_JOBS, large, lambda status: (status.get("world"), status["phase"]) == (1, "Running"))
    assert await it.differences() == []
    for resource, names in ((TRAINING_JOBS, list(JOBS)), (BENCHMARKS, BENCHES)):
        await it.commit(resource, names, suspend=True)
    for resource, names in ((TRAINING_JOBS, list(JOBS)), (BENCHMARKS, BENCHES)):
        await it.until(resource, names, lambda status: status.get("phase") == "Suspended")
    assert await it.differences() == []
    assert await it.words(TRAINING_JOBS) == of(JOBS, "Suspended")
    assert await it.words(BENCHMARKS) == of(BENCHES, "Suspended")
    for resource, names in ((TRAINING_JOBS, list(JOBS)), (BENCHMARKS, BENCHES)):
        await it.commit(resource, names, suspend=False)
    await it.until(TRAINING_JOBS, JOBS, lambda status: status["phase"] == "Running")
    assert await it.differences() == []


async def break_and_mend(it: Scene) -> None:
    def crash() -> None:
        for place in it.places:
            for name in FAILING:
                place.node.crash(name)

    for restarts in range(1, Budgets().crash + 1):
        crash()
        is_back = ("Running", restarts)
        await it.until(
            TRAINING_JOBS,
            FAILING,
            lambda status, is_back=is_back: (status["phase"], status["restarts"]["total"]) == is_back,
        )
    crash()
    await it.until(TRAINING_JOBS, FAILING, lambda status: status["phase"] == "Failed")
    assert await it.differences() == []
    words = await it.words(TRAINING_JOBS)
    assert {name: words[name] for name in FAILING} == of(FAILING, "Degraded")
    await it.commit(TRAINING_JOBS, FAILING, recovery={"budgets": {"crash": 10}})
    await it.until(TRAINING_JOBS, FAILING, lambda status: status["phase"] == "Running")
    assert await it.differences() == []


async def end(it: Scene) -> None:
    for place in it.places:
        place.node.held, place.node.holds_trials, place.node.verdicts = set(), False, {"after": "Regressed"}
    await it.until(TRAINING_JOBS, JOBS, lambda status: status["phase"] == "Succeeded")
    await it.until(BENCHMARKS, BENCHES, lambda status: status["phase"] == "Succeeded", 180)
    await it.until(INFERENCE_SERVICES, SERVICES, lambda status: status["reason"] == "Live")
    assert await it.differences() == []
    assert await it.words(TRAINING_JOBS) == of(JOBS, "Healthy")
    assert await it.words(INFERENCE_SERVICES) == of(SERVICES, "Healthy")
    assert await it.words(BENCHMARKS) == of(BENCHES, "Healthy") | {"after": "Degraded"}
    for place in it.places:
        place.node.verdicts = {"after": "Passed"}
    await it.commit(BENCHMARKS, ["after"], gate={"minimumEffectPercent": 30})
    await it.until(BENCHMARKS, ["after"], lambda status: status.get("verdict") == "Passed")
    assert await it.differences() == []
    assert await it.words(BENCHMARKS) == of(BENCHES, "Healthy")


async def roll_out_and_back(it: Scene) -> None:
    def serves(job: str) -> dict[str, Any]:
        return {"modelRef": {"trainingJob": {"name": job}}}

    await it.commit(INFERENCE_SERVICES, ["digits"], **serves("digits-v2"))
    await it.until(INFERENCE_SERVICES, ["digits"], lambda status: status["reason"] == "Canary")
    assert await it.differences() == []
    assert (await it.words(INFERENCE_SERVICES))["digits"] == "Progressing"
    for place in it.places:
        place.node.sound = {one["status"]["stable"] for one in await place.cluster.list(INFERENCE_SERVICES)}
    await it.commit(INFERENCE_SERVICES, ["digits"], **serves("digits-hasty"))
    await it.until(INFERENCE_SERVICES, ["digits"], lambda status: condition(status, "RolledBack") == "True")
    assert await it.differences() == []
    assert (await it.words(INFERENCE_SERVICES))["digits"] == "Degraded"
    await it.commit(INFERENCE_SERVICES, ["digits"], **serves("digits-v1"))
    await it.until(INFERENCE_SERVICES, ["digits"], lambda status: status["reason"] == "Live")
    assert await it.differences() == []
    assert await it.words(INFERENCE_SERVICES) == of(SERVICES, "Healthy")


async def outlive_the_end(it: Scene) -> None:
    await it.commit(TRAINING_JOBS, JOBS, ttlSecondsAfterFinished=1)
    await it.commit(BENCHMARKS, BENCHES, ttlSecondsAfterFinished=1)
    await it.until_gone("TrainingJob", "Benchmark")
    await it.until(TRAINING_JOBS, JOBS, lambda status: "cleanedUpAt" in status)
    assert await it.differences() == []
    assert await it.words(TRAINING_JOBS) == of(JOBS, "Healthy")
    assert await it.words(BENCHMARKS) == of(BENCHES, "Healthy")


async def meet_another_version(it: Scene) -> None:
    """An operator with other images takes over, and a sync follows: what has ended stays as it ended."""
    for place in it.places:
        place.node.sound = None
    before = await it.statuses(TRAINING_JOBS, BENCHMARKS)
    images = dict.fromkeys(("flax_image", "deepspeed_image", "serve_image", "bench_image"), "another/version:2")
    async with it.operator(OperatorSettings(**images)):
        await it.until(INFERENCE_SERVICES, SERVICES, lambda status: status["reason"] in ("Canary", "Live"))
        assert await it.sync() == []
        assert await it.differences() == []
        await it.until_gone("TrainingJob", "Benchmark")
        assert await it.statuses(TRAINING_JOBS, BENCHMARKS) == before
        await begin_anew(it)


async def begin_anew(it: Scene) -> None:
    """A job that is deleted and made again under its name is another run, with a folder of its own in the store."""
    again = "digits-v1"
    for place in it.places:
        place.node.held = {again}
        await place.cluster.delete(TRAINING_JOBS, again)
    assert await it.sync() == [f"TrainingJob {again}"] * len(it.places)
    for place in it.places:
        place.repository.commits["TrainingJob", again] = 0
    await it.until(TRAINING_JOBS, [again], lambda status: status["phase"] == "Running")
    assert await it.differences() == []
    for place in it.places:
        job = await place.cluster.get(TRAINING_JOBS, again)
        assert (job["status"]["fence"], job["status"].get("resumedFrom")) == (1, None)
        pod = await place.cluster.get(PODS, f"{again}-worker-0")
        assert env_of(pod)[env.STORE].endswith(f"/{place.cluster.namespace}/{again}/{job['metadata']['uid']}")


def condition(status: Document, kind: str) -> str | None:
    """Its status; None: nothing is said of it."""
    found = [one["status"] for one in status.get("conditions", []) if one["type"] == kind]
    return found[0] if found else None
