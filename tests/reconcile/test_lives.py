"""Whole operators, from the first start to the last stop, against a well-behaved API server."""

from __future__ import annotations

import asyncio

import aiohttp

from capstan_operator.cluster.kinds import EVENTS, LEASES, PODS, SECRETS, TRAINING_JOBS
from capstan_operator.cluster.lease import LeaseTimes
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed
from tests.support.fake_api import FakeApi, names
from tests.support.fake_node import FakeNode
from tests.support.operators import eventually, run_one
from tests.support.small_decide import decide_small, job_document


async def test_a_job_lives_from_apply_to_succeeded_within_its_budget_of_writes(api: FakeApi, node: FakeNode) -> None:
    async with run_one(api.kubeconfig, decide_small, supervisor_port=node.supervisors.port):
        api.put(TRAINING_JOBS, job_document("train", workers=3))
        await eventually(lambda: len(api.of(PODS)) == 3)
        await node.start_all()
        await eventually(lambda: all(one.memberships for one in node.by_pod.values()))
        for one in node.by_pod.values():
            one.become(fence=1)
        node.finish_all()
        await eventually(lambda: api.get(TRAINING_JOBS, "train").get("status", {}).get("phase") == "Succeeded")
        await asyncio.sleep(0.3)
    assert names(api.of(PODS)) == ["train-0-0", "train-1-0", "train-2-0"]
    assert names(api.of(SECRETS)) == ["capstan-operator-key", "train-run"]
    assert {one.tokens.pop() for one in node.by_pod.values()} != {"Bearer "}
    writes = api.writes("pods", "secrets", "trainingjobs", "trainingjobs/status")
    assert len([call for call in writes if call.namespace == "default"]) <= 3 + 5
    assert [event["reason"] for event in api.of(EVENTS)] == ["Pending", "Running", "Succeeded"]
    assert api.get(TRAINING_JOBS, "train")["metadata"]["generation"] == 1
    assert [call for call in api.calls if call.status == 403] == []


async def test_a_restarted_operator_writes_nothing(api: FakeApi, node: FakeNode) -> None:
    port = node.supervisors.port
    async with run_one(api.kubeconfig, decide_small, supervisor_port=port):
        for name in ("one", "two"):
            api.put(TRAINING_JOBS, job_document(name))
        await eventually(lambda: len(api.of(PODS)) == 4)
        await node.start_all()
        for one in node.by_pod.values():
            one.become(fence=1, step=70)
        await eventually(
            lambda: [job["status"].get("step") for job in api.of(TRAINING_JOBS) if "status" in job] == [70, 70]
        )
        await asyncio.sleep(0.3)
    before = len(api.writes())
    async with run_one(api.kubeconfig, decide_small, supervisor_port=port) as operator:
        await eventually(lambda: operator.value("reconciles_total", result="unchanged") >= 4)
        await asyncio.sleep(0.5)
        assert operator.value("reconciles_total", result="written") == 0
    assert len(api.writes()) == before


async def test_a_failed_pod_is_replaced_and_the_fence_grows(api: FakeApi, node: FakeNode) -> None:
    async with run_one(api.kubeconfig, decide_small, supervisor_port=node.supervisors.port):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2)
        await node.start_all()
        await eventually(lambda: all(one.memberships for one in node.by_pod.values()))
        for one in node.by_pod.values():
            one.become(fence=1)
        node.fail("train-1-0")
        await eventually(lambda: names(api.of(PODS)) == ["train-0-0", "train-1-1"])
        await node.start("train-1-1")
        await eventually(lambda: [m.fence for m in node.by_pod["train-0-0"].memberships][-1] == 2)
        await eventually(lambda: [m.fence for m in node.by_pod["train-1-1"].memberships][-1] == 2)
    deleted = [call for call in api.writes("pods") if call.verb == "delete"]
    assert [(call.name, call.body["preconditions"]) for call in deleted] == [
        ("train-1-0", {"uid": deleted[0].body["preconditions"]["uid"]})
    ]


async def test_a_deleted_job_is_forgotten(api: FakeApi, node: FakeNode) -> None:
    async with run_one(api.kubeconfig, decide_small, supervisor_port=node.supervisors.port) as operator:
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2)
        await asyncio.sleep(0.2)
        api.remove(TRAINING_JOBS, "default", "train")
        # Pods and jobs come by two watches: it may hear of the pods first, and make new ones for the collector to take,
        # some of them while it hears of the job.
        async with asyncio.timeout(10):
            before = -1
            while before != len(api.writes()):
                before = len(api.writes())
                await asyncio.sleep(0.3)
        await eventually(lambda: operator.value("jobs") == 0 and operator.value("pods") == 0)
        assert (len(api.writes()), api.of(PODS)) == (before, [])


