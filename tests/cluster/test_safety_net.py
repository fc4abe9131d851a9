"""The comparison that makes good what the watch of jobs misses."""

from __future__ import annotations

import asyncio

import pytest

from capstan_operator.cluster import safety_net as safety_net_module
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import TRAINING_JOBS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.safety_net import SafetyNet
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.work_queue import ObjectKey
from capstan_operator.metrics import Metrics
from capstan_operator.observe import OperatorSettings
from tests.support.fake_api import FakeApi
from tests.support.small_decide import job_document


@pytest.fixture
def store(metrics: Metrics) -> Store:
    return Store(lambda *_: None, token_of=lambda _: "t", settings=OperatorSettings(), metrics=metrics)


@pytest.fixture
def safety_net(client: KubeClient, store: Store, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> SafetyNet:
    monkeypatch.setattr(safety_net_module, "PATIENCE_SECONDS", 0.3)
    return SafetyNet(client, TRAINING_JOBS, store.jobs, lambda *_: None, None)


def known(store: Store) -> dict[str, str]:
    return {job.key.name: job.uid for job in store.jobs.all()}


async def test_what_the_watch_never_showed_is_fetched_and_what_is_gone_is_forgotten(
    api: FakeApi, safety_net: SafetyNet, store: Store
) -> None:
    for name in ("same", "missed", "vanished", "changed"):
        document = api.put(TRAINING_JOBS, job_document(name))
        if name != "missed":
            store.jobs.put(document)
    api.remove(TRAINING_JOBS, "default", "vanished")
    api.change(TRAINING_JOBS, "default", "changed", lambda job: job["spec"].update(x=1))
    await safety_net.compare()
    assert known(store) == {job["metadata"]["name"]: job["metadata"]["uid"] for job in api.of(TRAINING_JOBS)}
    changed = store.jobs.get(ObjectKey("default", "changed"))
    assert changed is not None
    assert changed.generation == 2
    assert sorted(call.name for call in api.calls if call.verb == "get") == ["changed", "missed", "vanished"]


async def test_a_job_made_anew_under_the_same_name_replaces_the_old_one(
    api: FakeApi, safety_net: SafetyNet, store: Store
) -> None:
    store.jobs.put(api.put(TRAINING_JOBS, job_document("job")))
    api.remove(TRAINING_JOBS, "default", "job")
    again = api.put(TRAINING_JOBS, job_document("job"))
    await safety_net.compare()
    assert known(store) == {"job": again["metadata"]["uid"]}


async def test_when_nothing_was_missed_one_list_is_all_it_costs(
    api: FakeApi, safety_net: SafetyNet, store: Store
) -> None:
    for number in range(3):
        store.jobs.put(api.put(TRAINING_JOBS, job_document(f"job-{number}")))
    await safety_net.compare()
    assert [call.verb for call in api.calls] == ["list"]


async def test_a_watch_that_is_only_slow_is_waited_for(
    api: FakeApi, safety_net: SafetyNet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety_net_module, "PATIENCE_SECONDS", 5.0)
    documents = [api.put(TRAINING_JOBS, job_document(f"job-{number}")) for number in range(4)]
    task = asyncio.create_task(safety_net.compare())
    for document in documents:
        await asyncio.sleep(0.15)
        store.jobs.put(document)
    await task
    assert [call.verb for call in api.calls] == ["list"]


async def test_a_job_deleted_while_the_list_was_read_is_not_waited_for(
    api: FakeApi, safety_net: SafetyNet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety_net_module, "PATIENCE_SECONDS", 60.0)
    document = api.put(TRAINING_JOBS, job_document("job"))
    store.jobs.put(document)
    task = asyncio.create_task(safety_net.compare())
    store.jobs.remove(ObjectKey("default", "job"), document["metadata"]["uid"])
    await asyncio.wait_for(task, 5)
    assert known(store) == {}


async def test_a_server_that_fails_leaves_everything_as_it_was(
    api: FakeApi, safety_net: SafetyNet, store: Store
) -> None:
    store.jobs.put(api.put(TRAINING_JOBS, job_document("job")))
    api.fail("list", "trainingjobs", status=500)
    with pytest.raises(ApiError):
        await safety_net.compare()
    assert len(known(store)) == 1
