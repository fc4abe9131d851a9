"""From nothing to a finished job with `helm install` and `kubectl apply` alone."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.e2e.cluster import Cluster
from tests.support.control_planes import ControlPlane, Server
from tests.support.helm import Helm, needs_helm

pytestmark = needs_helm

SYSTEM = "capstan-system"
LEASE = "capstan-operator"


@pytest.fixture(scope="module")
def bare() -> Iterator[Cluster]:
    """An embedded cluster that nothing is installed on."""
    with tempfile.TemporaryDirectory(prefix="capstan-bare-") as folder:
        home = Path(folder)
        arguments = [sys.executable, "-m", "capstan_operator", "local", "serve", "--home", folder]
        server = Server("serve", arguments, home, dict(os.environ))
        try:
            kubeconfig = home / "kubeconfig"
            server.wait_ready(lambda: kubeconfig.exists() and _has_node(kubeconfig))
            yield Cluster("embedded", kubeconfig, home, lambda: None)
        finally:
            server.stop(signal.SIGTERM)


def _has_node(kubeconfig: Path) -> bool:
    try:
        nodes = Cluster("embedded", kubeconfig, kubeconfig.parent, lambda: None).core.list_node().items
    except Exception:
        return False  # it is starting
    return any(
        entry.type == "Ready" and entry.status == "True" for node in nodes for entry in node.status.conditions or []
    )


def _until(holds: Callable[[], bool], what: str, seconds: float = 90) -> float:
    """Seconds until it held."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"not {what} after {seconds:.0f} s"
        time.sleep(0.1)
    return time.monotonic() - started


def test_a_job_runs_on_a_fresh_cluster_and_the_second_replica_takes_over(bare: Cluster, tmp_path: Path) -> None:
    plane = ControlPlane(home=bare.home, kubeconfig=bare.kubeconfig)
    helm = Helm(plane, SYSTEM, tmp_path)
    helm("Install", release_name="capstan", chart_path="charts/capstan", create_namespace=True, wait=True, timeout=50)
    apps, leases = client.AppsV1Api(bare.api), client.CoordinationV1Api(bare.api)
    deployment = apps.read_namespaced_deployment("capstan", SYSTEM)
    assert (deployment.status.ready_replicas, deployment.spec.replicas) == (2, 2)

    def holder() -> str:
        try:
            return leases.read_namespaced_lease(LEASE, SYSTEM).spec.holder_identity or ""
        except ApiException:
            return ""

    _until(lambda: holder() != "", "led")
    bare.apply_file(Path("examples/digits-flax/job.yaml"))
    bare.wait("digits-flax", "making steps", lambda status: (status.get("step") or 0) > 0, 180)

    first = holder()
    # A holder's name begins with its host's, which all pods of this node share: both pods know who they are.
    (leader,) = [pod for pod in _pods(bare) if first in bare.core.read_namespaced_pod_log(pod, SYSTEM)]
    bare.core.delete_namespaced_pod(leader, SYSTEM, grace_period_seconds=0)
    _until(lambda: holder() not in ("", first), "led by another")
    status = bare.wait_phase("digits-flax", "Succeeded", 240)
    assert status["restarts"]["total"] == 0
    helm("Uninstall", release_name="capstan")
    assert bare.status("digits-flax")["phase"] == "Succeeded"


def _pods(cluster: Cluster) -> list[str]:
    selector = "app.kubernetes.io/instance=capstan"
    return [pod.metadata.name for pod in cluster.core.list_namespaced_pod(SYSTEM, label_selector=selector).items]
