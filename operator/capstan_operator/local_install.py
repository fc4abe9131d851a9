"""Capstan on a local cluster: what `capstan local up` applies, and how it knows that each part works."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from capstan_local.client import Access, ApiError, Client, Resource, Unreachable
from capstan_operator.api.meta import FIELD_MANAGER, GROUP
from capstan_operator.crdgen import all_crds

NAMESPACE = "capstan-system"
OPERATOR = "capstan-operator"
OPERATOR_PORT = 8080

CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)
SERVICES = Resource("", "v1", "services")
DEPLOYMENTS = Resource("apps", "v1", "deployments")
NODES = Resource("", "v1", "nodes", namespaced=False)

Manifest = dict[str, Any]
Wait = Callable[[str, Callable[[], Awaitable[bool]]], Awaitable[None]]
"""(name of a part, whether it is ready) -> returns once it is."""


async def install(kubeconfig: Path, nodes: int, wait: Wait, *, allow_chaos: bool) -> None:
    """Waits for each part and puts Capstan on the cluster; harmless to repeat."""
    async with Client(Access.from_kubeconfig(kubeconfig)) as client:
        await wait("API server", lambda: _answers(client))
        print(f"API server   {client.access.server}")
        await wait("node", lambda: nodes_are_ready(client, nodes))
        print(f"{'Node ' if nodes == 1 else 'Nodes'}        ready; runs containers as processes of this user")
        for crd in all_crds():
            await _apply(client, CRDS, crd)
        await _apply(client, NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        service = await _apply(client, SERVICES, operator_service())
        deployment = operator_deployment(kubeconfig, service["spec"]["clusterIP"], allow_chaos=allow_chaos)
        await _apply(client, DEPLOYMENTS, deployment)
        await wait("operator", lambda: operator_is_ready(client))
        chaos = "; injects faults where a namespace is labelled capstan.dev/chaos=allowed" if allow_chaos else ""
        print(f"Operator     ready; kubectl -n {NAMESPACE} logs deploy/{OPERATOR}{chaos}")


async def _answers(client: Client) -> bool:
    with suppress(Unreachable, ApiError):
        await client.get(NAMESPACES, "default")
        return True
    return False


async def nodes_are_ready(client: Client, wanted: int = 1) -> bool:
    nodes, _ = await client.list(NODES)
    conditions = [entry for node in nodes for entry in node.get("status", {}).get("conditions", [])]
    return sum(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions) >= wanted


async def operator_is_ready(client: Client) -> bool:
    """Whether every replica is of the newest manifest and answers."""
    deployment = await client.get(DEPLOYMENTS, OPERATOR, NAMESPACE)
    status, wanted = deployment.get("status", {}), deployment["spec"]["replicas"]
    is_current: bool = status.get("observedGeneration") == deployment["metadata"]["generation"]
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
    return is_current and counts == [wanted] * 3


async def _apply(client: Client, resource: Resource, manifest: Manifest) -> Manifest:
    metadata = manifest["metadata"]
    path = resource.path(metadata.get("namespace"), metadata["name"])
    applied: Manifest = await client.request(
        "PATCH",
        path,
        manifest,
        params={"fieldManager": FIELD_MANAGER, "force": "true"},
        content_type="application/apply-patch+yaml",
    )
    return applied


def operator_service() -> Manifest:
    """A stable address for the pods' hints, whichever replica answers."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": OPERATOR, "namespace": NAMESPACE},
        "spec": {
            "selector": {"app.kubernetes.io/name": OPERATOR},
            "ports": [{"name": "http", "port": OPERATOR_PORT, "protocol": "TCP", "targetPort": OPERATOR_PORT}],
        },
    }


def operator_deployment(kubeconfig: Path, service_ip: str, *, allow_chaos: bool) -> Manifest:
    """The operator as it would run on any cluster, but with this user's kubeconfig for an account."""
    labels = {"app.kubernetes.io/name": OPERATOR}
    command = ["python", "-m", "capstan_operator", "run", "--host", "$(POD_IP)", "--port", str(OPERATOR_PORT)]
    command += ["--url", f"http://{service_ip}:{OPERATOR_PORT}"]
    command.append("--allow-host-path")  # whoever starts this cluster owns the machine
    command += ["--allow-chaos"] if allow_chaos else []
    container = {
        "name": "operator",
        "image": f"capstan/operator:{version('capstan')}",
        "command": command,
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "KUBECONFIG", "value": str(kubeconfig)},
        ],
        "ports": [{"name": "http", "containerPort": OPERATOR_PORT}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": OPERATOR_PORT}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": OPERATOR_PORT}, "periodSeconds": 10},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": OPERATOR, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/part-of": GROUP}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }
