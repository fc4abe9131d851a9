"""Pods of a Kueue pod group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.children import LABEL_LENGTH, longest_job_name
from capstan_operator.build.node_affinity import keep_away
from capstan_operator.build.pod import build_pod, build_pod_template
from capstan_operator.build.pod_group import PodGroup, group_name, role_of
from capstan_operator.observe import OperatorSettings
from tests.support.looks import SPEC, make_job, merged


def template_of(**workers: Any) -> dict[str, Any]:
    spec = TrainingJobSpec.parse(merged(SPEC, {"workers": workers}))
    return build_pod_template(make_job(), spec, OperatorSettings())


def test_a_pod_names_its_queue_its_group_and_how_many_are_in_it() -> None:
    template = template_of(podPatch={"metadata": {"annotations": {"a": "b"}, "labels": {"c": "d"}}})
    plain = build_pod(make_job(), template, 1, 0)
    group = PodGroup("digits-c5033", 4, "team-a", "high", "0a1b2c3d")
    pod = build_pod(make_job(), template, 1, 0, group)
    metadata = plain["metadata"] | {
        "annotations": {
            "a": "b",
            "kueue.x-k8s.io/pod-group-total-count": "4",
            "kueue.x-k8s.io/role-hash": "0a1b2c3d",
        },
        "labels": plain["metadata"]["labels"]
        | {
            "kueue.x-k8s.io/queue-name": "team-a",
            "kueue.x-k8s.io/pod-group-name": "digits-c5033",
            "kueue.x-k8s.io/priority-class": "high",
        },
    }
    assert pod == plain | {"metadata": metadata}
    assert "kueue.x-k8s.io/priority-class" not in replace(group, priority_class=None).labels


def test_a_replacement_has_the_role_of_the_pod_before_it_unless_it_takes_more_room() -> None:
    template = template_of(resources={"cpu": "2"})
    role = role_of(template)
    assert role == role_of(template_of(resources={"cpu": "2"}, image="another"))
    others = [
        template_of(resources={"cpu": "4"}),
        template_of(resources={"cpu": "2"}, gpus=1),
        template_of(resources={"cpu": "2"}, nodeSelector={"zone": "a"}),
        keep_away(template, never=("node-0",), rather_not=[]),
    ]
    assert len({role, *map(role_of, others)}) == 1 + len(others), "the role is to be that of the job's own template"


def test_no_two_groups_of_jobs_that_ever_have_a_name_share_one() -> None:
    job = make_job()
    names = {
        group_name(owner, number, first, size)
        for owner in (job, replace(job, uid="another"))
        for number in range(1, 30)
        for first in (0, 2)
        for size in (1, 2)
    }
    assert len(names) == 2 * 29 * 2 * 2
    longest = replace(job, name="a" * longest_job_name(1))
    assert len(group_name(longest, 1, 0, 1)) <= LABEL_LENGTH
