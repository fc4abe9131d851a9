"""A service that names its model in a registry: a pod finds out what that means, and what is promoted is rolled out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from capstan_operator.build.pod_parts import TERMINATION_LOG
from capstan_operator.decide.inference_service import decide_inference_service
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract.registry import REGISTRY, ResolveTask
from tests.support.looks import root
from tests.support.serving_world import SERVICE, World

CLAIM = {"claim": {"name": "models"}}


def asking(world: World) -> dict[str, Any]:
    """The pod that the next look creates."""
    (pod,) = decide_inference_service(world.look(), world.now).create
    return pod


def world_of(store: dict[str, Any] | None = None, **which: Any) -> World:
    ref = {"store": store or CLAIM, "name": "letters", **which}
    return World(spec={"modelRef": {"trainingJob": None, "registry": ref}}, job=None)


def lives(world: World) -> World:
    """All that is wanted has come up."""
    for _ in range(world.spec["replicas"] + 1):  # one pod after the other
        world.settle()
        world.get_ready()
    world.now += 3600  # and then it is held for a while
    world.settle()
    assert world.status.reason == "Live", world.status
    return world


def test_the_pod_that_asks_sees_the_store_alone_and_has_no_part_in_the_service() -> None:
    pod = asking(world_of(version="1.2.0"))
    (container,) = pod["spec"]["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values[REGISTRY] == "/var/lib/capstan/store"
    assert values["CAPSTAN_TERMINATION_LOG"] == TERMINATION_LOG
    assert container["command"] == ["python", "-m", "capstan_runtime.registry.resolve"]
    assert container["volumeMounts"] == [{"name": "store", "mountPath": "/var/lib/capstan/store", "readOnly": True}]
    assert pod["spec"]["volumes"] == [{"name": "store", "persistentVolumeClaim": {"claimName": "models"}}]
    assert pod["spec"]["restartPolicy"] == "OnFailure"
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "capstan",
        "capstan.dev/registry": SERVICE,
    }, "the service's own label would lead requests to it"
    bucket = {"object": {"url": "s3://models/prod/", "endpoint": "http://minio:9000", "secretName": "keys"}}
    pod = asking(world_of(bucket, stage="production"))
    (container,) = pod["spec"]["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values[REGISTRY] == "s3://models/prod"
    assert values["AWS_ENDPOINT_URL"] == "http://minio:9000"
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert (container["volumeMounts"], pod["spec"]["volumes"]) == ([], [])


def test_the_pod_that_asks_is_who_the_services_pods_are_and_has_nothing_else_of_their_patch() -> None:
    world = world_of({"object": {"url": "s3://models/prod"}}, stage="production")
    plain = asking(world)
    identity = {"serviceAccountName": "reader", "imagePullSecrets": [{"name": "private"}]}
    world.spec["podPatch"] = {
        "metadata": {"labels": {"azure.workload.identity/use": "true"}, "annotations": {"note": "x"}},
        "spec": {
            **identity,
            "containers": [{"name": "server", "env": [{"name": "A", "value": "b"}]}, {"name": "sidecar", "image": "i"}],
            "volumes": [{"name": "more", "emptyDir": {}}],
        },
    }
    pod = asking(world)
    assert pod["spec"] == {**plain["spec"], **identity}
    labels = {**plain["metadata"]["labels"], "azure.workload.identity/use": "true"}
    assert (pod["metadata"]["labels"], pod["metadata"]["annotations"]) == (labels, {"note": "x"})
    assert pod["metadata"]["name"] != plain["metadata"]["name"]
    assert pod["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "50m", "memory": "128Mi"},
        "limits": {"cpu": "1", "memory": "256Mi"},
    }
    world.spec["podPatch"] = {"metadata": {"labels": {"capstan.dev/registry": "mine"}}}
    decision = decide_inference_service(world.look(), world.now)
    assert (decision.create, decision.status.reason) == ((), "InvalidSpec")


def test_until_there_is_an_answer_nothing_is_served_and_status_says_who_is_asked() -> None:
    world = world_of(version="1.2.0")
    world.settle()
    (name,) = world.resolvers
    assert world.questions[name] == ResolveTask(name="letters", version="1.2.0")
    assert (world.status.reason, world.status.message) == (
        "RegistryAsked",
        f"pod {name} waits until letters@1.2.0 is in the registry, which is served then; kubectl logs {name} says what "
        "it sees",
    )
    world.resolvers[name] = replace(world.resolvers[name], problem="ConfigError: no credentials: set AWS_ACCESS_KEY_ID")
    world.settle()
    assert world.status.message == (
        f"pod {name} waits until letters@1.2.0 is in the registry, which is served then (ConfigError: no credentials: "
        "set AWS_ACCESS_KEY_ID)"
    )


def test_a_version_is_asked_for_once_and_served_by_its_digest() -> None:
    world = world_of(version="1.2.0")
    world.settle()
    world.answer("1.2.0", step=300)
    lives(world)
    model = world.status.model
    assert model is not None
    assert model.document() == {
        "source": "registry letters@1.2.0",
        "run": "default/digits/7f3a",
        "digest": root(300),
        "version": "letters 1.2.0",
        "step": 300,
        "framework": "torch",
        "store": CLAIM,
    }
    assert world.resolvers == {}, "all is known for good"
    assert world.status.served == "letters 1.2.0"
    assert world.revision(world.stable).version == "letters 1.2.0"
    assert world.status.digest is not None
    assert root(300).startswith(world.status.digest)


def test_what_is_promoted_is_rolled_out_and_the_next_pod_waits_for_what_comes_after_it() -> None:
    world = world_of(stage="production")
    world.settle()
    world.answer("1.0.0", step=100)
    first = lives(world).stable
    (name,) = world.resolvers
    assert world.questions[name] == ResolveTask(name="letters", stage="production", known="1.0.0")
    world.answer("1.1.0", step=200)
    world.settle()
    assert world.status.model is not None
    assert (world.status.model.version, world.stable) == ("letters 1.1.0", first), "the proven one stays until then"
    assert world.candidate is not None
    (name,) = world.resolvers
    assert world.questions[name].known == "1.1.0"
    lives(world)
    assert world.stable != first
    assert world.status.served == "letters 1.1.0"
    world.answer("1.0.0", step=100)
    lives(world)
    assert world.stable == first, "a promotion back leads to what was proven before"


def test_a_promotion_during_a_rollout_is_followed_at_once() -> None:
    world = world_of(stage="production")
    world.settle()
    world.answer("1.0.0", step=100)
    first = lives(world).stable
    world.answer("1.1.0", step=200)
    world.settle()
    bad = world.candidate
    assert bad is not None
    world.answer("1.0.0", step=100)
    lives(world)
    assert (world.stable, world.candidate) == (first, None)
    assert bad not in world.deployments


def test_the_same_checkpoint_under_another_version_makes_no_other_revision() -> None:
    world = world_of(stage="production")
    world.settle()
    world.answer("1.0.0", step=100)
    first = lives(world).stable
    world.answer("1.0.1", step=100)
    lives(world)
    assert world.stable == first
    assert world.status.model is not None
    assert world.status.model.version == "letters 1.0.1"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "digits"},
        {"stage": "staging"},
        {"stage": None, "version": "2.0.0"},
        {"store": {"claim": {"name": "others"}}},
        {"publicKey": "-----BEGIN PUBLIC KEY-----"},
    ],
    ids=lambda change: "-".join(change),
)
def test_another_question_is_asked_anew_while_what_serves_goes_on(change: dict[str, Any]) -> None:
    world = world_of(stage="production")
    world.settle()
    world.answer("1.0.0", step=100)
    first = lives(world).stable
    (before,) = world.resolvers
    ref = {key: value for key, value in {**world.spec["modelRef"]["registry"], **change}.items() if value is not None}
    world.spec = {**world.spec, "modelRef": {"registry": ref}}
    world.settle()
    (asker,) = world.resolvers
    assert asker != before
    assert world.questions[asker].known is None
    assert (world.status.reason, world.stable, world.behind()) == ("RegistryAsked", first, {first: 2})


def test_a_pod_that_was_evicted_or_said_nothing_is_replaced() -> None:
    world = world_of(version="1.2.0")
    world.settle()
    (name,) = world.resolvers
    world.resolvers[name] = replace(world.resolvers[name], is_over=True, problem="Evicted")
    world.settle()
    assert list(world.resolvers) == [name], "it has just begun, and the next one would fare no better"
    assert world.status.message is not None
    assert world.status.message.endswith("which is served then (Evicted)")
    world.now += 20
    decision = world.decide()
    assert (decision.delete_pods, decision.requeue_after) == ((), 40.0)
    world.now += 40
    decision = world.decide()
    assert [gone.name for gone in decision.delete_pods] == [name]
    world.settle()
    assert list(world.resolvers) == [name]
    world.resolvers[name] = replace(world.resolvers[name], is_over=True, is_deleting=True)
    decision = decide_inference_service(world.look(), world.now)
    assert (decision.create, decision.delete_pods) == ((), ()), "the name is free when it is gone"


def test_who_asks_no_more_of_a_registry_leaves_no_pod_behind() -> None:
    world = world_of(stage="production")
    world.settle()
    uri = {"store": CLAIM, "run": "default/digits/7f3a", "digest": root(100)}
    world.spec = {**world.spec, "modelRef": {"uri": uri}, "runtime": "flax"}
    world.settle()
    assert world.resolvers == {}


def test_a_folder_of_the_nodes_is_refused_where_it_is_not_allowed() -> None:
    world = world_of({"hostPath": {"path": "/models"}}, stage="production")
    world.settle()
    assert world.resolvers == {}
    assert world.status.reason == "InvalidSpec"
    assert world.status.message is not None
    assert world.status.message.startswith("spec.modelRef.registry.store.hostPath: /models: ")
    world.settings = OperatorSettings(allow_host_path=True)
    world.settle()
    assert len(world.resolvers) == 1
