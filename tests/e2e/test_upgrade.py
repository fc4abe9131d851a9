"""The operator is replaced under what runs, by a newer one, back, and again: nothing that runs may notice.

Side by side as a Deployment's rolling update has them: the release of before and this tree, each with the images that
its chart names, and with what its values have by default. The pods run the release that made them, as pods do, and some
have a folder of their nodes, as that release let them.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from tests.conftest import real_assets_or_skip
from tests.e2e import benchmarks
from tests.e2e.cluster import GROUP, NAMESPACE, VERSION, Cluster, Status
from tests.e2e.jobs import small_job
from tests.e2e.releases import EARLIER, THIS, Release, Replicas
from tests.e2e.services import Service
from tests.support.control_planes import RealControlPlane, Server
from tests.support.looks import root
from tests.support.rights import operators_kubeconfig

CLAIM = "upgrade"
LONG, RESTED, SERVED, MEASURED = "long", "rested", "served", "measured"
RUNS = 8
TAKE_OVER_SECONDS = 20.0
"""Until another leads after one was killed: a lease lasts 15 s, and is looked at every 2 s."""
HAND_OVER_SECONDS = 10.0
"""The same when one is told to stop: it ends the passes under way, within 3 s, and gives the lease back."""


@dataclass
class World:
    """A cluster in which everything of ours runs, made under the release of before."""

    cluster: Cluster
    replicas: Replicas
    service: Service

    def define(self, release: Release, folder: Path) -> None:
        """Applies a release's CustomResourceDefinitions, as its chart does."""
        folder.mkdir()
        release.run_python("-m", "capstan_operator.crdgen", str(folder))
        api = client.ApiextensionsV1Api(self.cluster.api)
        known = {one.metadata.name for one in api.list_custom_resource_definition().items}
        for path in sorted(folder.glob("*.yaml")):
            crd = yaml.safe_load(path.read_text())
            name = crd["metadata"]["name"]
            if name in known:
                api.patch_custom_resource_definition(name, crd)
            else:
                api.create_custom_resource_definition(crd)

    def made(self) -> dict[str, Any]:
        """What must stay as it is while operators come and go."""
        core, apps = self.cluster.core, client.AppsV1Api(self.cluster.api)
        long, served = self.cluster.status(LONG), self.service.status()
        return {
            "pods": {
                pod.metadata.name: (
                    pod.metadata.uid,
                    [one.restart_count for one in pod.status.container_statuses or []],
                )
                for name in (f"capstan.dev/job={LONG}", f"capstan.dev/service={SERVED}")
                for pod in core.list_namespaced_pod(NAMESPACE, label_selector=name).items
            },
            "deployments": {
                one.metadata.name: (one.metadata.uid, one.metadata.generation)
                for one in apps.list_namespaced_deployment(NAMESPACE).items
            },
            "Secrets": {
                one.metadata.name: (one.metadata.uid, one.metadata.resource_version)
                for one in core.list_namespaced_secret(NAMESPACE).items
                if one.type == "Opaque"
            },
            LONG: (long["fence"], long["restarts"]["total"], long["phase"], conditions(long)),
            SERVED: (served["stable"], served["traffic"], served["ready"], conditions(served)),
            RESTED: conditions(self.cluster.status(RESTED)),
        }

    def is_followed(self) -> None:
        """Returns once whoever leads now has told a newer step of the job, and a newer run of the Benchmark, unless all
        of those are over."""
        step, done = self.cluster.status(LONG)["step"], runs(self)
        self.cluster.wait(LONG, "followed", lambda status: status["step"] > step)
        benchmarks.wait(self.cluster, MEASURED, lambda status: status["progress"]["done"] > done or done == RUNS)


def runs(world: World) -> int:
    done: int = benchmarks.status_of(world.cluster, MEASURED).get("progress", {}).get("done", 0)
    return done


def conditions(status: Status) -> dict[str, tuple[str, str, str]]:
    """By type: status, reason and since when; without that of the newest checkpoint, which often is another."""
    return {
        one["type"]: (one["status"], one["reason"], one["lastTransitionTime"])
        for one in status["conditions"]
        if one["type"] != "CheckpointVerified"
    }


