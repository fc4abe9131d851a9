"""What the tests of the I/O parts share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from capstan_operator.cluster.credentials import read_kubeconfig
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Limiter
from capstan_operator.metrics import Metrics
from tests.support.fake_api import FakeApi, serve_fake_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[FakeApi]:
    async with serve_fake_api(tmp_path) as server:
        yield server


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def client(api: FakeApi, metrics: Metrics) -> AsyncIterator[KubeClient]:
    async with KubeClient(read_kubeconfig(api.kubeconfig), Limiter(), metrics) as one:
        yield one
