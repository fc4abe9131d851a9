"""A kopf operator runs against the server as a process of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apiserver.client import Api, eventually, gone
from tests.apiserver.widgets import widget
from tests.support.control_planes import ControlPlane, Server


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str, widgets: str, tmp_path: Path) -> Iterator[Server]:
    del widgets  # the kind must exist before an operator looks for it
    script = Path(__file__).with_name("kopf_operator.py")
    argv = [sys.executable, "-m", "kopf", "run", "--standalone", "--verbose", "--namespace", namespace, script]
    env = {"KUBECONFIG": str(control_plane.kubeconfig), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    server = Server("kopf", argv, tmp_path, env)
    yield server
    assert server.stop(signal.SIGTERM) == 0, server.log_tail()


async def test_an_operator_sees_answers_updates_and_lets_go(
    api: Api, operator: Server, widgets: str, configmaps: str, namespace: str
) -> None:
    path = f"{widgets}/w"
    created = (await api.post(widgets, widget("w", size=2))).expect(201)

    async def status_is(phase: str) -> dict | None:
        assert operator.process.poll() is None, operator.log_tail()
        item = (await api.get(path)).expect(200)
        return item if item.get("status", {}).get("phase") == phase else None

    made = await eventually(lambda: status_is("Made"), "the operator answered")
    assert made["metadata"]["finalizers"] == ["kopf.zalando.org/KopfFinalizerMarker"]

    async def is_seen() -> dict | None:
        child = (await api.get(f"{configmaps}/w")).expect(200)
        return child if child["metadata"]["labels"] == {"battery": "child", "seen": "yes"} else None

    child = await eventually(is_seen, "the operator labelled its child")
    assert child["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]

    async def is_posted() -> bool:
        events = (await api.get(f"/api/v1/namespaces/{namespace}/events")).expect(200)["items"]
        return ("Made", "made a child of size 2") in {(item["reason"], item["message"]) for item in events}

    await eventually(is_posted, "the operator's event")

    (await api.patch(path, {"spec": {"size": 5}})).expect(200)
    await eventually(lambda: status_is("Resized to 5"), "the operator saw the update")

    (await api.delete(path)).expect(200)
    await gone(api, path)