def job(name: str, steps: int, store: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Of the numpy trainer of the release of before, in pods that stay of it."""
    environ = EARLIER.environ() | {"STEP_SECONDS": "0.1"}
    container = {
        "name": "trainer",
        "command": [sys.executable, "-m", "tests.support.numpy_supervisor"],
        "env": [{"name": name, "value": value} for name, value in environ.items()],
    }
    return small_job(
        name,
        "flax",
        optimizer={"sgd": {"learningRate": 0.1}},
        schedule={"constant": {}},
        training={"steps": steps, "globalBatchSize": 32, "logEverySteps": 5},
        workers={"max": 2, "podPatch": {"spec": {"containers": [container]}}},
        checkpoint={"store": store, "interval": {"steps": 50}},
        **spec,
    )


def with_folder(folder: Path) -> dict[str, Any]:
    """A pod's spec with a folder of its node."""
    return {"volumes": [{"name": "shared", "hostPath": {"path": str(folder)}}]}


def service(folder: Path) -> dict[str, Any]:
    """Its image is the operator's, and so another one after an upgrade."""
    server = {
        "name": "server",
        "command": [sys.executable, "-m", "tests.support.numpy_replica", root(200)],
        "env": [{"name": name, "value": value} for name, value in EARLIER.environ().items()],
    }
    stored = {"store": {"object": {"url": "s3://nobody/reads"}}, "run": "default/digits/7f3a", "digest": root(100)}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "InferenceService",
        "metadata": {"name": SERVED},
        "spec": {
            "modelRef": {"uri": stored},
            "runtime": "torch",
            "replicas": 1,
            "podPatch": {"spec": {"containers": [server], **with_folder(folder)}},
        },
    }


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """etcd, kube-apiserver, controller manager, scheduler and our node; the operator of before, with its definitions
    and with the rights that the chart gives, and everything of ours at work."""
    with tempfile.TemporaryDirectory(prefix="capstan-upgrade-") as folder, ExitStack() as stack:
        home = Path(folder)
        plane = RealControlPlane(home / "plane", assets=real_assets_or_skip(), with_scheduler=True)
        stack.enter_context(plane)
        api = config.new_client_from_config(str(plane.kubeconfig))
        cluster = Cluster("real", plane.kubeconfig, home, lambda: None)
        kubeconfig = operators_kubeconfig(plane, home / "operator-kubeconfig", NAMESPACE)
        replicas = Replicas(home, kubeconfig, client.CoordinationV1Api(api))
        world = World(cluster, replicas, Service(cluster, SERVED))
        world.define(EARLIER, home / "crds-before")
        command = [sys.executable, "-m", "capstan_operator", "local", "node", "--home", str(home / "node")]
        node = Server("node", [*command, "--kubeconfig", str(plane.kubeconfig)], home, dict(os.environ))
        stack.callback(lambda: node.stop(signal.SIGTERM))
        stack.callback(replicas.stop)
        replicas.start(EARLIER)
        cluster.claim(CLAIM)
        shared = home / "shared"
        shared.mkdir()
        world.service.create(service(shared))
        cluster.create_job(job(LONG, 1_000_000, {"hostPath": {"path": str(shared)}}))
        cluster.create_job(job(RESTED, 20, {"claim": {"name": CLAIM}}, suspend=True))
        cluster.wait(RESTED, "suspended", lambda status: status.get("phase") == "Suspended")
        cluster.wait(LONG, "running", lambda status: status.get("phase") == "Running" and status.get("step", 0) > 0)
        world.service.wait_settled()
        # Last, so that most of its runs are still to come when the first operator goes.
        roofline = {"roofline": {"runtime": "torch", "matrixSizes": [64], "seconds": 0.05}}
        pods = {"podPatch": {"spec": with_folder(shared)}}
        benchmarks.create(cluster, CLAIM, MEASURED, roofline, repetitions=RUNS, pods=pods)
        benchmarks.wait(cluster, MEASURED, lambda status: status.get("progress", {}).get("done", 0) > 0)
        yield world
        for name in (LONG, RESTED):
            cluster.delete_job(name)
        world.service.delete()
        benchmarks.delete(cluster, MEASURED)
        cluster.wait_gone(lambda: cluster.pods(LONG) + world.service.pods(), "pods of ours", 120)


def test_an_operator_is_replaced_by_a_newer_one_and_back_and_nothing_that_runs_is_touched(world: World) -> None:
    before = world.made()
    assert before[LONG][:3] == (1, 0, "Running")
    assert before["deployments"].keys() == {before[SERVED][0]}
    world.define(THIS, world.cluster.home / "crds-after")  # the definitions first, and they stay when one goes back
    assert runs(world) < RUNS
    seconds = {}
    for how, release, number, most_seconds in (
        ("upgrade", THIS, signal.SIGTERM, HAND_OVER_SECONDS),
        ("rollback", EARLIER, signal.SIGTERM, HAND_OVER_SECONDS),
        ("upgrade of a leader that is killed", THIS, signal.SIGKILL, TAKE_OVER_SECONDS),
    ):
        seconds[how] = world.replicas.hand_over(release, number)
        world.is_followed()
        assert world.made() == before, how
        assert seconds[how] < most_seconds, seconds
    print("seconds until the next one led:", seconds)


def test_a_job_that_rested_while_the_operator_was_replaced_goes_on_to_its_end(world: World) -> None:
    world.cluster.patch_job(RESTED, {"spec": {"suspend": False}})
    status = world.cluster.wait_phase(RESTED, "Succeeded")
    assert (status["fence"], status["restarts"]["total"], status["step"]) == (1, 0, 20)
    assert conditions(status)["Accepted"][:2] == ("True", "Valid")


def test_a_service_that_is_sized_after_the_operator_was_replaced_is_not_rolled(world: World) -> None:
    revision = world.service.status()["stable"]
    world.service.patch({"replicas": 2})
    status = world.service.wait_settled()
    assert (status["stable"], status["ready"]) == (revision, "2/2")


def test_no_run_of_a_benchmark_is_repeated_or_lost_while_the_operator_is_replaced(world: World) -> None:
    status = benchmarks.wait_ended(world.cluster, MEASURED, "Succeeded")
    assert [(one["trial"], one["attempt"]) for one in status["trials"]] == [
        (f"t{place:02d}", 1) for place in range(RUNS)
    ]
    assert (status["repeated"], status["progress"]["summary"]) == (0, f"{RUNS}/{RUNS}")
