"""A client, a namespace and a node of its own for each test of the local node and controllers."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from capstan_local.client import NAMESPACES, NODES, Access, Client
from capstan_local.controllers import run_controllers
from tests.conftest import real_assets_or_skip
from tests.support.control_planes import ControlPlane, EmbeddedControlPlane, RealControlPlane
from tests.support.local_node import RunningNode, node_running


@pytest.fixture(scope="session", params=["embedded", "real"])
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """An API server and the controllers that go with it: without them no claim is ever let go."""
    if request.param == "real":
        yield request.getfixturevalue("real_control_plane")
        return
    with (
        tempfile.TemporaryDirectory(prefix="capstan-local-") as folder,
        EmbeddedControlPlane(Path(folder) / "plane", with_controllers=True) as plane,
    ):
        yield plane


@pytest.fixture
async def client(control_plane: ControlPlane) -> AsyncIterator[Client]:
    async with Client(Access.from_kubeconfig(control_plane.kubeconfig)) as client:
        yield client


@pytest.fixture
async def namespace(client: Client) -> AsyncIterator[str]:
    name = f"t-{secrets.token_hex(4)}"
    await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    await client.delete(NAMESPACES, ("", name))


@pytest.fixture
def node_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="node-") as folder:
        yield Path(folder)


@pytest.fixture
async def node(client: Client, namespace: str, node_home: Path) -> AsyncIterator[RunningNode]:
    """A node with four accelerators that starts failing containers again after 0.2 s."""
    async with node_running(client, node_home, f"node-{namespace}", gpus=4, backoff_seconds=0.2) as running:
        yield running
    await client.delete(NODES, ("", f"node-{namespace}"))


@pytest.fixture(scope="session")
def plane_without_controllers(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A real API server alone: what the embedded one is before its controllers start.

    The plugin that taints new nodes is off, because removing the taint is the real controller manager's work.
    """
    untainted = ("--disable-admission-plugins=TaintNodesByCondition",)
    with tempfile.TemporaryDirectory(prefix="capstan-bare-") as folder:
        assets = real_assets_or_skip()
        with RealControlPlane(
            Path(folder) / "plane", assets=assets, with_controller_manager=False, extra_apiserver_flags=untainted
        ) as plane:
            yield plane


@pytest.fixture(params=["embedded", "real"])
async def controlled_client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """A client of a control plane on which this package's controllers run, and no others."""
    fixture = "embedded_control_plane" if request.param == "embedded" else "plane_without_controllers"
    plane: ControlPlane = request.getfixturevalue(fixture)
    async with Client(Access.from_kubeconfig(plane.kubeconfig)) as client:
        stop = asyncio.Event()
        controllers = asyncio.create_task(run_controllers(client, stop))
        yield client
        stop.set()
        await asyncio.wait_for(controllers, 10)


@pytest.fixture
async def controlled_namespace(controlled_client: Client) -> AsyncIterator[str]:
    name = f"c-{secrets.token_hex(4)}"
    await controlled_client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    await controlled_client.delete(NAMESPACES, ("", name))


@pytest.fixture
async def controlled_node(
    controlled_client: Client, controlled_namespace: str, node_home: Path
) -> AsyncIterator[RunningNode]:
    """A node for pods that the scheduler binds; they choose it by its label `pool`."""
    name = f"node-{controlled_namespace}"
    async with node_running(controlled_client, node_home, name, gpus=4, backoff_seconds=0.2) as running:
        label = {"metadata": {"labels": {"pool": controlled_namespace}}}
        await controlled_client.patch(NODES, ("", name), label)
        yield running
    await controlled_client.delete(NODES, ("", name))
