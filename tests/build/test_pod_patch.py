"""podPatch: merged as Kubernetes merges, refused where the operator relies on a field."""

from __future__ import annotations

from typing import Any

import pytest

from capstan_operator.build.pod_patch import PodPatchError, apply_pod_patch, replaces_command

TEMPLATE: dict[str, Any] = {
    "metadata": {},
    "spec": {
        "terminationGracePeriodSeconds": 150,
        "securityContext": {"runAsNonRoot": True, "fsGroup": 1000},
        "containers": [
            {
                "name": "trainer",
                "image": "flax",
                "command": ["python"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "volumeMounts": [{"name": "store", "mountPath": "/store"}],
            }
        ],
        "volumes": [
            {"name": "run", "secret": {"secretName": "digits-run"}},
            {"name": "store", "persistentVolumeClaim": {"claimName": "checkpoints"}},
        ],
    },
}


def spec_after(patch: dict[str, Any]) -> Any:
    return apply_pod_patch(TEMPLATE, {"spec": patch})["spec"]


def trainer(**fields: Any) -> dict[str, Any]:
    return {"containers": [{"name": "trainer", **fields}]}


def test_a_container_is_merged_by_name_and_a_new_one_is_added() -> None:
    after = spec_after({"containers": [{"name": "trainer", "image": "mine"}, {"name": "proxy", "image": "envoy"}]})
    assert [(container["name"], container["image"]) for container in after["containers"]] == [
        ("trainer", "mine"),
        ("proxy", "envoy"),
    ]
    assert after["containers"][0]["command"] == ["python"]


def test_variables_and_mounts_are_merged_by_their_keys() -> None:
    patch = trainer(
        env=[{"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
        volumeMounts=[{"name": "data", "mountPath": "/data"}, {"mountPath": "/store", "subPath": "x"}],
    )
    after = spec_after(patch)["containers"][0]
    assert after["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}]
    assert after["volumeMounts"] == [
        {"name": "store", "mountPath": "/store", "subPath": "x"},
        {"name": "data", "mountPath": "/data"},
    ]


def test_a_volume_takes_its_new_source_and_drops_the_old_one() -> None:
    after = spec_after({"volumes": [{"name": "store", "nfs": {"server": "s", "path": "/"}}]})
    assert after["volumes"][1] == {"name": "store", "nfs": {"server": "s", "path": "/"}}


def test_a_list_without_a_merge_key_is_replaced() -> None:
    assert spec_after(trainer(command=["sh", "-c"]))["containers"][0]["command"] == ["sh", "-c"]


def test_null_removes_a_field_and_directives_are_obeyed() -> None:
    patch = {
        "terminationGracePeriodSeconds": None,
        "securityContext": {"$patch": "replace", "runAsUser": 7},
        **trainer(env=[{"name": "A", "$patch": "delete"}]),
    }
    after = spec_after(patch)
    assert "terminationGracePeriodSeconds" not in after
    assert after["securityContext"] == {"runAsUser": 7}
    assert after["containers"][0]["env"] == [{"name": "B", "value": "2"}]


def test_the_template_itself_stays_as_it_was() -> None:
    before = repr(TEMPLATE)
    spec_after(trainer(env=[{"name": "A", "value": "9"}]))
    assert repr(TEMPLATE) == before


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        ({"kind": "Pod"}, "workers.podPatch.kind: is set by the operator"),
        ({"metadata": {"name": "x"}}, "workers.podPatch.metadata.name: is set"),
        ({"metadata": {"ownerReferences": []}}, "workers.podPatch.metadata.ownerReferences: is set"),
        ({"metadata": {"labels": {"capstan.dev/job": "x"}}}, "workers.podPatch.metadata.labels[capstan.dev/job]: is"),
        ({"spec": {"restartPolicy": "Always"}}, "workers.podPatch.spec.restartPolicy: is set"),
        ({"spec": {"volumes": [{"name": "run", "emptyDir": {}}]}}, "workers.podPatch.spec.volumes[run]: is set"),
        ({"spec": trainer(terminationMessagePath="/x")}, "spec.containers[trainer].terminationMessagePath: is set"),
        (
            {"spec": trainer(env=[{"name": "CAPSTAN_STORE", "value": "/"}])},
            "containers[trainer].env[CAPSTAN_STORE]: is",
        ),
        ({"spec": {"containers": [{"name": "trainer", "$patch": "delete"}]}}, "containers[trainer].$patch: is set"),
        ({"spec": trainer(volumeMounts=[{"mountPath": "/etc/capstan"}])}, "volumeMounts[/etc/capstan]: is set"),
        ({"spec": {"containers": {"trainer": {}}}}, "workers.podPatch.spec.containers: {'trainer': {}} is not a list"),
        ({"spec": {"containers": ["trainer"]}}, "workers.podPatch.spec.containers[0]: 'trainer' is not an object"),
        ({"spec": {"containers": [{"image": "x"}]}}, "workers.podPatch.spec.containers[0]: has no name"),
        ({"spec": {"volumes": [{"name": []}]}}, "workers.podPatch.spec.volumes[0].name: [] is not a name"),
        ({"spec": {"securityContext": "open"}}, "workers.podPatch.spec.securityContext: 'open' is not an object"),
        ({"spec": {"$setElementOrder/volumes": []}}, "workers.podPatch.spec.$setElementOrder/volumes: [] is not supp"),
        ({"metadata": []}, "workers.podPatch.metadata: [] is not an object"),
    ],
)
def test_what_the_operator_relies_on_is_refused_by_name(patch: dict[str, Any], problem: str) -> None:
    with pytest.raises(PodPatchError) as error:
        apply_pod_patch(TEMPLATE, patch)
    assert problem in error.value.problems[0]


def test_all_refused_fields_are_named_at_once() -> None:
    with pytest.raises(PodPatchError) as error:
        apply_pod_patch(TEMPLATE, {"metadata": {"name": "x"}, "spec": {"restartPolicy": "Always"}})
    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        "workers.podPatch.metadata.name",
        "workers.podPatch.spec.restartPolicy",
    ]


@pytest.mark.parametrize(
    ("patch", "answer"),
    [
        (None, False),
        ({}, False),
        ({"spec": trainer(image="x")}, False),
        ({"spec": {"containers": [{"name": "proxy", "command": ["x"]}]}}, False),
        ({"spec": trainer(command=["true"])}, True),
    ],
)
def test_only_the_trainers_own_command_makes_a_job_without_supervisors(patch: Any, answer: bool) -> None:
    assert replaces_command(patch) is answer
