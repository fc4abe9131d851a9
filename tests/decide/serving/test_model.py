"""Which checkpoint is served, and what of it stays when its job does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import InferenceServiceStatus, ModelStatus, RolloutStatus
from capstan_operator.api.meta import InferenceServiceCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.conditions import find
from capstan_operator.decide.inference_service import decide_inference_service
from capstan_operator.decide.serving.model import resolve
from capstan_operator.decide.serving.types import NoModel
from capstan_operator.observe_serving import ObservedReplica
from tests.support.looks import make_job, root
from tests.support.serving_world import live, trained

KEY = "-----BEGIN PUBLIC KEY-----"


def spec(**ref: Any) -> InferenceServiceSpec:
    return InferenceServiceSpec.parse({"modelRef": {"trainingJob": {"name": "digits", **ref}}})


def found(*args: Any) -> ModelStatus:
    model = resolve(*args)
    assert isinstance(model, ModelStatus), model
    return model


def knowing(model: ModelStatus, **changes: Any) -> InferenceServiceStatus:
    return InferenceServiceStatus(model=model, **changes)


NOTHING = InferenceServiceStatus()


def test_the_newest_verified_checkpoint_of_the_job_is_served_from_its_store() -> None:
    model = found(spec(), trained(200), NOTHING)
    assert (model.run, model.digest, model.step, model.framework) == ("default/digits/7f3a", root(200), 200, "flax")
    assert model.store.claim is not None
    assert found(spec(), trained(200, framework={"flax": None, "deepspeed": {}}), NOTHING).framework == "torch"


def test_what_an_attempt_was_resumed_from_was_verified_too() -> None:
    status = TrainingJobStatus.parse(
        {
            "checkpoint": {"step": 300, "root": root(300)},
            "resumedFrom": {"step": 200, "root": root(200), "verifiedAt": "1970-01-01T00:00:00Z"},
        }
    )
    assert found(spec(track=True), make_job(status=status), NOTHING).step == 200


def test_unless_it_is_followed_a_job_must_have_succeeded_and_only_what_it_ended_with_is_served() -> None:
    running = resolve(spec(), trained(200, is_done=False), NOTHING)
    assert isinstance(running, NoModel)
    assert running.reason == "TrainingJobNotDone"
    assert found(spec(track=True), trained(200, is_done=False), NOTHING).step == 200
    assert found(spec(digest=root(100)), trained(200, is_done=False), NOTHING).digest == root(100)
    unread = trained(300, is_verified=False)
    older = {"step": 200, "root": root(200), "verifiedAt": "1970-01-01T00:00:00Z"}
    unread = replace(unread, status=TrainingJobStatus.parse(unread.status.document() | {"resumedFrom": older}))
    waiting = resolve(spec(), unread, NOTHING)
    assert isinstance(waiting, NoModel)
    assert waiting.reason == "NoVerifiedCheckpoint"


def test_with_track_nothing_older_replaces_what_is_served() -> None:
    status = TrainingJobStatus.parse(
        {
            "checkpoint": {"step": 400, "root": root(400)},
            "resumedFrom": {"step": 200, "root": root(200), "verifiedAt": "1970-01-01T00:00:00Z"},
        }
    )
    known = found(spec(track=True), trained(300), NOTHING)
    assert found(spec(track=True), make_job(status=status), knowing(known)).step == 300


def test_what_was_found_first_stays_unless_it_is_to_be_followed() -> None:
    known = found(spec(), trained(200), NOTHING)
    assert found(spec(), trained(300), knowing(known)).step == 200
    assert found(spec(track=True), trained(300), knowing(known)).step == 300
    rollout = RolloutStatus(candidate="digits-1", phase="Starting", started_at="1970-01-01T00:00:00Z")
    assert found(spec(track=True), trained(300), knowing(known, rollout=rollout)).step == 200


def test_a_digest_is_served_whatever_is_newer_and_known_when_its_job_is_gone() -> None:
    model = found(spec(digest=root(100)), trained(200), NOTHING)
    assert (model.digest, model.step) == (root(100), None)
    assert found(spec(digest=root(200)), trained(200), NOTHING).step == 200
    assert found(spec(digest=root(100)), None, knowing(model)) == model
    moved = resolve(spec(digest=root(100)), None, knowing(found(spec(), trained(200), NOTHING)))
    assert isinstance(moved, NoModel)
    assert moved.reason == "TrainingJobNotFound"


def test_the_key_is_the_users_or_the_jobs() -> None:
    signed = trained(200, checkpoint={"sign": {"secretName": "keys"}, "verify": {"publicKey": KEY}})
    assert found(spec(), signed, NOTHING).public_key == KEY
    assert found(spec(publicKey="mine"), signed, NOTHING).public_key == "mine"
    known = found(spec(), signed, NOTHING)
    assert found(spec(), None, knowing(known)).public_key == KEY
    assert found(spec(), replace(signed, spec={}), knowing(known)).public_key == KEY
    assert found(spec(), trained(200), knowing(known)).public_key == KEY


def test_a_model_of_the_users_own_code_is_not_served() -> None:
    own = trained(200)
    own = replace(own, spec={**own.spec, "model": {"custom": {"target": "own:make"}}})
    refused = resolve(spec(), own, NOTHING)
    assert isinstance(refused, NoModel)
    assert refused.message.startswith("TrainingJob digits trains a model of its user's own code (model.custom), and")


def test_of_an_invalid_job_nothing_new_is_served() -> None:
    broken = replace(trained(200), spec={"model": {}})
    refused = resolve(spec(), broken, NOTHING)
    assert isinstance(refused, NoModel)
    assert refused.reason == "TrainingJobInvalid"
    known = found(spec(track=True), trained(200), NOTHING)
    assert found(spec(track=True), broken, knowing(known)).digest == root(200)


def test_of_a_job_that_was_made_anew_it_is_said_that_the_one_before_it_is_served() -> None:
    world = live()
    assert world.job is not None

    def up_to_date() -> tuple[str, str]:
        world.settle()
        condition = find(world.status, InferenceServiceCondition.UP_TO_DATE)
        assert condition is not None
        return condition.status, condition.message.partition("; ")[2]

    assert up_to_date() == ("True", "")
    world.job = replace(world.job, uid="another")
    status, message = up_to_date()
    assert (status, message.partition(":")[0]) == ("True", "TrainingJob digits was made anew since")


def test_that_a_rollout_waits_for_pods_to_leave_is_told() -> None:
    world = live()
    world.pods["left"] = ObservedReplica("left", "left", "digits-0", is_ready=True, is_deleting=False)
    world.spec = {**world.spec, "timeoutSeconds": 7}
    status = decide_inference_service(world.look(), world.now).status
    assert (status.reason, str(status.message).partition(" waits ")[2]) == (
        "Starting",
        "until no pod of digits-0 is left",
    )
