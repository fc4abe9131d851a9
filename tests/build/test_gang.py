"""What binds pods to the PodGroup of a gang scheduler."""

from __future__ import annotations

from typing import Any

from capstan_operator.api.gang import GangStatus
from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.gang import build_gang
from capstan_operator.build.pod import build_pod, build_pod_template
from capstan_operator.observe import OperatorSettings
from tests.support.looks import SPEC, make_job, merged


def pod_of(**workers: Any) -> dict[str, Any]:
    spec = TrainingJobSpec.parse(merged(SPEC, {"workers": workers}))
    return build_pod(make_job(), build_pod_template(make_job(), spec, OperatorSettings()), 0, 0)


def test_a_pod_of_a_gang_names_its_scheduler_and_its_group() -> None:
    plain = pod_of()
    volcano = pod_of(gang={"volcano": {"queue": "team-a"}})
    assert volcano == plain | {
        "metadata": plain["metadata"] | {"annotations": {"scheduling.k8s.io/group-name": "digits-gang"}},
        "spec": plain["spec"] | {"schedulerName": "volcano"},
    }
    plugins = pod_of(gang={"schedulerPlugins": {}})
    labels = plain["metadata"]["labels"] | {"scheduling.x-k8s.io/pod-group": "digits-gang"}
    assert plugins == plain | {
        "metadata": plain["metadata"] | {"labels": labels},
        "spec": plain["spec"] | {"schedulerName": "scheduler-plugins-scheduler"},
    }
    own = pod_of(gang={"schedulerPlugins": {"schedulerName": "default-scheduler"}})
    assert own["spec"]["schedulerName"] == "default-scheduler"


def test_a_pod_group_is_this_and_nothing_else() -> None:
    gang = GangStatus(name="digits-gang", scheduler="volcano", queue="team-a", min_member=2)
    group = build_gang(make_job(), gang)
    assert group.pop("metadata") == {
        "name": "digits-gang",
        "namespace": "default",
        "labels": {"app.kubernetes.io/managed-by": "capstan", "capstan.dev/job": "digits"},
        "ownerReferences": pod_of()["metadata"]["ownerReferences"],
    }
    assert group == {
        "apiVersion": "scheduling.volcano.sh/v1beta1",
        "kind": "PodGroup",
        "spec": {"minMember": 2, "queue": "team-a"},
    }
    plugins = GangStatus(name="digits-gang", scheduler="schedulerPlugins", min_member=1)
    group = build_gang(make_job(), plugins)
    assert (group["apiVersion"], group["spec"]) == ("scheduling.x-k8s.io/v1alpha1", {"minMember": 1})
