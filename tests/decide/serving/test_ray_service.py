"""InferenceServices whose replicas KubeRay keeps: what is decided while KubeRay does its part."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.cluster.ray_services import decode_ray_service, observe_ray_service
from capstan_operator.decide.inference_service import decide_inference_service
from capstan_operator.decide.serving.types import ServingDecision
from capstan_operator.observe_serving import ObservedServing
from tests.support.looks import make_job, merged
from tests.support.serving_world import World, trained
from tests.support.serving_world import live as standalone

KUBERAY: dict[str, Any] = {
    "backend": "RayService",
    "rollout": {"strategy": {"rolling": None, "blueGreen": {"holdSeconds": 7}}},
}


class KubeRay:
    """One InferenceService, its RayService and its Secrets. KubeRay does what it is told to do."""

    def __init__(self, **spec: Any) -> None:
        self.world = World(spec={**KUBERAY, **spec})
        self.is_served = True
        self.made: dict[str, Any] | None = None
        """The RayService as it is stored; None: there is none."""
        self.secrets: set[str] = set()
        self.events: list[str] = []

    @property
    def status(self) -> InferenceServiceStatus:
        return self.world.status

    @property
    def asked_for(self) -> str:
        """The revision that the RayService asks for."""
        assert self.made is not None
        name: str = self.made["metadata"]["labels"]["capstan.dev/revision"]
        return name

    def look(self) -> ObservedServing:
        seen = observe_ray_service(decode_ray_service(json.dumps(self.made))) if self.made else None
        return replace(self.world.look(), ray_service=seen, has_kuberay=self.is_served, ray_token="t0ken")

    def decide(self) -> ServingDecision:
        """One look, and what was decided on it carried out."""
        decision = decide_inference_service(self.look(), self.world.now)
        for manifest in decision.apply:
            if manifest["kind"] == "Secret":
                self.secrets.add(manifest["metadata"]["name"])
                continue
            assert manifest["kind"] == "RayService"
            before = self.made or {"metadata": {"generation": 0}, "status": {}}
            metadata = {**manifest["metadata"], "uid": "4a1", "generation": before["metadata"]["generation"] + 1}
            self.made = {**manifest, "metadata": metadata, "status": before["status"]}
        self.secrets -= {deletion.name for deletion in decision.delete if deletion.kind == "Secret"}
        self.world.status = InferenceServiceStatus.parse(decision.status.document())
        self.events += [f"{note.reason}: {note.message}" for note in decision.events]
        return decision

    def settle(self) -> None:
        for _ in range(6):
            before = self.status
            decision = self.decide()
            if self.status == before and not (decision.apply or decision.delete):
                return
        raise AssertionError(f"still deciding: {self.status.message}")

    def say(self, **status: Any) -> None:
        """What stands on the RayService's status, of which KubeRay has seen the newest."""
        assert self.made is not None
        seen = {"observedGeneration": self.made["metadata"]["generation"]}
        self.made["status"] = {**self.made["status"], **seen, **status}

    def begin(self) -> None:
        """A new cluster comes up beside that which serves, of whose application nothing is said meanwhile."""
        active = {**self.made["status"].get("activeServiceStatus", {})} if self.made else {}
        active.pop("applicationStatuses", None)
        self.say(activeServiceStatus=active, pendingServiceStatus={"rayClusterName": "digits-new"})

    def switch(self, endpoints: int = 2) -> None:
        """The new cluster has the traffic."""
        active = {"rayClusterName": "digits-new", "applicationStatuses": {"capstan": {"status": "RUNNING"}}}
        self.say(activeServiceStatus=active, pendingServiceStatus={}, numServeEndpoints=endpoints)

    def conditions(self) -> dict[str, str]:
        return {one.type: f"{one.status} {one.reason}" for one in self.status.conditions}


def live(**spec: Any) -> KubeRay:
    """What the spec asks for has the traffic."""
    service = KubeRay(**spec)
    service.settle()
    service.switch()
    service.settle()
    assert service.status.reason == "Live"
    return service


LIVE = {"Accepted": "True Valid", "Serving": "True Live", "UpToDate": "True Live", "Progressing": "False Live"}


def test_a_revision_is_recorded_before_its_secret_and_the_ray_service_are_made() -> None:
    service = KubeRay()
    first = service.decide()
    assert (first.apply, first.requeue_after) == ((), 0.0)
    second = service.decide()
    assert [manifest["kind"] for manifest in second.apply] == ["Secret", "RayService"]
    assert service.secrets == {service.asked_for} == {one.name for one in service.status.revisions}
    assert second.apply[1]["spec"]["rayClusterDeletionDelaySeconds"] == 7
    service.settle()
    assert service.status.message == f"the Ray cluster of {service.asked_for} comes up"
    assert service.conditions() == {
        "Accepted": "True Valid",
        "Serving": "False NoReadyPods",
        "UpToDate": "False Starting",
        "Progressing": "True Starting",
    }
    assert (service.status.url, service.status.ready, service.status.traffic) == (None, "0/2", None)


