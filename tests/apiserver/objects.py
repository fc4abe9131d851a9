"""Small objects of the core kinds."""

from __future__ import annotations

from typing import Any

from tests.apiserver.client import Json


def configmap(name: str, data: dict[str, str] | None = None, **metadata: Any) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **metadata},
        "data": {"k": "v"} if data is None else data,
    }


def pod(name: str, **spec: Any) -> Json:
    """A pod that no scheduler takes: it stays an object, whether or not the server has nodes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "main", "image": "example.com/app:1"}]} | spec,
    }


def owner_reference(owner: Json, **fields: Any) -> Json:
    metadata = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
    return {**reference, "name": metadata["name"], "uid": metadata["uid"], **fields}
