"""One battery, two servers: what Kubernetes' clients may expect of an API server.

Every test runs against the embedded server and against a real kube-apiserver, which is the authority: when the two
differ, the embedded one is wrong. A test of something that came to Kubernetes after the real server's version is
marked `current_kubernetes_only("what it lacks")`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.apiserver.client import Api, connect
from tests.apiserver.widgets import GAUGE_CRD, WIDGET_CRD, install
from tests.support.control_planes import ControlPlane


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "current_kubernetes_only(reason): the real server at hand is too old for what the test is about"
    )


@pytest.fixture(autouse=True)
def _skip_what_the_server_is_too_old_for(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("current_kubernetes_only")
    if marker and not request.getfixturevalue("control_plane").is_current:
        pytest.skip(f"the real server is too old: {marker.args[0]}")


@pytest.fixture(scope="session", params=["embedded", "real"])
def control_plane(request: pytest.FixtureRequest) -> ControlPlane:
    """Both servers with their controllers; the fixture that this one hides has none in the embedded server."""
    name = {"embedded": "embedded_with_controllers", "real": "real_control_plane"}[request.param]
    plane: ControlPlane = request.getfixturevalue(name)
    return plane


@pytest_asyncio.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[Api]:
    async with connect(control_plane) as api:
        yield api


@pytest_asyncio.fixture
async def namespace(api: Api) -> str:
    """A namespace of the test's own. It is left behind: the whole server goes at the end of the session."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    (await api.post("/api/v1/namespaces", {"metadata": {"name": name}})).expect(201)
    return name


@pytest_asyncio.fixture
async def configmaps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


@pytest_asyncio.fixture
async def pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


@pytest_asyncio.fixture
async def widgets(api: Api, namespace: str) -> str:
    """The path of a namespace's Widgets: the battery's custom kind, with a schema, a status and a scale."""
    await install(api, WIDGET_CRD)
    return f"/apis/battery.example.com/v1/namespaces/{namespace}/widgets"


@pytest_asyncio.fixture
async def gauges(api: Api, namespace: str) -> str:
    """The path of a namespace's Gauges: a custom kind whose rules are written in CEL."""
    await install(api, GAUGE_CRD)
    return f"/apis/battery.example.com/v1/namespaces/{namespace}/gauges"
