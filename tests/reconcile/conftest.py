"""A misbehaving API server, supervisors, and a node of three lines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.control_planes import ControlPlane, free_port
from tests.support.fake_api import FakeApi, serve_fake_api
from tests.support.fake_node import FakeNode
from tests.support.fake_supervisors import serve_fake_supervisors
from tests.support.real_cluster import Cluster, real_cluster


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[FakeApi]:
    async with serve_fake_api(tmp_path) as server:
        yield server


@pytest.fixture
async def node(api: FakeApi) -> AsyncIterator[FakeNode]:
    async with serve_fake_supervisors(free_port()) as supervisors:
        yield FakeNode(api, supervisors)


@pytest.fixture
async def cluster(control_plane: ControlPlane) -> AsyncIterator[Cluster]:
    async with real_cluster(control_plane) as cluster:
        yield cluster
