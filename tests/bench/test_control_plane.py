"""Workload controlPlane against real API servers. Who carries jobs out is played by a task: the operator has its own
tests, and tests/e2e runs the whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from capstan_operator.metrics import Metrics
from capstan_runtime.bench.burst import LABEL, Burst, trivial_job
from capstan_runtime.bench.cluster import Access, Cluster
from capstan_runtime.bench.operator_metrics import parse_counters
from capstan_runtime.bench.workloads.control_plane import burst_points, operator_points, run
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.contract.benchmark import TrialTask, TrialWork
from capstan_runtime.contract.env import ACCOUNT_FOLDER, POD_MOUNTS
from capstan_runtime.contract.judged import JUDGED
from capstan_runtime.contract.workloads import ControlPlane as Workload
from capstan_runtime.errors import ConfigError
from tests.support.control_planes import ControlPlane
from tests.support.real_cluster import real_cluster

POD = "measured-t00"
BENCHMARK = "measured"


class World:
    """A namespace in which a bench pod runs with an account that has no rights yet."""

    def __init__(self, plane: ControlPlane, admin: Cluster, namespace: str, folder: Path) -> None:
        self.plane, self.admin, self.namespace, self.folder = plane, admin, namespace, folder
        self.jobs = f"/apis/capstan.dev/v1alpha1/namespaces/{namespace}/trainingjobs"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        self.ends_with = "Succeeded"

    async def furnish(self) -> None:
        core, account = f"/api/v1/namespaces/{self.namespace}", "capstan-bench"
        await self.admin.ask("POST", f"{core}/serviceaccounts", {"metadata": {"name": account}})
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
        token = await self.admin.ask("POST", f"{core}/serviceaccounts/{account}/token", request)
        files = {"token": token["status"]["token"], "namespace": self.namespace}
        for name, text in (files | {"ca.crt": self.plane.ca_file.read_text()}).items():
            (self.folder / name).write_text(text)
        container = {"name": "bench", "image": "i"}
        metadata = {"name": POD, "labels": {"capstan.dev/benchmark": BENCHMARK}}
        await self.admin.ask("POST", self.pods, {"metadata": metadata, "spec": {"containers": [container]}})

    async def apply(self, manifests: str) -> None:
        for manifest in yaml.safe_load_all(manifests):
            group = "apis/" if "/" in manifest["apiVersion"] else "api/"
            path = f"/{group}{manifest['apiVersion']}/namespaces/{self.namespace}/{manifest['kind'].lower()}s"
            if manifest["kind"] != "ServiceAccount":  # which is there
                await self.admin.ask("POST", path, manifest)

    @property
    def environ(self) -> dict[str, str]:
        host, port = self.plane.url.removeprefix("https://").rsplit(":", 1)
        mounts = json.dumps({ACCOUNT_FOLDER: str(self.folder)})
        return {
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
            "HOSTNAME": POD,
            POD_MOUNTS: mounts,
        }

    async def names(self, path: str) -> list[str]:
        return sorted(item["metadata"]["name"] for item in (await self.admin.ask("GET", path))["items"])

    async def carry_out(self) -> None:
        """What operator, scheduler, nodes and garbage collection do: two pods for a job, which then has ended as it
        is to end; and none for a job that is gone."""
        known: set[str] = set()
        while True:
            present = {job["metadata"]["name"]: job for job in (await self.admin.ask("GET", self.jobs))["items"]}
            for name in present.keys() - known:
                known.add(name)
                spec = present[name]["spec"]["workers"]
                for worker in range(spec["max"]):
                    labels = {"capstan.dev/job": name, **spec["podPatch"]["metadata"]["labels"]}
                    pod = {"metadata": {"name": f"{name}-{worker}", "labels": labels}}
                    await self.admin.ask(
                        "POST", self.pods, pod | {"spec": {"containers": [{"name": "t", "image": "i"}]}}
                    )
                status = {"phase": self.ends_with, "message": "as it was to end"}
                await self.admin.merge(f"{self.jobs}/{name}/status", {"status": status})
            for name in known - present.keys():
                for worker in range(2):
                    options = {"gracePeriodSeconds": 0}
                    await self.admin.ask("DELETE", f"{self.pods}/{name}-{worker}", options)
                known.discard(name)
            await asyncio.sleep(0.02)


class Admin(Cluster):
    async def merge(self, path: str, body: Any) -> None:
        headers = {**self._identity, "Content-Type": "application/merge-patch+json"}
        async with self._session.patch(path, data=json.dumps(body), headers=headers) as answer:
            assert answer.status in (200, 404), await answer.text()  # it may have been removed meanwhile


@pytest.fixture
async def world(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with real_cluster(control_plane) as cluster:  # it has our CRDs
        access = Access(control_plane.url, lambda: control_plane.token, control_plane.ca_file.read_text(), "default")
        async with Admin(access) as admin:
            world = World(control_plane, admin, cluster.namespace, tmp_path)
            await world.furnish()
            yield world


@asynccontextmanager
async def carried_out(world: World) -> AsyncIterator[None]:
    carrying = asyncio.create_task(world.carry_out())
    try:
        yield
    finally:
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)


def task_of(jobs: int, deadline_seconds: float = 60.0) -> TrialTask:
    work = TrialWork(control_plane=Workload(jobs=jobs, workers=2))
    return TrialTask(trial="t00", seed=0, work=work, deadline_seconds=deadline_seconds)


async def run_in_thread(world: World, task: TrialTask) -> dict[str, float]:
    measured = await asyncio.to_thread(run, task, open_store(str(world.folder), {}), world.environ)
    assert measured is not None
    assert [note for note in measured.notes if "left out" not in note] == []
    return {point.metric: point.value for point in measured.points}


async def grant(world: World) -> None:
    """The rights that the refusal names."""
    with pytest.raises(ConfigError) as refused:
        await run_in_thread(world, task_of(1))
    first, _, manifests = str(refused.value).partition("\n")
    assert "set pods.serviceAccountName: capstan-bench" in first
    await world.apply(manifests)


async def test_jobs_are_made_watched_and_removed_with_the_rights_that_a_refusal_names(world: World) -> None:
    if world.plane.name == "embedded":  # which stores rights, and asks for none
        (world.folder / "token").rename(world.folder / "hidden")
        with pytest.raises(ConfigError, match="the pod has no service account's token"):
            await run_in_thread(world, task_of(1))
        (world.folder / "hidden").rename(world.folder / "token")
    else:
        await grant(world)
    async with carried_out(world):
        leftover = trivial_job("measured-t00-2-0", 2, BENCHMARK)
        await world.admin.ask("POST", world.jobs, leftover)
        await world.admin.ask("POST", world.jobs, trivial_job("of-somebody-else", 2, "another"))
        figures = await run_in_thread(world, task_of(6))
    assert figures["pods"] == 12
    assert set(figures) == {
        "jobs_per_second",
        "job_p50_seconds",
        "first_pod_p50_seconds",
        "pods_per_second",
        "pods",
    }
    assert figures["first_pod_p50_seconds"] <= figures["job_p50_seconds"]
    assert figures["jobs_per_second"] <= 6 / figures["job_p50_seconds"], "the last job ends the burst"
    assert await world.names(world.jobs) == ["of-somebody-else"]
    assert await world.names(world.pods) == [POD, "of-somebody-else-0", "of-somebody-else-1"]


async def test_what_goes_wrong_is_told_and_leaves_nothing_behind(
    embedded_control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with real_cluster(embedded_control_plane) as cluster:
        plane = embedded_control_plane
        access = Access(plane.url, lambda: plane.token, plane.ca_file.read_text(), "default")
        async with Admin(access) as admin:
            world = World(plane, admin, cluster.namespace, tmp_path)
            await world.furnish()
            async with carried_out(world):
                for phase, kind in (("Failed", RuntimeError), ("Invalid", ConfigError)):
                    world.ends_with = phase
                    with pytest.raises(kind, match=r"TrainingJob measured-t00-\d .*: as it was to end"):
                        await run_in_thread(world, task_of(3))
                    assert await world.names(world.jobs) == []
                world.ends_with = "Running"
                with pytest.raises(RuntimeError, match="3 TrainingJobs were not done after 1 s"):
                    await run_in_thread(world, task_of(3, deadline_seconds=1.0))
                assert await world.names(world.jobs) == []
                assert await world.names(world.pods) == [POD]


def test_what_the_operator_says_of_itself_is_counted_between_two_moments() -> None:
    metrics = Metrics()
    metrics.api_requests.labels("POST", "201", "create").inc(7)
    metrics.reconcile_seconds.observe(20.0)
    before = parse_counters(metrics.render().decode())
    metrics.api_requests.labels("POST", "201", "create").inc(10)
    metrics.api_requests.labels("PATCH", "200", "status").inc(20)
    for seconds in (0.03, 0.03, 0.03, 0.07):
        metrics.reconcile_seconds.observe(seconds)
    after = parse_counters(metrics.render().decode())
    between = after.since(before)
    assert between is not None
    assert {point.metric: point.value for point in operator_points(between, jobs=5)} == {
        "api_calls_per_job": 6.0,
        "reconciles_per_job": 0.8,
        "reconcile_mean_seconds": pytest.approx(0.04),
        # The third of four is the last in the bucket up to 0.05 s; 0.96 of the one in that up to 0.1 s are left.
        "reconcile_p99_seconds": pytest.approx(0.05 + 0.96 * 0.05),
    }
    seconds = {str(job): 1.0 for job in range(100)}
    burst = Burst(seconds=1.0, job_seconds=seconds, first_pod_seconds=seconds, pods=1)
    told = [*burst_points(burst), *operator_points(between, jobs=1)]
    assert {point.metric for point in told if point.better != "neither"} == set(JUDGED["controlPlane"])
    assert before.since(after) is None, "counters that fall are another operator's"
    assert parse_counters("") == parse_counters("# nothing was counted yet\n")


def test_an_own_pod_of_a_burst_needs_no_volume_and_has_the_mark_on_job_and_pods() -> None:
    job = trivial_job("a", 3, "mark", [{"kind": "Pod"}])
    assert job["metadata"] == {"name": "a", "labels": {LABEL: "mark"}, "ownerReferences": [{"kind": "Pod"}]}
    assert job["spec"]["workers"]["podPatch"]["metadata"] == {"labels": {LABEL: "mark"}}
