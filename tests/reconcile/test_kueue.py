"""A job in a Kueue queue, under a whole operator: it waits, is preempted and resumed, and gives back what it holds.

Kueue and a node are played; API servers and operator are real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from capstan_operator.cluster.kinds import PODS, TRAINING_JOBS
from capstan_operator.cluster.limiter import Lane
from capstan_operator.decide.training_job import decide_training_job
from tests.support.control_planes import free_port
from tests.support.fake_kueue import FakeKueue
from tests.support.fake_supervisors import serve_fake_supervisors
from tests.support.looks import SPEC
from tests.support.operators import run_one
from tests.support.real_cluster import Cluster

LABELS = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "low"}
NAME = "digits"


@pytest.fixture
async def kueue(cluster: Cluster) -> AsyncIterator[FakeKueue]:
    """With an operator beside it."""
    async with serve_fake_supervisors(free_port()) as supervisors:
        kueue = FakeKueue(cluster, supervisors)
        async with run_one(cluster.kubeconfig, decide_training_job, supervisor_port=supervisors.port):
            running = asyncio.create_task(kueue.run())
            try:
                yield kueue
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


async def status_once(cluster: Cluster, what: str, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The status of the job once `holds` does."""
    status: dict[str, Any] = {}
    try:
        async with asyncio.timeout(60):
            while not status or not holds(status):
                await asyncio.sleep(0.05)
                status = (await cluster.get(TRAINING_JOBS, NAME)).get("status", {})
    except TimeoutError:
        told = {field: status.get(field) for field in ("phase", "reason", "message", "queue", "fence", "restarts")}
        raise AssertionError(f"no {what}, but {told}") from None
    return status


async def pods_once(cluster: Cluster, what: str, holds: Callable[[list[dict[str, Any]]], object]) -> None:
    pods: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(60):
            while not holds(pods := await cluster.list(PODS)):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"no {what}, but {[pod['metadata'] for pod in pods]}") from None


async def test_a_job_waits_is_preempted_resumes_and_is_suspended(cluster: Cluster, kueue: FakeKueue) -> None:
    await cluster.create(TRAINING_JOBS, NAME, metadata={"name": NAME, "labels": LABELS}, spec=SPEC)
    status = await status_once(cluster, "waiting", lambda seen: seen.get("reason") == "WaitingForQuota")
    (group,) = status["queue"]["groups"]
    assert (status["phase"], group["size"], "activeSince" in status) == ("Pending", 2, False)
    assert status["message"].startswith("queue team-a has not admitted the group of 2 pods")
    for pod in await cluster.list(PODS):
        assert LABELS.items() <= pod["metadata"]["labels"].items()

    kueue.has_quota = True
    await status_once(cluster, "first attempt", lambda seen: seen.get("fence") == 1)
    await status_once(cluster, "training", lambda seen: kueue.train(1, 5) or seen["phase"] == "Running")
    await kueue.preempt()
    status = await status_once(
        cluster, "waiting anew", lambda seen: (seen["reason"], seen["fence"]) == ("WaitingForQuota", 1)
    )
    assert (status["restarts"]["total"], status.get("failure")) == (0, None)
    assert status["recoveries"][-1]["cause"] == "Preempted"
    assert status["queue"]["groups"] == [group], "it has lost its place in the queue"
    await pods_once(
        cluster,
        "replacements",
        lambda pods: [pod["metadata"]["name"] for pod in pods] == [f"{NAME}-worker-0-1", f"{NAME}-worker-1-1"],
    )

    kueue.has_quota = True
    await status_once(cluster, "second attempt", lambda seen: seen["fence"] == 2)
    status = await status_once(cluster, "training", lambda seen: kueue.train(2, 9) or seen["phase"] == "Running")
    assert (status["restarts"]["total"], status["recoveries"][-1]["action"]) == (0, "Resume")
    suspend = {"spec": {"suspend": True}}
    await cluster.client.merge_patch(TRAINING_JOBS, cluster.namespace, NAME, suspend, lane=Lane.SYSTEM)
    await status_once(cluster, "suspension", lambda seen: seen["phase"] == "Suspended")
    assert (await cluster.names(PODS), kueue.over) == ([], {group["name"]})
    assert (await cluster.get(TRAINING_JOBS, NAME))["metadata"]["generation"] == 2, "somebody wrote to the spec"
    assert kueue.violations == []


async def test_an_elastic_job_waits_for_what_it_lacks_while_it_trains_and_leaves_nothing(
    cluster: Cluster, kueue: FakeKueue
) -> None:
    spec = SPEC | {"workers": {"max": 2, "min": 1}}
    await cluster.create(TRAINING_JOBS, NAME, metadata={"name": NAME, "labels": LABELS}, spec=spec)
    await pods_once(cluster, "first group", lambda pods: len(pods) == 1 and pods[0]["status"].get("conditions"))
    kueue.has_quota = True
    await pods_once(cluster, "second group", lambda pods: len(pods) == 2)
    await status_once(cluster, "an attempt", lambda seen: seen.get("fence"))
    await status_once(cluster, "training", lambda seen: kueue.train(seen["fence"], 5) or seen["phase"] == "Running")
    status = await status_once(cluster, "both groups", lambda seen: len(seen["queue"]["groups"]) == 2)
    assert [(group["first"], group["size"]) for group in status["queue"]["groups"]] == [(0, 1), (1, 1)]
    await pods_once(cluster, "all of them run", lambda pods: all(pod["status"]["phase"] == "Running" for pod in pods))

    await cluster.delete(TRAINING_JOBS, NAME)
    for name in await cluster.names(PODS):  # as the garbage collector does
        await cluster.delete(PODS, name)
    await pods_once(cluster, "end", lambda pods: not pods)
    assert kueue.over == {group["name"] for group in status["queue"]["groups"]}
    assert kueue.violations == []