def test_it_serves_once_its_service_has_endpoints_whatever_else_kuberay_says() -> None:
    service = KubeRay()
    service.settle()
    service.switch(endpoints=0)
    service.say(serviceStatus="Running")
    service.settle()
    assert service.conditions()["Serving"] == "False NoReadyPods"
    assert service.status.stable is None
    service.switch(endpoints=1)
    service.settle()
    name = service.asked_for
    assert service.conditions() == LIVE
    told = service.status.document()
    assert {key: told[key] for key in ("url", "ready", "traffic", "trafficMode", "served", "stable")} == {
        "url": "http://digits-serve-svc.default.svc:8480",
        "ready": "1/2",
        "traffic": f"{name} 100%",
        "trafficMode": "Selector",
        "served": "digits@200",
        "stable": name,
    }
    assert [(one.name, one.phase, one.weight, one.ready, one.total) for one in service.status.revisions] == [
        (name, "Live", 100, 1, 2)
    ]
    assert service.events == [
        f"Starting: {name}: Starting",
        f"Promoted: {name} is the first that is ready",
        "Serving: http://digits-serve-svc.default.svc:8480 answers",
    ]


def test_an_application_that_does_not_run_serves_nothing_though_proxies_are_there() -> None:
    service = KubeRay()
    service.settle()
    service.switch()
    failing = {"capstan": {"status": "DEPLOY_FAILED", "message": "CorruptCheckpoint: leaf 3"}}
    service.say(activeServiceStatus={"rayClusterName": "digits-new", "applicationStatuses": failing})
    service.settle()
    assert service.conditions()["Serving"] == "False NoReadyPods"
    assert service.status.reason == "RayServiceFailing"
    assert service.status.message == "RayService digits cannot go on: DEPLOY_FAILED: CorruptCheckpoint: leaf 3"


def test_while_a_new_cluster_comes_up_the_old_one_serves_and_keeps_its_secret() -> None:
    service = live()
    old = service.asked_for
    service.world.spec["timeoutSeconds"] = 9
    service.settle()
    new = service.asked_for
    assert new != old
    service.begin()
    service.settle()
    assert service.status.message == f"the Ray cluster of {new} comes up; {old} serves"
    assert service.conditions() == LIVE | {"UpToDate": "False Starting", "Progressing": "True Starting"}
    assert service.status.traffic == f"{old} 100%"
    assert service.secrets == {old, new}
    service.switch()
    service.settle()
    assert (service.status.stable, service.conditions()) == (new, LIVE)
    assert service.secrets == {new}
    assert [one.name for one in service.status.revisions] == [new]


def test_a_spec_set_back_during_the_change_makes_no_third_revision() -> None:
    service = live()
    old = service.asked_for
    service.world.spec["timeoutSeconds"] = 9
    service.settle()
    service.begin()
    service.settle()
    del service.world.spec["timeoutSeconds"]
    service.settle()
    assert service.asked_for == old
    assert service.conditions()["UpToDate"] == "False Starting"
    service.switch()
    service.settle()
    assert (service.conditions(), service.secrets) == (LIVE, {old})
    assert not [event for event in service.events if event.startswith("Abandoned")]


def test_a_newer_checkpoint_waits_until_the_change_is_over() -> None:
    service = live(modelRef={"trainingJob": {"name": "digits", "track": True}})
    service.world.job = trained(300)
    service.settle()
    second = service.asked_for
    service.begin()
    service.world.job = trained(400)
    service.settle()
    assert service.asked_for == second
    service.switch()
    service.settle()
    assert service.asked_for not in (second, service.status.stable)
    assert service.status.stable == second


def test_a_newer_checkpoint_takes_the_place_of_one_that_kuberay_cannot_bring_up() -> None:
    service = live(modelRef={"trainingJob": {"name": "digits", "track": True}})
    first = service.status.stable
    service.world.job = trained(300)
    service.settle()
    second = service.asked_for
    failing = {"capstan": {"status": "DEPLOY_FAILED", "message": "CorruptCheckpoint: leaf 3"}}
    service.say(pendingServiceStatus={"rayClusterName": "digits-new", "applicationStatuses": failing})
    service.settle()
    assert (service.asked_for, service.status.stable) == (second, first)
    service.world.job = trained(400)
    service.settle()
    third = service.asked_for
    assert third not in (first, second)
    service.switch()
    service.settle()
    assert (service.status.stable, service.conditions()) == (third, LIVE)


