"""An operator that allows no folders of the nodes takes over from one that did: services keep those that they have."""

from __future__ import annotations

from typing import Any

import pytest

from capstan_operator.observe import OperatorSettings
from tests.support.looks import merged
from tests.support.serving_world import World, live, trained

ALLOWING = OperatorSettings(allow_host_path=True)
PATCHED = {"podPatch": {"spec": {"volumes": [{"name": "shared", "hostPath": {"path": "/shared"}}]}}}
IN_FOLDER = {"checkpoint": {"store": {"claim": None, "hostPath": {"path": "/mnt/lustre"}}}}
CANARY = {"rollout": {"strategy": {"canary": {"steps": [{"weight": 25, "holdSeconds": 30}]}}}}


def begun(**spec: Any) -> World:
    """Served while folders of the nodes were allowed."""
    return live(job=trained(**IN_FOLDER), settings=ALLOWING, **spec)


def upgrade(world: World) -> None:
    """From a release that noted nothing of what was asked."""
    revisions = [one.model_copy(update={"asked": None}) for one in world.status.revisions]
    world.status = world.status.model_copy(update={"revisions": revisions})
    world.settings = OperatorSettings()
    world.replace_operator()


@pytest.mark.parametrize("spec", [{}, PATCHED], ids=["store", "podPatch"])
def test_a_service_stays_as_it_is_and_follows_its_size(spec: dict[str, Any]) -> None:
    world = begun(**spec)
    before, stable = world.status, world.stable
    upgrade(world)
    world.settle()
    assert world.status == before
    world.spec = merged(world.spec, {"replicas": 5})
    world.settle()
    world.get_ready()
    world.settle()
    assert (world.stable, world.candidate, world.deployments) == (stable, None, {stable: 5})
    assert world.status.reason == "Live"


def test_a_rollout_that_is_under_way_goes_on_to_its_end() -> None:
    world = begun(**PATCHED, **CANARY)
    world.spec = merged(world.spec, {"timeoutSeconds": 33})
    world.settle()
    candidate = world.candidate
    assert candidate is not None
    upgrade(world)
    world.settle()
    assert (world.candidate, candidate in world.deployments) == (candidate, True)


def test_a_service_goes_on_to_follow_a_job_whose_store_it_was_let_serve_from() -> None:
    world = begun(modelRef={"trainingJob": {"track": True}})
    stable = world.stable
    upgrade(world)
    world.settle()
    world.job = trained(300, **IN_FOLDER)
    world.settle()
    assert world.candidate not in (None, stable)


@pytest.mark.parametrize(
    "change", [PATCHED, {"modelRef": {"trainingJob": {"name": "another"}}}], ids=["patch", "store"]
)
def test_a_folder_that_it_has_not_got_is_refused_and_what_serves_goes_on(change: dict[str, Any]) -> None:
    world = live()
    stable = world.stable
    if "modelRef" in change:
        world.job = trained(300, **IN_FOLDER)
    world.spec = merged(world.spec, change)
    world.settle()
    assert (world.stable, world.candidate, set(world.deployments)) == (stable, None, {stable})
    assert world.status.reason == "InvalidSpec"


def test_a_new_service_is_refused() -> None:
    world = World(job=trained(**IN_FOLDER))
    world.settle()
    assert (world.status.reason, world.deployments) == ("InvalidSpec", {})
    assert (world.status.message or "").startswith(
        "spec.modelRef.trainingJob: its checkpoint.store.hostPath: /mnt/lustre: folders of the nodes"
    )
