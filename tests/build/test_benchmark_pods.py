"""The pods of a Benchmark: hardened as all others, told what to do in one variable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capstan_operator.api.benchmark import ConfigMapBaseline, Pods
from capstan_operator.api.store import Store
from capstan_operator.build.benchmark_children import child_name
from capstan_operator.build.benchmark_pod import BenchPod, build_bench_pod
from capstan_operator.build.pod_patch import PodPatchError
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from capstan_runtime.contract.benchmark import BenchTask, TrialTask, TrialWork
from capstan_runtime.contract.workloads import CheckpointIo, Collectives, Roofline
from tests.support.looks import make_job

OWNER = make_job(name="peak", uid="51ab")
CLAIM = Store.parse({"claim": {"name": "results"}})
BUCKET = Store.parse({"object": {"url": "s3://b/p/", "endpoint": "http://minio:9000", "secretName": "keys"}})


def trial(**changes: Any) -> BenchTask:
    work = TrialWork(roofline=Roofline(runtime="torch"))
    task = TrialTask.model_validate({"trial": "t00", "seed": 7, "work": work, "deadline_seconds": 60.0} | changes)
    return BenchTask(benchmark="peak", namespace="default", uid="51ab", seed=1, trial=task)


def pod(**changes: Any) -> BenchPod:
    given: dict[str, Any] = {
        "name": "peak-t00",
        "trial": "t00",
        "task": trial(),
        "store": CLAIM,
        "pods": Pods(),
        "runtime": "torch",
        "deadline_seconds": 60,
    }
    return BenchPod(**(given | changes))


def built(settings: OperatorSettings | None = None, **changes: Any) -> dict[str, Any]:
    return build_bench_pod(OWNER, pod(**changes), settings or OperatorSettings())


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["containers"][0]
    return found


def variables(manifest: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in container(manifest)["env"]}


def test_a_pod_that_measures_a_cpu_is_this_and_nothing_else() -> None:
    manifest = built(pods=Pods.parse({"resources": {"cpu": "1500m"}}))
    task = container(manifest)["env"][4]["value"]
    assert BenchTask.model_validate_json(task) == trial()
    wanted = {"cpu": "1500m"}
    assert manifest == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "peak-t00",
            "namespace": "default",
            "labels": {
                "app.kubernetes.io/managed-by": "capstan",
                "capstan.dev/benchmark": "peak",
                "capstan.dev/trial": "t00",
            },
            "ownerReferences": [
                {
                    "apiVersion": "capstan.dev/v1alpha1",
                    "kind": "Benchmark",
                    "name": "peak",
                    "uid": "51ab",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 75,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "fsGroup": 1000,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "bench",
                    "image": "capstan/deepspeed-trainer:latest",
                    "command": ["python", "-m", "capstan_runtime.bench"],
                    "env": [
                        {"name": "CAPSTAN_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                        {"name": "CAPSTAN_IMAGE", "value": "capstan/deepspeed-trainer:latest"},
                        {"name": "CAPSTAN_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "CAPSTAN_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "CAPSTAN_BENCH", "value": task},
                        {"name": "CAPSTAN_TERMINATION_LOG", "value": "/dev/termination-log"},
                        {"name": "CAPSTAN_STORE", "value": "/var/lib/capstan/store/default"},
                        {"name": "DS_ACCELERATOR", "value": "cpu"},
                        {"name": "OMP_NUM_THREADS", "value": "2"},
                    ],
                    "resources": {"requests": wanted, "limits": wanted},
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "store", "mountPath": "/var/lib/capstan/store"}],
                }
            ],
            "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": "results"}}],
        },
    }


@pytest.mark.parametrize(
    ("runtime", "pods", "image"),
    [
        ("flax", {}, "f:1"),
        ("torch", {}, "d:1"),
        (None, {}, "b:1"),
        ("flax", {"image": "mine:3"}, "mine:3"),
    ],
)
def test_the_image_is_that_of_what_is_measured(runtime: Any, pods: dict[str, Any], image: str) -> None:
    settings = OperatorSettings(flax_image="f:1", deepspeed_image="d:1", bench_image="b:1")
    manifest = built(settings, runtime=runtime, pods=Pods.parse(pods))
    assert (container(manifest)["image"], variables(manifest)["CAPSTAN_IMAGE"]) == (image, image)


@pytest.mark.parametrize(
    ("runtime", "beside", "image"),
    [
        ("torch", ["TorchDCP"], "d:1"),
        ("torch", ["TorchDCP", "Orbax"], "s:1"),
        ("flax", ["Orbax"], "f:1"),
        ("flax", ["TorchDCP"], "s:1"),
    ],
)
def test_what_is_compared_with_the_other_framework_has_the_image_that_has_both(
    runtime: Any, beside: list[Any], image: str
) -> None:
    settings = OperatorSettings(flax_image="f:1", deepspeed_image="d:1", serve_image="s:1")
    task = trial(work=TrialWork(checkpoint=CheckpointIo(runtime=runtime, beside=beside)))
    assert container(built(settings, runtime=runtime, task=task))["image"] == image


def test_a_gpu_is_named_so_that_a_broken_one_is_noticed() -> None:
    manifest = built(pods=Pods.parse({"gpus": 1}), runtime="flax")
    assert container(manifest)["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert variables(manifest)["JAX_PLATFORMS"] == "cuda,cpu"
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container(manifest)["volumeMounts"]


def test_a_bucket_is_reached_by_variables_and_a_secret() -> None:
    manifest = built(store=BUCKET)
    told = variables(manifest)
    assert (told["CAPSTAN_STORE"], told["AWS_ENDPOINT_URL"]) == ("s3://b/p/default", "http://minio:9000")
    assert container(manifest)["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert (manifest["spec"]["volumes"], container(manifest)["volumeMounts"]) == ([], [])


def test_an_account_is_handed_in_only_where_it_is_named() -> None:
    manifest = built(pods=Pods.parse({"serviceAccountName": "bursts"}))
    assert (manifest["spec"]["serviceAccountName"], built()["spec"].get("serviceAccountName")) == ("bursts", None)
    mount = {"name": "service-account", "mountPath": env.ACCOUNT_FOLDER, "readOnly": True}
    assert mount in container(manifest)["volumeMounts"]
    assert mount not in container(built())["volumeMounts"]


def test_a_kept_baseline_is_mounted_read_only() -> None:
    manifest = built(baseline=ConfigMapBaseline(name="kept"))
    assert {"name": "baseline", "configMap": {"name": "kept"}} in manifest["spec"]["volumes"]
    mount = {"name": "baseline", "mountPath": "/etc/capstan/baseline", "readOnly": True}
    assert mount in container(manifest)["volumeMounts"]


def test_ranks_are_told_where_to_meet() -> None:
    work = TrialWork(collectives=Collectives.parse({"framework": {"flax": {}}}))
    lead, other = (trial(work=work, rank=rank, world=2) for rank in range(2))
    assert variables(built(task=lead))["CAPSTAN_BENCH_COORDINATOR"] == "$(CAPSTAN_POD_IP):8535"
    at = "10.0.0.1:8535"
    assert variables(built(task=other, coordinator=at))["CAPSTAN_BENCH_COORDINATOR"] == at
    assert "CAPSTAN_BENCH_COORDINATOR" not in variables(built())


def test_text_of_a_user_that_looks_like_a_variable_stays_text() -> None:
    task = trial(url="http://x/$(CAPSTAN_POD_IP)/$$")
    value = variables(built(task=task))["CAPSTAN_BENCH"]
    assert "$(CAPSTAN" not in value.replace("$$", "")
    assert json.loads(value.replace("$$", "$"))["trial"]["url"] == "http://x/$(CAPSTAN_POD_IP)/$$"


def test_a_patch_is_merged_in_and_may_not_touch_what_the_operator_relies_on() -> None:
    patch = {
        "metadata": {"labels": {"team": "a"}},
        "spec": {"priorityClassName": "low", "containers": [{"name": "bench", "env": [{"name": "X", "value": "1"}]}]},
    }
    manifest = built(pods=Pods.parse({"podPatch": patch}))
    assert manifest["metadata"]["labels"]["team"] == "a"
    assert manifest["metadata"]["labels"]["capstan.dev/benchmark"] == "peak"
    assert manifest["spec"]["priorityClassName"] == "low"
    assert variables(manifest)["X"] == "1"
    forbidden = {
        "metadata": {"labels": {"capstan.dev/trial": "t01"}},
        "spec": {
            "activeDeadlineSeconds": 5,
            "containers": [{"name": "bench", "env": [{"name": "CAPSTAN_BENCH", "value": ""}]}],
        },
    }
    with pytest.raises(PodPatchError) as caught:
        built(pods=Pods.parse({"podPatch": forbidden}))
    rule = "is set by the operator, which relies on it; remove it"
    assert caught.value.problems == [
        f"pods.podPatch.metadata.labels[capstan.dev/trial]: {rule}",
        f"pods.podPatch.spec.activeDeadlineSeconds: {rule}",
        f"pods.podPatch.spec.containers[bench].env[CAPSTAN_BENCH]: {rule}",
    ]


def test_children_are_named_after_run_and_attempt() -> None:
    names = [child_name("peak", "t00", 1), child_name("peak", "t00", 2)]
    assert names == ["peak-t00", "peak-t00-2"]
    assert len(child_name("a" * 32, "t199", 20) + "-r1023") <= 63
