"""The operator that test_kopf runs: it answers each Widget with a status, a ConfigMap and an Event."""

from typing import Any

import kopf


@kopf.on.startup()
def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.posting.enabled = True


@kopf.on.create("battery.example.com", "v1", "widgets")
def created(spec: kopf.Spec, body: kopf.Body, namespace: str, patch: kopf.Patch, retry: int, **_: Any) -> None:
    if retry == 0:
        raise kopf.TemporaryError("the first try fails on purpose", delay=0.1)
    metadata = {"name": body.metadata.name, "labels": {"battery": "child"}}
    child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {}}
    kopf.adopt(child)
    # kopf brings no client of its own; the kubernetes package is the usual companion.
    import kubernetes

    kubernetes.config.load_kube_config()
    kubernetes.client.CoreV1Api().create_namespaced_config_map(namespace, child)
    kopf.info(body, reason="Made", message=f"made a child of size {spec['size']}")
    patch.status["phase"] = "Made"


@kopf.on.update("battery.example.com", "v1", "widgets", field="spec.size")
def resized(new: int, patch: kopf.Patch, **_: Any) -> None:
    patch.status["phase"] = f"Resized to {new}"


@kopf.on.delete("battery.example.com", "v1", "widgets")
def deleted(**_: Any) -> None:
    """Its presence makes kopf add a finalizer and remove it again."""


@kopf.on.event("configmaps", labels={"battery": "child"})
def observed(event: kopf.RawEvent, patch: kopf.Patch, meta: kopf.Meta, **_: Any) -> None:
    if event["type"] != "DELETED" and meta.labels.get("seen") != "yes":
        patch.meta["labels"] = {"seen": "yes"}
