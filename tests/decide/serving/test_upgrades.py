"""A newer operator makes other pods of the same spec. No service is rolled out for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import InferenceServiceStatus, ModelStatus
from capstan_operator.api.store import Store
from capstan_operator.build.serving_revision import Revision
from capstan_operator.decide.serving.asked import asked_digest
from capstan_operator.decide.serving.blueprint import read_revision
from capstan_operator.observe import OperatorSettings
from capstan_operator.observe_serving import ObservedService, ServedTraffic
from capstan_runtime.contract.exit_codes import ExitCode
from tests.support.looks import merged, root
from tests.support.serving_world import SERVING_SPEC, World, live, trained

NEWER = OperatorSettings(serve_image="capstan/serve-replica:9.9.9")
CANARY = {"rolling": None, "canary": {"steps": [{"weight": 25, "holdSeconds": 30}]}}
CHANGES: list[dict[str, Any]] = [
    {"replicas": 5},
    {"replicas": None, "autoscaling": {"maxReplicas": 4}},
    {"rollout": {"strategy": CANARY}},
    {"rollout": {"progressDeadlineSeconds": 900}},
    {"rollout": {"strategy": merged(CANARY, {"canary": {"gates": {"minAgreement": 0.9}}})}},
    {"gateway": {"parentRefs": [{"name": "public"}]}},
    {"backend": "Standalone"},
    {"managedBy": "capstan.dev/operator"},
    {"runtime": "flax"},
    {"runtime": "torch"},
    {"protocols": ["OpenInference"]},
    {"image": "mine:1"},
    {"gpus": 1},
    {"resources": {"cpu": "2"}},
    {"nodeSelector": {"zone": "a"}},
    {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
    {"podPatch": {"metadata": {"annotations": {"a": "b"}}}},
    {"timeoutSeconds": 12},
    {"drainSeconds": 20},
    {"terminationGracePeriodSeconds": 400},
    {"auth": {"apiKeysSecretRef": {"name": "keys"}}},
    {"tls": {"secretRef": {"name": "pair"}}},
    {"rateLimit": {"requests": 10}},
    {"batching": {"maxBatchSize": 3}},
    {"queue": {"maxOngoingRequests": 3}},
    {"adaptiveLimit": {}},
    {"circuitBreaker": {"failures": 7}},
    {"cache": {}},
    {"validation": {"maxSamples": 3}},
    {"anomaly": {"action": "Flag", "confidenceBelow": 0.6}},
    {"audit": {}},
    {"tracing": {"endpoint": "http://collector:4318"}},
]
"""Of each field of the spec at least one change."""
MODEL = ModelStatus(
    source="trainingJob digits",
    run="default/digits/7f3a",
    digest=root(200),
    step=200,
    framework="flax",
    store=Store.parse({"claim": {"name": "checkpoints"}}),
)


def upgrade(world: World) -> None:
    """By a release that noted nothing of what was asked."""
    world.status = without_asked(world.status)
    replace_by_newer(world)


def replace_by_newer(world: World) -> None:
    """A release that noted what was asked."""
    world.settings = NEWER
    world.replace_operator()


def without_asked(status: InferenceServiceStatus) -> InferenceServiceStatus:
    revisions = [one.model_copy(update={"asked": None}) for one in status.revisions]
    return status.model_copy(update={"revisions": revisions})


def made(spec: dict[str, Any], model: ModelStatus = MODEL) -> tuple[str, str]:
    """Name of the revision, and digest of what is asked for."""
    parsed = InferenceServiceSpec.parse(merged(SERVING_SPEC, spec))
    service = ObservedService("default", "digits", "51ab", 1, False, {}, InferenceServiceStatus())
    revision = read_revision(service, parsed, model, OperatorSettings())
    assert isinstance(revision, Revision), revision
    return revision.name, asked_digest(parsed, model)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_is_asked_changes_exactly_when_another_revision_would_be_made(change: dict[str, Any]) -> None:
    (old_name, old_asked), (name, asked) = made({}), made(change)
    assert (name != old_name) == (asked != old_asked)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": root(300)},
        {"run": "default/digits/8888"},
        {"store": Store.parse({"claim": {"name": "another"}})},
        {"public_key": "key"},
        {"framework": "torch"},
        {"step": 201},
        {"source": "uri"},
    ],
    ids=str,
)
def test_what_is_asked_changes_with_the_model_exactly_when_another_revision_would_be_made(
    change: dict[str, Any],
) -> None:
    (old_name, old_asked), (name, asked) = made({}), made({}, MODEL.model_copy(update=change))
    assert (name != old_name) == (asked != old_asked)


def test_every_field_of_the_spec_is_among_the_changes() -> None:
    told = {field for change in CHANGES for field in change}
    fields = {field.alias or name for name, field in InferenceServiceSpec.model_fields.items()}
    assert fields - told == {"modelRef"}


def test_an_upgrade_rolls_out_nothing_and_writes_one_status() -> None:
    world = live()
    before, children = world.status, (dict(world.deployments), dict(world.pods), set(world.secrets))
    upgrade(world)
    decision = world.decide()
    assert (decision.apply, decision.scale, decision.delete, decision.events) == ((), (), (), ())
    assert world.status == before
    world.settle()
    assert (world.status, (dict(world.deployments), dict(world.pods), set(world.secrets))) == (before, children)


@pytest.mark.parametrize("strategy", [{"rolling": {"maxSurge": 2}}, CANARY], ids=["rolling", "canary"])
def test_a_rollout_that_is_under_way_goes_on_with_the_revision_that_it_has(strategy: dict[str, Any]) -> None:
    world = live(rollout={"strategy": strategy})
    world.spec = merged(world.spec, {"timeoutSeconds": 33})
    world.settle()
    candidate = world.candidate
    assert candidate is not None
    upgrade(world)
    world.settle()
    assert world.candidate == candidate
    assert set(world.deployments) == {world.stable, candidate}


def miss_the_deadline(world: World) -> None:
    world.now += 700.0


def fail_the_gates(world: World) -> None:
    world.get_ready()
    world.settle()
    fine, failing = ServedTraffic(2000, 0, (2000,) * 5, 2000), ServedTraffic(500, 250, (250,) * 5, 250)
    world.traffic = {str(world.stable): fine, str(world.candidate): failing}


def find_a_corrupt_checkpoint(world: World) -> None:
    world.change_pods(world.candidate, exit_code=ExitCode.CORRUPT_CHECKPOINT)


def turned_back(give_up: Callable[[World], None]) -> tuple[World, str]:
    """A service that stays with its proven revision, and the name of what its spec asks for, which was given up."""
    world = live(rollout={"strategy": CANARY, "progressDeadlineSeconds": 60})
    world.spec = merged(world.spec, {"timeoutSeconds": 33})
    world.settle()
    candidate = world.candidate
    assert candidate is not None
    give_up(world)
    world.settle()
    assert (world.candidate, world.revision(candidate).phase) == (None, "Failed")
    return world, candidate


@pytest.mark.parametrize("replace_operator", [replace_by_newer, upgrade])
@pytest.mark.parametrize("give_up", [miss_the_deadline, fail_the_gates, find_a_corrupt_checkpoint])
def test_what_was_turned_back_stays_turned_back(
    give_up: Callable[[World], None], replace_operator: Callable[[World], None]
) -> None:
    world, _ = turned_back(give_up)
    before, children = without_asked(world.status), (dict(world.deployments), set(world.secrets), world.behind())
    replace_operator(world)
    world.settle()
    world.now += 3600.0
    world.settle()
    now = without_asked(world.status), (dict(world.deployments), set(world.secrets), world.behind())
    assert now == (before, children)


def test_what_was_turned_back_is_tried_again_as_before_and_then_with_the_newer_image() -> None:
    world, given_up = turned_back(miss_the_deadline)
    replace_by_newer(world)
    world.settle()
    world.spec = merged(world.spec, {"rollout": {"progressDeadlineSeconds": 600}})
    world.settle()
    assert world.candidate not in (None, given_up, world.stable)


def test_an_answer_that_was_bad_stays_so_when_something_is_changed_that_is_no_part_of_it() -> None:
    world, _ = turned_back(fail_the_gates)
    replace_by_newer(world)
    world.spec = merged(world.spec, {"rollout": {"progressDeadlineSeconds": 600}})
    world.settle()
    assert (world.candidate, set(world.deployments)) == (None, {world.stable})


def test_where_nothing_else_serves_the_newer_image_is_tried_after_the_pause() -> None:
    world = World(spec={"rollout": {"progressDeadlineSeconds": 60}})
    world.settle()
    first = world.candidate
    world.change_pods(first, exit_code=ExitCode.CONFIG)
    world.settle()
    assert (world.candidate, world.stable) == (None, None)
    replace_by_newer(world)
    world.settle()
    assert world.candidate is None, "its pause is not over"
    world.now += 30.0
    world.settle()
    assert world.candidate not in (None, first)


def test_a_service_that_is_sized_after_an_upgrade_keeps_its_revision() -> None:
    world = live()
    stable = world.stable
    upgrade(world)
    world.settle()
    world.spec = merged(world.spec, {"replicas": 5})
    world.settle()
    world.get_ready()
    world.settle()
    assert (world.stable, world.candidate, world.deployments) == (stable, None, {stable: 5})


def test_what_is_asked_for_anew_gets_the_newer_image_and_going_back_finds_the_revision_of_before() -> None:
    world = live()
    stable = world.stable
    upgrade(world)
    world.settle()
    first = world.spec
    world.spec = merged(world.spec, {"timeoutSeconds": 33})
    world.settle()
    assert world.candidate not in (None, stable)
    world.spec = first
    world.settle()
    assert (world.stable, world.candidate, set(world.deployments)) == (stable, None, {stable})


def test_a_spec_that_changed_while_no_operator_led_is_rolled_out() -> None:
    world = live()
    stable = world.stable
    upgrade(world)
    world.spec = merged(world.spec, {"timeoutSeconds": 33})
    world.settle()
    assert world.candidate not in (None, stable)


def test_a_newer_checkpoint_is_rolled_out_with_the_newer_image() -> None:
    world = live(modelRef={"trainingJob": {"track": True}})
    stable = world.stable
    upgrade(world)
    world.settle()
    world.job = trained(300)
    world.settle()
    assert world.candidate not in (None, stable)


def test_a_server_that_prunes_what_it_does_not_know_stops_no_rollout() -> None:
    """Its CustomResourceDefinitions are of the release of before."""
    world = live()
    world.spec = merged(world.spec, {"timeoutSeconds": 33})
    for _ in range(12):
        world.decide()
        world.status = without_asked(world.status)
    assert world.candidate in world.deployments
