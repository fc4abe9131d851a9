"""One cluster of each kind for the whole folder: the embedded one as a user starts it, and a real kube-apiserver."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config

from tests.conftest import real_assets_or_skip
from tests.e2e.cluster import NAMESPACE, Cluster
from tests.support.control_planes import RealControlPlane, Server
from tests.support.rights import operators_kubeconfig

CAPSTAN = [sys.executable, "-m", "capstan_operator"]
CRDS = sorted(Path("crds").glob("*.yaml"))


@contextmanager
def embedded_cluster(home: Path) -> Iterator[Cluster]:
    """`capstan local up` in a home of its own, where faults may be injected."""
    arguments = ["--home", str(home)]
    subprocess.run([*CAPSTAN, "local", "up", *arguments, "--allow-chaos"], check=True, timeout=90)
    try:
        kubeconfig = home / "kubeconfig"
        core = client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))

        def restart_operator() -> None:
            pods = core.list_namespaced_pod("capstan-system").items
            assert [pod.status.phase for pod in pods] == ["Running"]
            core.delete_namespaced_pod(pods[0].metadata.name, "capstan-system", grace_period_seconds=0)

        yield Cluster("embedded", kubeconfig, home, restart_operator)
    finally:
        subprocess.run([*CAPSTAN, "local", "down", *arguments], check=True, timeout=90)


@contextmanager
def real_cluster(home: Path, assets: Path) -> Iterator[Cluster]:
    """etcd, kube-apiserver, controller manager and scheduler; our node; the operator as a process, with the rights that
    the chart gives it and no other."""
    with ExitStack() as stack:
        plane = stack.enter_context(RealControlPlane(home / "plane", assets=assets, with_scheduler=True))
        api = config.new_client_from_config(str(plane.kubeconfig))
        for crd in CRDS:
            client.CustomObjectsApi(api).create_cluster_custom_object(
                "apiextensions.k8s.io", "v1", "customresourcedefinitions", yaml.safe_load(crd.read_text())
            )
        operators = operators_kubeconfig(plane, home / "operator-kubeconfig", NAMESPACE)

        def start(name: str, kubeconfig: Path, *arguments: str) -> Server:
            command = [*CAPSTAN, *arguments, "--kubeconfig", str(kubeconfig)]
            server = Server(name, command, home, dict(os.environ))
            stack.callback(lambda: server.stop(signal.SIGTERM))
            return server

        start("node", plane.kubeconfig, "local", "node", "--home", str(home / "node"))
        operator = start("operator", operators, "run", "--port", "0", "--allow-chaos")

        def restart_operator() -> None:
            nonlocal operator
            operator.process.kill()
            operator.process.wait(10)
            operator = start("operator", operators, "run", "--port", "0", "--allow-chaos")

        yield Cluster("real", plane.kubeconfig, home, restart_operator)


@pytest.fixture(scope="session", params=["embedded", "real"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="capstan-e2e-") as folder:
        home = Path(folder)
        manager = embedded_cluster(home) if request.param == "embedded" else real_cluster(home, real_assets_or_skip())
        with manager as running:
            running.core.patch_namespace(NAMESPACE, {"metadata": {"labels": {"capstan.dev/chaos": "allowed"}}})
            yield running


@pytest.fixture(scope="session")
def kubectl() -> str:
    """Path of kubectl; the test is skipped on a machine that has none."""
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is not on PATH")
    return found


@pytest.hookimpl(tryfirst=True)  # before what is `full` is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is in a pod does not see which API server its operator asks: where a test wants both, the other framework on
    the real server is left to `make test-full`."""
    for item in items:
        if item.get_closest_marker("one_framework_on_the_real_server") is not None:
            assert isinstance(item, pytest.Function)
            where = item.callspec.params
            if (where["cluster"], where["framework"]) == ("real", "deepspeed"):
                item.add_marker(pytest.mark.full)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test of a service that fails shows what became of the service."""
    report = yield
    served = item.funcargs.get("served")
    if report.failed and call.when == "call" and served is not None:
        report.sections.append(("the service", served.story()))
    return report
