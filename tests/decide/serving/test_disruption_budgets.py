"""When a service has a PodDisruptionBudget: whenever a drain could take more than one of its pods."""

from __future__ import annotations

import pytest

from tests.support.serving_world import SERVICE, World, live


def with_budgets(**spec: int) -> World:
    world = World(spec=spec, budget_api="policy/v1")
    world.settle()
    return world


def test_a_service_of_several_pods_has_one_before_its_first_pod_is_ready() -> None:
    world = with_budgets(replicas=2)
    assert world.behind() == {}
    assert world.budget is not None
    assert world.budget["spec"] == {
        "maxUnavailable": 1,
        "selector": {"matchLabels": {"capstan.dev/service": SERVICE}},
    }


def test_one_that_is_gone_is_made_again_and_nothing_else_is_done() -> None:
    world = live(replicas=3)
    world.budget_api = "policy/v1beta1"
    decision = world.decide()
    assert [(one["apiVersion"], one["kind"]) for one in decision.apply] == [("policy/v1beta1", "PodDisruptionBudget")]
    assert (decision.scale, decision.delete) == ((), ())
    assert world.decide().apply == ()


def test_a_service_of_one_pod_has_none_because_it_could_keep_a_node_from_being_drained() -> None:
    world = with_budgets(replicas=1)
    assert world.budget is None
    world.spec["replicas"] = 2
    world.settle()
    assert world.budget is not None
    world.spec["replicas"] = 1
    world.settle()
    assert world.budget is None


@pytest.mark.parametrize("replicas", [1, 2])
def test_where_budgets_are_not_served_nothing_is_asked_for(replicas: int) -> None:
    world = live(replicas=replicas)
    assert world.decide().apply == ()
    assert world.budget is None