def test_another_number_of_replicas_is_another_cluster() -> None:
    service = live()
    old = service.asked_for
    service.world.spec["replicas"] = 3
    service.settle()
    assert service.asked_for != old


def test_how_long_the_old_cluster_stays_can_change_while_nothing_else_does() -> None:
    service = live()
    name, events = service.asked_for, list(service.events)
    service.world.spec["rollout"] = {"strategy": {"blueGreen": {"holdSeconds": 60}}}
    assert [manifest["kind"] for manifest in service.decide().apply] == ["RayService"]
    service.settle()
    assert (service.asked_for, service.conditions(), service.events) == (name, LIVE, events)


def test_a_ray_service_that_somebody_deleted_is_made_again() -> None:
    service = live()
    name = service.asked_for
    service.made = None
    service.settle()
    assert service.asked_for == name
    assert service.conditions()["Serving"] == "False NoReadyPods"
    service.switch()
    service.settle()
    assert service.conditions() == LIVE


def test_endpoints_that_go_are_told_and_come_back() -> None:
    service = live()
    service.switch(endpoints=0)
    service.settle()
    assert service.conditions()["Serving"] == "False NoReadyPods"
    assert service.status.message == "no pod behind digits-serve-svc is ready"
    assert service.status.url == "http://digits-serve-svc.default.svc:8480"
    service.switch()
    service.settle()
    assert service.conditions() == LIVE


def test_a_model_that_is_not_there_yet_is_waited_for() -> None:
    service = KubeRay()
    service.world.job = make_job()
    service.settle()
    assert (service.made, service.status.reason) == (None, "TrainingJobNotDone")


def test_without_kuberay_nothing_is_made_and_the_fix_is_told() -> None:
    service = KubeRay()
    service.is_served = False
    service.settle()
    assert service.made is None
    assert service.conditions() == {
        "Accepted": "False KubeRayMissing",
        "Serving": "False NoReadyPods",
        "UpToDate": "False KubeRayMissing",
        "Progressing": "False KubeRayMissing",
    }
    assert service.status.message == (
        "spec.backend: RayService needs RayServices of ray.io/v1, which this cluster does not serve; install KubeRay, "
        "or set backend Standalone\nNo new revision is made until then; there is nothing else to serve."
    )


def test_a_name_that_kuberay_does_not_take_is_refused() -> None:
    service = KubeRay()
    seen = service.look()
    for length, is_refused in ((47, False), (48, True)):
        named = replace(seen, service=replace(seen.service, name="a" * length))
        assert (decide_inference_service(named, 0.0).status.reason == "InvalidSpec") is is_refused


def test_the_backend_stays_while_it_serves() -> None:
    service = live()
    made = service.made
    service.world.spec = {**service.world.spec, "backend": "Auto"}
    service.settle()
    assert service.made == made
    refused = dict.fromkeys(("Accepted", "UpToDate", "Progressing"), "False BackendFixed")
    assert service.conditions() == LIVE | refused
    assert service.status.message == (
        "spec.backend: RayService serves at http://digits-serve-svc.default.svc:8480, and Auto would serve at another; "
        "set it back to RayService, make another InferenceService, and delete this one when nobody uses it\n"
        f"No new revision is made until then; {service.asked_for} serves."
    )
    service.world.spec["backend"] = "RayService"
    service.settle()
    assert service.conditions() == LIVE


def test_what_kuberay_was_told_before_the_spec_broke_is_followed() -> None:
    service = live()
    old = service.asked_for
    service.world.spec["timeoutSeconds"] = 9
    service.settle()
    service.begin()
    service.world.spec["timeoutSeconds"] = -1
    service.settle()
    assert service.status.reason == "InvalidSpec"
    assert (service.status.stable, service.status.traffic) == (old, f"{old} 100%")
    service.switch()
    service.settle()
    new = service.asked_for
    assert (service.status.stable, service.status.traffic, service.secrets) == (new, f"{new} 100%", {new})
    service.world.spec["timeoutSeconds"] = 9
    service.settle()
    assert service.conditions() == LIVE


def test_pods_of_our_own_are_not_left_for_kuberay() -> None:
    world = standalone()
    stable = world.stable
    world.spec = merged(world.spec, KUBERAY)
    decision = decide_inference_service(replace(world.look(), has_kuberay=True), world.now)
    assert (decision.apply, decision.scale, decision.delete) == ((), (), ())
    assert (decision.status.reason, decision.status.stable) == ("BackendFixed", stable)
    assert decision.status.traffic == f"{stable} 100%"