async def test_a_decision_that_raises_is_tried_again_and_hurts_nobody_else(api: FakeApi) -> None:
    def decide(observed: Observed, now: float) -> Decision:
        if observed.job.name == "poisoned":
            raise ZeroDivisionError("a bug")
        return decide_small(observed, now)

    async with run_one(api.kubeconfig, decide) as operator:
        api.put(TRAINING_JOBS, job_document("poisoned"))
        api.put(TRAINING_JOBS, job_document("healthy"))
        await eventually(lambda: operator.value("reconciles_total", result="error") >= 2)
        assert names(api.of(PODS)) == ["healthy-0-0", "healthy-1-0"]
        assert not operator.task.done()


async def test_jobs_are_waited_for_until_the_custom_resource_exists(api: FakeApi) -> None:
    api.not_served = {"trainingjobs", "inferenceservices", "benchmarks"}
    async with run_one(api.kubeconfig, decide_small) as operator, aiohttp.ClientSession() as session:
        await eventually(lambda: operator.task.done() or len(api.calls) >= 0)
        await asyncio.sleep(0.5)
        async with session.get(f"{operator.url}/readyz") as response:
            assert (response.status, await response.text()) == (
                503,
                "TrainingJobs are unknown to the API server: kubectl apply -f crds/\n",
            )
        async with session.get(f"{operator.url}/healthz") as response:
            assert response.status == 200
        api.not_served = {
            "inferenceservices",
            "benchmarks",
        }  # CRDs that are older than the operator keep no job waiting
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2)
        async with session.get(f"{operator.url}/readyz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")


async def test_a_hint_brings_news_at_once(api: FakeApi, node: FakeNode) -> None:
    async with (
        run_one(api.kubeconfig, decide_small, supervisor_port=node.supervisors.port, poll_seconds=60) as operator,
        aiohttp.ClientSession() as session,
    ):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2)
        await node.start_all()
        await eventually(lambda: all(one.memberships for one in node.by_pod.values()))
        await asyncio.sleep(0.3)
        node.by_pod["train-0-0"].become(fence=1, step=30)
        hint = {"namespace": "default", "job": "train", "pod": "train-0-0"}
        async with session.post(f"{operator.url}/hint", json=hint) as response:
            assert response.status == 202
        await eventually(lambda: api.get(TRAINING_JOBS, "train")["status"].get("step") == 30, seconds=5)


async def test_a_stop_gives_the_lease_back_and_the_standby_acts_at_once(api: FakeApi) -> None:
    times = LeaseTimes(duration=60, renew_deadline=40, retry=0.2)
    async with run_one(api.kubeconfig, decide_small, lease=times) as first:
        await eventually(lambda: first.value("leader") == 1)
        async with run_one(api.kubeconfig, decide_small, lease=times) as second:
            await asyncio.sleep(0.5)
            api.put(TRAINING_JOBS, job_document("before"))
            await eventually(lambda: len(api.of(PODS)) == 2 and second.value("pods") == 2 and second.value("jobs") == 1)
            assert (first.value("leader"), second.value("leader")) == (1, 0)
            assert [second.value("queue_depth", priority=word) for word in ("repair", "normal", "background")] == [
                0
            ] * 3
            lists = sum(call.verb == "list" for call in api.calls)
            await first.stop()
            api.put(TRAINING_JOBS, job_document("after"))
            await eventually(lambda: len(api.of(PODS)) == 4, seconds=5)
            assert second.value("leader") == 1
            assert sum(call.verb == "list" for call in api.calls) == lists  # its caches were hot
    assert api.get(LEASES, "capstan-operator", "capstan")["spec"]["holderIdentity"] == ""


async def test_after_a_crash_the_standby_takes_over_without_doing_anything_twice(api: FakeApi) -> None:
    async with run_one(api.kubeconfig, decide_small) as first, run_one(api.kubeconfig, decide_small) as second:
        await eventually(lambda: first.value("leader") + second.value("leader") == 1)
        leader, standby = (first, second) if first.value("leader") else (second, first)
        api.put(TRAINING_JOBS, job_document("before"))
        await eventually(lambda: len(api.of(PODS)) == 2)
        await asyncio.sleep(0.2)
        leader.task.cancel()
        await asyncio.gather(leader.task, return_exceptions=True)
        before = len(api.writes())
        await eventually(lambda: standby.value("leader") == 1, seconds=20)
        api.put(TRAINING_JOBS, job_document("after"))
        await eventually(lambda: len(api.of(PODS)) == 4)
        created = [call.name or call.body["metadata"]["name"] for call in api.writes("pods")[2:]]
        assert sorted(created) == ["after-0-0", "after-1-0"]
        assert all("before" not in (call.name + str(call.body)) for call in api.writes()[before:])


async def test_a_leader_cut_off_from_the_lease_stops_working_and_starts_again(api: FakeApi) -> None:
    async with run_one(api.kubeconfig, decide_small) as operator:
        await eventually(lambda: operator.value("leader") == 1)
        api.fail("update", "leases", times=100_000, status=503)
        api.fail("get", "leases", times=100_000, status=503)
        await eventually(lambda: operator.value("leader") == 0)
        api.put(TRAINING_JOBS, job_document("train"))
        await asyncio.sleep(0.5)
        assert api.of(PODS) == []
        api.faults.clear()
        await eventually(lambda: len(api.of(PODS)) == 2)
