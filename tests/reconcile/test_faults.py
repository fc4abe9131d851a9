"""The same operators when the API server, the network and other people misbehave."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from capstan_operator.api.meta import API_VERSION, LABEL_INCARNATION, LABEL_MANAGED_BY, LABEL_WORKER
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.cluster import safety_net
from capstan_operator.cluster.kinds import EVENTS, PODS, SECRETS, TRAINING_JOBS
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed
from tests.support.fake_api import FakeApi, names
from tests.support.fake_node import FakeNode
from tests.support.operators import eventually, run_one
from tests.support.small_decide import FINISHED_AT, decide_small, job_document


def status_of(api: FakeApi, name: str = "train") -> dict[str, Any]:
    status: dict[str, Any] = api.get(TRAINING_JOBS, name).get("status", {})
    return status


def stranger_pod(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default", "labels": {LABEL_MANAGED_BY: "capstan"}},
        "status": {"phase": "Running"},
    }


async def test_a_create_whose_answer_was_lost_is_adopted(api: FakeApi) -> None:
    api.fail("create", "pods", times=2, loses_answer=True)
    async with run_one(api.kubeconfig, decide_small):
        api.put(TRAINING_JOBS, job_document("train", workers=3))
        await eventually(lambda: status_of(api).get("workers", {}).get("desired") == 3)
        await asyncio.sleep(0.3)
    assert names(api.of(PODS)) == ["train-0-0", "train-1-0", "train-2-0"]
    assert len(api.writes("pods")) == 3


async def test_pods_are_not_created_twice_while_the_watch_lags(api: FakeApi) -> None:
    async with run_one(api.kubeconfig, decide_small) as operator:
        await eventually(lambda: api.watches(PODS))
        api.muted.add("pods")
        api.put(TRAINING_JOBS, job_document("train", workers=4))
        await eventually(lambda: operator.value("pods") == 4)
        api.change(TRAINING_JOBS, "default", "train", lambda job: job["spec"].update(other=1))
        await eventually(lambda: status_of(api).get("observedGeneration") == 2)
        assert [call.status for call in api.calls if (call.verb, call.resource) == ("create", "pods")] == [201] * 4


async def test_a_strangers_pod_is_never_touched_and_status_and_an_event_say_so(api: FakeApi) -> None:
    stranger = api.put(PODS, stranger_pod("train-1-0"))
    async with run_one(api.kubeconfig, decide_small):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: status_of(api).get("reason") == "NameTaken")
        message = (
            "Pod default/train-1-0 exists and is not this TrainingJob's (it has no owner); delete it or rename the "
            "TrainingJob"
        )
        assert status_of(api)["message"] == message
        condition = status_of(api)["conditions"][0]
        assert (condition["type"], condition["status"], condition["reason"]) == ("Progressing", "False", "NameTaken")
        await eventually(lambda: [event["message"] for event in api.of(EVENTS)] == [message])
        await asyncio.sleep(1.0)  # tries go on, words are not repeated
        assert len(api.writes("trainingjobs/status")) == 1
        assert len(api.of(EVENTS)) == 1
        assert api.get(PODS, "train-1-0") == stranger
        api.remove(PODS, "default", "train-1-0")
        await eventually(lambda: len(api.of(PODS)) == 2 and status_of(api).get("phase") == "Pending")


async def test_a_strangers_secret_is_never_touched(api: FakeApi) -> None:
    secret = api.put(SECRETS, {"metadata": {"name": "train-run", "namespace": "default"}, "data": {"a": "b"}})
    async with run_one(api.kubeconfig, decide_small):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: status_of(api).get("reason") == "NameTaken")
    assert (api.get(SECRETS, "train-run"), api.of(PODS)) == (secret, [])


async def test_what_a_deleted_job_of_the_same_name_left_is_waited_for(api: FakeApi) -> None:
    owner = {"apiVersion": API_VERSION, "kind": "TrainingJob", "name": "train", "uid": "old", "controller": True}
    left = stranger_pod("train-1-0")
    left["metadata"] |= {"ownerReferences": [owner], "uid": "left", "resourceVersion": "7"}
    left["metadata"]["labels"] |= {LABEL_WORKER: "1", LABEL_INCARNATION: "0"}
    api.objects["pods", "default", "train-1-0"] = left
    async with run_one(api.kubeconfig, decide_small):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: status_of(api).get("reason") == "PredecessorLeaving")
        message = (
            "Pod default/train-1-0 is left of a deleted TrainingJob of the same name; this one starts when it is gone"
        )
        assert (status_of(api)["message"], status_of(api)["phase"]) == (message, "Pending")
        assert status_of(api)["conditions"][0]["status"] == "True"
        await eventually(lambda: [(e["type"], e["message"]) for e in api.of(EVENTS)] == [("Normal", message)])
        api.remove(PODS, "default", "train-1-0")
        await eventually(lambda: len(api.of(PODS)) == 2 and "reason" not in status_of(api))


async def test_how_a_job_ended_stays_on_status_when_it_cannot_be_cleared_away(api: FakeApi) -> None:
    def clear_away(observed: Observed, now: float) -> Decision:
        done = TrainingJobStatus.parse(ended)
        return Decision(status=done.model_copy(update={"cleaned_up_at": "later"}), delete_secrets=("train-run",))

    condition = {"type": "Succeeded", "status": "True", "reason": "Completed", "lastTransitionTime": FINISHED_AT}
    ended = {"phase": "Succeeded", "reason": "Completed", "message": "all 9 steps are done", "conditions": [condition]}
    api.put(TRAINING_JOBS, job_document("train") | {"status": ended})
    fault = api.fail("patch", "secrets", times=3, status=403)
    async with run_one(api.kubeconfig, clear_away):
        await eventually(lambda: fault.times == 1)
        assert status_of(api) == ended
        await eventually(lambda: status_of(api).get("cleanedUpAt") == "later")


async def test_a_used_up_quota_is_shown_until_there_is_room(api: FakeApi) -> None:
    fault = api.fail("create", "pods", times=1000, status=403)
    async with run_one(api.kubeconfig, decide_small):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: status_of(api).get("reason") == "ChildrenRefused")
        api.faults.remove(fault)
        await eventually(lambda: len(api.of(PODS)) == 2 and status_of(api)["fence"] == 1)


async def test_no_membership_is_pushed_before_its_fence_is_on_status(api: FakeApi, node: FakeNode) -> None:
    async with run_one(api.kubeconfig, decide_small, supervisor_port=node.supervisors.port):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2 and status_of(api))
        fault = api.fail("patch", "trainingjobs/status", times=1000, status=500)
        await node.start_all()
        await eventually(lambda: fault.times < 998)
        assert [one.memberships for one in node.by_pod.values()] == [[], []]
        api.faults.clear()
        await eventually(lambda: all(one.memberships for one in node.by_pod.values()))


async def test_a_membership_that_was_not_delivered_is_pushed_again(api: FakeApi, node: FakeNode) -> None:
    async with run_one(api.kubeconfig, decide_small, supervisor_port=node.supervisors.port) as operator:
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2)
        first = await node.start("train-0-0")
        await eventually(lambda: first.asked)
        first.answer = first.state.model_dump_json().encode()
        await node.start("train-1-0")
        await eventually(lambda: first.memberships and node.by_pod["train-1-0"].memberships)
        await eventually(lambda: len(first.memberships) >= 2)  # its state still shows the old fence
        assert operator.value("reconciles_total", result="error") == 0


async def test_a_job_recreated_under_its_name_does_not_get_the_status_of_the_old_one(api: FakeApi) -> None:
    async with run_one(api.kubeconfig, decide_small):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2 and status_of(api))
        await asyncio.sleep(0.2)
        api.muted.add("trainingjobs")  # the watch of jobs lags behind what follows
        api.remove(TRAINING_JOBS, "default", "train")
        again = api.put(TRAINING_JOBS, job_document("train", workers=1))
        await asyncio.sleep(0.5)
        api.muted.clear()
        api.end_watches(TRAINING_JOBS)
        await eventually(lambda: names(api.of(PODS)) == ["train-0-0"] and status_of(api).get("fence") == 1)
        owner = api.get(PODS, "train-0-0")["metadata"]["ownerReferences"][0]
        assert owner["uid"] == again["metadata"]["uid"]
        assert status_of(api)["workers"]["desired"] == 1


async def test_a_job_deleted_while_the_server_forgot_the_past_is_noticed(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety_net, "SETTLE_SECONDS", 0.1)
    async with run_one(api.kubeconfig, decide_small) as operator:
        for name in ("stays", "vanishes"):
            api.put(TRAINING_JOBS, job_document(name))
        await eventually(lambda: len(api.of(PODS)) == 4 and operator.value("jobs") == 2)
        api.muted.add("trainingjobs")
        api.remove(TRAINING_JOBS, "default", "vanishes")
        api.forget_history()
        api.muted.clear()
        api.end_watches(TRAINING_JOBS, error=410)
        await eventually(lambda: operator.value("jobs") == 1)
        await asyncio.sleep(0.3)
        assert names(api.of(PODS)) == ["stays-0-0", "stays-1-0"]


async def test_a_watch_error_that_ends_kopf_costs_a_restart_of_the_watch_only(api: FakeApi) -> None:
    async with run_one(api.kubeconfig, decide_small) as operator:
        await eventually(lambda: api.watches(TRAINING_JOBS) and operator.value("leader") == 1)
        api.end_watches(TRAINING_JOBS, error=500)
        await eventually(lambda: api.watches(TRAINING_JOBS) == 0)
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2)
        assert not operator.task.done()


async def test_a_status_that_somebody_edited_is_put_right(api: FakeApi) -> None:
    async with run_one(api.kubeconfig, decide_small):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: status_of(api).get("fence") == 1)
        api.change(TRAINING_JOBS, "default", "train", lambda job: job["status"].update(phase="Wrong", step=None))
        await eventually(lambda: status_of(api).get("phase") == "Pending")


async def test_a_crash_of_an_own_part_stops_the_process_with_its_name(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capstan_operator.cluster.events import EventWriter
    from capstan_operator.run import OperatorCrash

    async def crash(self: EventWriter) -> None:
        raise RuntimeError("unthinkable")

    monkeypatch.setattr(EventWriter, "run", crash)
    async with run_one(api.kubeconfig, decide_small) as operator:
        await asyncio.wait([operator.task], timeout=10)
        with pytest.raises(OperatorCrash, match=r"the events ended: RuntimeError\('unthinkable'\)"):
            operator.task.result()


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_of_faults_ends_with_exactly_what_was_wanted(api: FakeApi, node: FakeNode, seed: int) -> None:
    chance = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"status": 429, "retry_after": 0},
        {"status": 500},
        {"status": 503},
        {"status": 409},
        {"loses_answer": True},
        {"delay": 0.05},
    ]
    calls = [
        ("create", "pods"),
        ("patch", "trainingjobs/status"),
        ("patch", "secrets"),
        ("create", "events"),
        ("list", "pods"),
    ]

    async def storm() -> None:
        for _ in range(40):
            api.fail(*chance.choice(calls), **chance.choice(kinds))
            if chance.random() < 0.2:
                api.end_watches(chance.choice([PODS, TRAINING_JOBS]), error=chance.choice([None, 410, 500]))
            if chance.random() < 0.1:
                api.forget_history()
            await asyncio.sleep(0.03)

    async with run_one(api.kubeconfig, decide_small, supervisor_port=node.supervisors.port):
        weather = asyncio.create_task(storm())
        for number in range(6):
            api.put(TRAINING_JOBS, job_document(f"job-{number}"))
            await asyncio.sleep(0.1)
        await weather
        api.faults.clear()
        await eventually(lambda: len(api.of(PODS)) == 12, seconds=30)
        await node.start_all()
        await eventually(lambda: all(one.memberships for one in node.by_pod.values()), seconds=30)
        node.finish_all()
        await eventually(
            lambda: [job.get("status", {}).get("phase") for job in api.of(TRAINING_JOBS)] == ["Succeeded"] * 6,
            seconds=30,
        )
    created = [call.body["metadata"]["name"] for call in api.writes("pods") if call.verb == "create"]
    assert sorted(created) == sorted(f"job-{n}-{worker}-0" for n in range(6) for worker in range(2))
    assert {one.state.uid for one in node.by_pod.values()} == {job["metadata"]["uid"] for job in api.of(TRAINING_JOBS)}
