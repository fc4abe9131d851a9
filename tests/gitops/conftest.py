"""API servers with the controllers that Deployments and deletions need."""

from __future__ import annotations

import pytest

from tests.support.control_planes import ControlPlane


@pytest.fixture(scope="session", params=["embedded", "real"])
def control_plane(request: pytest.FixtureRequest) -> ControlPlane:
    """Each kind of server, with its controllers; the fixture that this one hides has none in the embedded server."""
    name = {"embedded": "embedded_with_controllers", "real": "real_control_plane"}[request.param]
    plane: ControlPlane = request.getfixturevalue(name)
    return plane
