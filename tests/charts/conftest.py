"""An API server for each file of this folder: what is installed cluster-wide must not have been there before."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.apiserver.client import Api, connect, gone
from tests.charts.releases import CRDS, KINDS, MONITORING, NAMESPACE
from tests.conftest import real_assets_or_skip
from tests.support.control_planes import ControlPlane, EmbeddedControlPlane, RealControlPlane
from tests.support.helm import Helm


@pytest.fixture(scope="module", params=["embedded", "real"])
def plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    with tempfile.TemporaryDirectory(prefix="capstan-chart-") as folder:
        home = Path(folder) / "plane"
        chosen: ControlPlane = (
            EmbeddedControlPlane(home)
            if request.param == "embedded"
            else RealControlPlane(home, assets=real_assets_or_skip())
        )
        with chosen as running:
            yield running


@pytest_asyncio.fixture
async def api(plane: ControlPlane) -> AsyncIterator[Api]:
    async with connect(plane) as api:
        yield api


@pytest_asyncio.fixture
async def helm(plane: ControlPlane, api: Api, tmp_path: Path) -> AsyncIterator[Helm]:
    """Helm on a server that has the Prometheus Operator's kinds; what a test installed is gone after it."""
    for plural in MONITORING:
        await api.post(CRDS, _monitoring_crd(plural))
    helm = Helm(plane, NAMESPACE, tmp_path)
    yield helm
    helm.answer("Uninstall", release_name="capstan", wait=False)
    for name in KINDS:
        await api.delete(f"{CRDS}/{name}")
        await gone(api, f"{CRDS}/{name}", 60)


def _monitoring_crd(plural: str) -> dict[str, Any]:
    kind = {"servicemonitors": "ServiceMonitor", "podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"}[
        plural
    ]
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "metadata": {"name": f"{plural}.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }
