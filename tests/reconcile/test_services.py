"""InferenceServices under a whole operator, against an API server in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from capstan_operator.cluster import gateway_routes, serving_store
from capstan_operator.cluster.kinds import (
    DEPLOYMENTS,
    EVENTS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    PODS,
    SECRETS,
    SERVICES,
    TRAINING_JOBS,
)
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed
from capstan_operator.run import OperatorCrash
from tests.support.fake_api import FakeApi, names
from tests.support.fake_deployments import FakeDeployments
from tests.support.looks import make_job, root
from tests.support.operators import RunningOperator, eventually, run_one

Document = dict[str, Any]


def leave_jobs_alone(observed: Observed, now: float) -> Decision:
    return Decision(status=observed.job.status)


def trained_job(step: int) -> Document:
    checkpoint = {"step": step, "root": root(step), "verifiedAt": "2026-01-01T00:00:00Z"}
    return {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "digits", "namespace": "default"},
        "spec": dict(make_job().spec),
        "status": {"checkpoint": checkpoint},
    }


def service(name: str = "served", **spec: Any) -> Document:
    return {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"modelRef": {"trainingJob": {"name": "digits", "track": True}}, "replicas": 2} | spec,
    }


def status_of(api: FakeApi, name: str = "served") -> Document:
    status: Document = api.get(INFERENCE_SERVICES, name).get("status", {})
    return status


def condition(api: FakeApi, kind: str) -> str | None:
    found = [one["status"] for one in status_of(api).get("conditions", []) if one["type"] == kind]
    return found[0] if found else None


@asynccontextmanager
async def running(api: FakeApi) -> AsyncIterator[tuple[RunningOperator, FakeDeployments]]:
    """An operator, and a cluster that runs what Deployments ask for."""
    deployments = FakeDeployments(api)

    async def match_for_ever() -> None:
        while True:
            deployments.match()
            await asyncio.sleep(0.05)

    async with run_one(api.kubeconfig, leave_jobs_alone) as operator:
        matching = asyncio.create_task(match_for_ever())
        try:
            yield operator, deployments
        finally:
            matching.cancel()
            await asyncio.gather(matching, return_exceptions=True)


def is_live(api: FakeApi, step: int) -> Callable[[], bool]:
    def holds() -> bool:
        status = status_of(api)
        return (status.get("reason"), status.get("served"), status.get("ready")) == ("Live", f"digits@{step}", "2/2")

    return holds


async def test_a_service_waits_for_a_checkpoint_then_serves_it_then_follows_the_next(api: FakeApi) -> None:
    async with running(api):
        api.put(INFERENCE_SERVICES, service())
        await eventually(lambda: status_of(api).get("reason") == "TrainingJobNotFound")
        assert names(api.of(DEPLOYMENTS)) == []
        api.put(TRAINING_JOBS, trained_job(100))
        await eventually(is_live(api, 100))
        first = status_of(api)["stable"]
        assert names(api.of(DEPLOYMENTS)) == [first]
        assert names(api.of(SERVICES)) == ["served", first]
        assert names(api.of(SECRETS)) == ["capstan-operator-key", first]
        assert [condition(api, kind) for kind in ("Accepted", "Serving", "UpToDate")] == ["True"] * 3
        api.change(TRAINING_JOBS, "default", "digits", lambda job: job.update(status=trained_job(200)["status"]))
        await eventually(lambda: status_of(api).get("rollout", {}).get("phase") == "Holding", seconds=20)
        second = status_of(api)["rollout"]["candidate"]
        await eventually(is_live(api, 200), seconds=30)
        await eventually(lambda: names(api.of(DEPLOYMENTS)) == [second])
        assert names(api.of(SERVICES)) == ["served", second]
    assert [call for call in api.calls if call.status == 403] == []
    assert api.get(INFERENCE_SERVICES, "served")["metadata"]["generation"] == 1
    about = {event["involvedObject"]["kind"] for event in api.of(EVENTS)}
    reasons = [event["reason"] for event in api.of(EVENTS)]
    assert about == {"InferenceService"}
    assert reasons.count("Promoted") == 2


COMPARING = {"rollout": {"strategy": {"canary": {"gates": {"minAgreement": 0.9}}}}}


@pytest.mark.parametrize(("spec", "more"), [({}, []), (COMPARING, ["served-proven"])])
async def test_a_restarted_operator_writes_nothing_to_a_service_that_is_as_it_should_be(
    api: FakeApi, spec: Document, more: list[str]
) -> None:
    api.put(TRAINING_JOBS, trained_job(100))
    api.put(INFERENCE_SERVICES, service(**spec))
    async with running(api):
        await eventually(is_live(api, 100))
        stable = status_of(api)["stable"]
        await eventually(lambda: names(api.of(SERVICES)) == sorted(["served", stable, *more]))
    before = len(api.calls)
    async with running(api) as (operator, _):
        await eventually(lambda: operator.value("reconciles_total", result="unchanged") >= 2)
        await asyncio.sleep(0.5)
    writes = [call for call in api.calls[before:] if call.is_write and call.resource != "leases"]
    assert writes == []
    for name in more:
        assert api.get(SERVICES, name)["spec"]["selector"]["capstan.dev/revision"] == stable


async def test_a_corrupt_checkpoint_is_told_and_never_replaces_what_serves(api: FakeApi) -> None:
    async with running(api) as (_, deployments):
        api.put(TRAINING_JOBS, trained_job(100))
        api.put(INFERENCE_SERVICES, service())
        await eventually(is_live(api, 100))
        first = status_of(api)["stable"]

        class Broken(dict[str, Document]):
            def __contains__(self, revision: object) -> bool:
                return revision != first

            def __getitem__(self, revision: str) -> Document:
                return {"exitCode": 65, "message": "shards/r0-0.safetensors: leaf 3 does not match"}

        deployments.broken = Broken()
        api.change(TRAINING_JOBS, "default", "digits", lambda job: job.update(status=trained_job(200)["status"]))
        await eventually(lambda: condition(api, "RolledBack") == "True")
        await eventually(lambda: names(api.of(DEPLOYMENTS)) == [first])
        status = status_of(api)
        failed = next(one for one in status["revisions"] if "failure" in one)
        assert (failed["step"], failed["failure"]["reason"], failed["failure"]["exitCode"]) == (
            200,
            "CorruptCheckpoint",
            65,
        )
        assert "leaf 3 does not match" in failed["failure"]["message"]
        assert (condition(api, "Serving"), condition(api, "UpToDate"), status["served"]) == (
            "True",
            "False",
            "digits@100",
        )
        assert api.get(SERVICES, "served")["spec"]["selector"]["capstan.dev/revision"] == first


async def test_somebody_elses_service_at_the_stable_name_is_never_touched(api: FakeApi) -> None:
    strangers = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "served", "namespace": "default"},
        "spec": {"selector": {"app": "theirs"}},
    }
    api.put(SERVICES, strangers)
    api.put(TRAINING_JOBS, trained_job(100))
    async with running(api):
        api.put(INFERENCE_SERVICES, service())
        await eventually(lambda: status_of(api).get("reason") == "NameTaken")
        assert status_of(api)["message"] == (
            "Service default/served exists and is not this InferenceService's (it has no owner); delete it or rename "
            "the InferenceService"
        )
        assert api.get(SERVICES, "served")["spec"]["selector"] == {"app": "theirs"}
        api.remove(SERVICES, "default", "served")
        await eventually(is_live(api, 100), seconds=30)


async def test_a_child_that_lost_its_label_is_neither_taken_for_gone_nor_given_up(api: FakeApi) -> None:
    async with running(api):
        api.put(TRAINING_JOBS, trained_job(100))
        api.put(INFERENCE_SERVICES, service())
        await eventually(is_live(api, 100))
        first = status_of(api)["stable"]
        for resource, name in ((SERVICES, "served"), (DEPLOYMENTS, first)):
            api.change(
                resource,
                "default",
                name,
                lambda one: one["metadata"].update(
                    labels={key: value for key, value in one["metadata"]["labels"].items() if "managed-by" not in key}
                ),
            )
            await eventually(
                lambda resource=resource, name=name: (
                    "app.kubernetes.io/managed-by" in api.get(resource, name)["metadata"]["labels"]
                )
            )
        await eventually(is_live(api, 100))
        api.change(TRAINING_JOBS, "default", "digits", lambda job: job.update(status=trained_job(200)["status"]))
        await eventually(is_live(api, 200), seconds=30)
        await eventually(lambda: names(api.of(DEPLOYMENTS)) == [status_of(api)["stable"]])
        assert status_of(api)["stable"] != first


async def test_a_selector_that_somebody_set_by_hand_does_not_stay(api: FakeApi) -> None:
    async with running(api):
        api.put(TRAINING_JOBS, trained_job(100))
        api.put(INFERENCE_SERVICES, service())
        await eventually(is_live(api, 100))
        first = status_of(api)["stable"]
        api.change(SERVICES, "default", "served", lambda one: one["spec"]["selector"].update(tier="none"))
        api.change(TRAINING_JOBS, "default", "digits", lambda job: job.update(status=trained_job(200)["status"]))
        await eventually(is_live(api, 200), seconds=30)
    selector = api.get(SERVICES, "served")["spec"]["selector"]
    assert selector == {"capstan.dev/service": "served", "capstan.dev/revision": status_of(api)["stable"]}
    assert status_of(api)["stable"] != first


async def test_what_is_refused_is_told_and_keeps_neither_status_nor_traffic_from_being_true(api: FakeApi) -> None:
    async with running(api) as (_, deployments):
        api.put(TRAINING_JOBS, trained_job(100))
        api.put(INFERENCE_SERVICES, service())
        await eventually(is_live(api, 100))
        fault = api.fail("patch", "deployments", times=1000, status=403)
        api.change(TRAINING_JOBS, "default", "digits", lambda job: job.update(status=trained_job(200)["status"]))
        await eventually(lambda: status_of(api).get("reason") == "ChildrenRefused")
        assert (condition(api, "Serving"), status_of(api)["ready"]) == ("True", "2/2")
        deployments.stop()
        for pod in api.of(PODS):
            api.remove(PODS, "default", pod["metadata"]["name"])
        await eventually(lambda: condition(api, "Serving") == "False")
        assert (status_of(api)["reason"], status_of(api)["ready"]) == ("ChildrenRefused", "0/2")
        deployments.go_on()
        fault.times = 0
        await eventually(is_live(api, 200), seconds=40)


async def test_an_extension_that_cannot_be_listed_keeps_only_who_needs_it_waiting(api: FakeApi) -> None:
    api.not_served.discard("httproutes")
    api.fail("list", "httproutes", times=1_000_000, status=403)
    api.put(TRAINING_JOBS, trained_job(100))
    async with running(api) as (operator, _), aiohttp.ClientSession() as session:
        api.put(INFERENCE_SERVICES, service())
        gateway = {"parentRefs": [{"name": "public"}]}
        api.put(INFERENCE_SERVICES, service("gated", gateway=gateway))
        await eventually(is_live(api, 100), seconds=20)
        assert status_of(api, "gated") == {}
        async with session.get(f"{operator.url}/readyz") as response:
            assert response.status == 200


async def test_a_fault_in_the_watch_of_an_extension_ends_the_operator(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a bug")

    api.not_served.discard("httproutes")
    async with running(api) as (operator, _):
        await eventually(lambda: api.watches(HTTP_ROUTES))
        monkeypatch.setattr(gateway_routes, "observe_gateway_route", fail)
        monkeypatch.setattr(serving_store, "observe_gateway_route", fail)
        owner = {"kind": "InferenceService", "name": "served", "uid": "s", "controller": True}
        metadata = {"name": "served", "namespace": "default", "ownerReferences": [owner]}
        labels = {"app.kubernetes.io/managed-by": "capstan"}
        api.put(HTTP_ROUTES, {"metadata": metadata | {"labels": labels}, "spec": {}})
        await eventually(operator.task.done, seconds=20)
        assert isinstance(operator.task.exception(), OperatorCrash)


async def test_a_deleted_service_takes_its_children_with_it_and_gets_no_new_ones(api: FakeApi) -> None:
    api.put(TRAINING_JOBS, trained_job(100))
    api.put(INFERENCE_SERVICES, service())
    async with running(api) as (operator, _):
        await eventually(is_live(api, 100))
        stable = status_of(api)["stable"]
        before = len(api.calls)
        api.remove(INFERENCE_SERVICES, "default", "served", cascades=False)
        await eventually(lambda: operator.value("reconciles_total", result="gone") >= 1)
        for resource in (DEPLOYMENTS, SERVICES, SECRETS):
            for name in (stable, "served"):
                if name in names(api.of(resource)):
                    api.remove(resource, "default", name)
        await asyncio.sleep(0.3)
    assert [call for call in api.calls[before:] if call.is_write and call.resource not in ("leases", "events")] == []


async def test_services_are_looked_after_as_soon_as_their_kind_is_served(api: FakeApi) -> None:
    api.not_served = {"inferenceservices"}
    api.put(TRAINING_JOBS, trained_job(100))
    async with running(api) as (operator, _):
        await eventually(lambda: operator.value("leader") == 1)
        api.not_served = set()
        api.put(INFERENCE_SERVICES, service())
        await eventually(is_live(api, 100), seconds=20)
