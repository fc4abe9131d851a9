"""Control planes that every folder of tests may ask for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.control_planes import ControlPlane, EmbeddedControlPlane, RealControlPlane

# A machine that has other things to do makes no example wrong.
settings.register_profile("capstan", deadline=None)
settings.load_profile("capstan")


def real_assets_or_skip() -> Path:
    """The folder of the real binaries; skips the test when there is none, unless CAPSTAN_REQUIRE_REAL=1."""
    assets = RealControlPlane.assets_from_environment()
    if assets is not None:
        return assets
    reason = "KUBEBUILDER_ASSETS is unset: no real kube-apiserver to compare with"
    if os.environ.get("CAPSTAN_REQUIRE_REAL") == "1":
        pytest.fail(f"{reason}, and CAPSTAN_REQUIRE_REAL=1 demands one")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def embedded_control_plane() -> Iterator[ControlPlane]:
    with (
        tempfile.TemporaryDirectory(prefix="capstan-embedded-") as folder,
        EmbeddedControlPlane(Path(folder) / "plane") as plane,
    ):
        yield plane


@pytest.fixture(scope="session")
def embedded_with_controllers() -> Iterator[ControlPlane]:
    """Deployments make pods here, and what belongs to nobody is collected, as with a real controller manager."""
    with (
        tempfile.TemporaryDirectory(prefix="capstan-controllers-") as folder,
        EmbeddedControlPlane(Path(folder) / "plane", with_controllers=True) as plane,
    ):
        yield plane


@pytest.fixture(scope="session")
def real_control_plane() -> Iterator[ControlPlane]:
    assets = real_assets_or_skip()
    with (
        tempfile.TemporaryDirectory(prefix="capstan-real-") as folder,
        RealControlPlane(Path(folder) / "plane", assets=assets) as plane,
    ):
        yield plane


@pytest.fixture(scope="session", params=["embedded", "real"])
def control_plane(request: pytest.FixtureRequest) -> ControlPlane:
    """A running API server: every test that asks for it runs once against each kind."""
    plane: ControlPlane = request.getfixturevalue(f"{request.param}_control_plane")
    return plane
