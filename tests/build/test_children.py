"""Secret and pods: what a job turns into."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.children import LABEL_LENGTH, longest_job_name, pod_name, secret_name
from capstan_operator.build.pod import build_pod, build_pod_template
from capstan_operator.build.pod_parts import whole_cores
from capstan_operator.build.run_config import build_run_config, run_digest, run_json
from capstan_operator.build.secret import build_secret
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import RunConfig, read_job_config
from tests.support.looks import SPEC, make_job, merged

OWNER = {
    "apiVersion": "capstan.dev/v1alpha1",
    "kind": "TrainingJob",
    "name": "digits",
    "uid": "7f3a",
    "controller": True,
    "blockOwnerDeletion": True,
}


def parsed(**changes: Any) -> TrainingJobSpec:
    return TrainingJobSpec.parse(merged(SPEC, changes))


def pod_of(worker: int = 0, incarnation: int = 0, settings: OperatorSettings | None = None, **changes: Any) -> Any:
    template = build_pod_template(make_job(), parsed(**changes), settings or OperatorSettings())
    return build_pod(make_job(), template, worker, incarnation)


def environment(pod: Any) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod["spec"]["containers"][0]["env"]}


def test_a_cpu_pod_of_the_flax_trainer_is_this_and_nothing_else() -> None:
    assert pod_of(worker=1, incarnation=2) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "digits-worker-1-2",
            "namespace": "default",
            "labels": {
                "app.kubernetes.io/managed-by": "capstan",
                "capstan.dev/job": "digits",
                "capstan.dev/worker": "1",
                "capstan.dev/incarnation": "2",
            },
            "ownerReferences": [OWNER],
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 150,
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
                    "name": "trainer",
                    "image": "capstan/flax-trainer:latest",
                    "command": ["python", "-m", "capstan_runtime.supervisor"],
                    "env": [
                        {"name": "CAPSTAN_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "CAPSTAN_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "CAPSTAN_RUN_CONFIG", "value": "/etc/capstan/run.json"},
                        {"name": "CAPSTAN_TOKEN_FILE", "value": "/etc/capstan/token"},
                        {"name": "CAPSTAN_TERMINATION_LOG", "value": "/dev/termination-log"},
                        {"name": "CAPSTAN_STORE", "value": "/var/lib/capstan/store/default/digits/7f3a"},
                        {"name": "CAPSTAN_MEMORY", "value": "/capstan/memory"},
                        {"name": "JAX_PLATFORMS", "value": "cpu"},
                        {"name": "XLA_FLAGS", "value": "--xla_cpu_collective_timeout_seconds=600"},
                    ],
                    "ports": [{"name": "supervisor", "containerPort": 8470}],
                    "resources": {"requests": {}, "limits": {}},
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [
                        {"name": "run", "mountPath": "/etc/capstan", "readOnly": True},
                        {"name": "store", "mountPath": "/var/lib/capstan/store"},
                        {"name": "memory", "mountPath": "/capstan/memory"},
                    ],
                }
            ],
            "volumes": [
                {"name": "run", "secret": {"secretName": "digits-run", "defaultMode": 0o440}},
                {"name": "store", "persistentVolumeClaim": {"claimName": "checkpoints"}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
            ],
        },
    }


def test_a_gpu_pod_asks_for_gpus_and_shared_memory_and_never_trains_on_the_cpu() -> None:
    pod = pod_of(workers={"gpus": 8, "resources": {"cpu": "16", "memory": "64Gi"}})
    container = pod["spec"]["containers"][0]
    resources = {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "8"}
    assert container["resources"] == {"requests": resources, "limits": resources}
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert {"name": "shared-memory", "emptyDir": {"medium": "Memory"}} in pod["spec"]["volumes"]
    variables = environment(pod)
    assert (variables["JAX_PLATFORMS"], variables["OMP_NUM_THREADS"]) == ("cuda,cpu", "16")
    assert "--xla_gpu_nccl_termination_timeout_seconds=600" in variables["XLA_FLAGS"]


@pytest.mark.parametrize(("gpus", "accelerator", "heartbeat"), [(0, "cpu", None), (1, "cuda", "900")])
def test_deepspeeds_time_limits_come_from_the_jobs_deadlines(
    gpus: int, accelerator: str, heartbeat: str | None
) -> None:
    pod = pod_of(
        framework={"flax": None, "deepspeed": {}}, workers={"gpus": gpus}, recovery={"deadlines": {"firstStep": 900}}
    )
    variables = environment(pod)
    assert pod["spec"]["containers"][0]["image"] == "capstan/deepspeed-trainer:latest"
    assert (variables["DS_ACCELERATOR"], variables["DEEPSPEED_TIMEOUT"]) == (accelerator, "15")
    assert variables.get("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC") == heartbeat


def test_the_installation_and_the_job_choose_image_and_nodes() -> None:
    settings = OperatorSettings(flax_image="registry/flax:1", operator_url="http://operator:8080")
    assert environment(pod_of(settings=settings))[env.OPERATOR_URL] == "http://operator:8080"
    assert pod_of(settings=settings)["spec"]["containers"][0]["image"] == "registry/flax:1"
    toleration = {"key": "gpu", "operator": "Exists"}
    pod = pod_of(workers={"image": "mine:2", "nodeSelector": {"pool": "a"}, "tolerations": [toleration]})
    assert pod["spec"]["containers"][0]["image"] == "mine:2"
    assert pod["spec"]["nodeSelector"] == {"pool": "a"}
    assert pod["spec"]["tolerations"] == [toleration]


def test_a_host_folder_must_be_there_already() -> None:
    store = {"store": {"claim": None, "hostPath": {"path": "/mnt/lustre"}}}
    pod = pod_of(settings=OperatorSettings(allow_host_path=True), checkpoint=store)
    assert pod["spec"]["volumes"][1] == {"name": "store", "hostPath": {"path": "/mnt/lustre", "type": "Directory"}}


def test_a_bucket_needs_no_volume_and_its_credentials_come_from_the_secret() -> None:
    bucket = {"url": "s3://b/runs/", "endpoint": "http://minio:9000", "region": "eu-1", "secretName": "keys"}
    pod = pod_of(checkpoint={"store": {"claim": None, "object": bucket}})
    container = pod["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    variables = environment(pod)
    assert {name: value for name, value in variables.items() if name.startswith("AWS") or name == env.STORE} == {
        "CAPSTAN_STORE": "s3://b/runs/default/digits/7f3a",
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "eu-1",
    }
    assert [mount["name"] for mount in container["volumeMounts"]] == ["run", "memory"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["run", "memory"]


def test_the_providers_own_endpoint_and_the_pods_own_identity_need_no_variables() -> None:
    pod = pod_of(checkpoint={"store": {"claim": None, "object": {"url": "gs://b"}}})
    assert "envFrom" not in pod["spec"]["containers"][0]
    variables = environment(pod)
    assert variables[env.STORE] == "gs://b/default/digits/7f3a"
    assert [name for name in variables if name.startswith("AWS")] == []


def test_without_a_memory_tier_there_is_no_volume_for_it() -> None:
    pod = pod_of(recovery={"memoryTier": False})
    assert env.MEMORY not in environment(pod)
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["run", "store"]
    assert [mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]] == ["run", "store"]


def test_keys_of_trackers_are_files_of_the_jobs_own_pods_and_stand_nowhere_else() -> None:
    tracking = {
        "wandb": {"project": "p", "secretName": "wandb-key"},
        "mlflow": {"uri": "http://mlflow:5000", "experiment": "e", "secretName": "mlflow-login"},
    }
    pod = pod_of(tracking=tracking)
    assert environment(pod)[env.TRACKER_SECRETS] == "/capstan/tracker-secrets"
    (container,) = pod["spec"]["containers"]
    mount = {"name": "tracker-secrets", "mountPath": "/capstan/tracker-secrets", "readOnly": True}
    assert mount in container["volumeMounts"]
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "tracker-secrets")
    assert volume["projected"] == {
        "defaultMode": 0o440,
        "sources": [
            {
                "secret": {
                    "name": "wandb-key",
                    "optional": True,
                    "items": [{"key": "api-key", "path": "wandb/api-key"}],
                }
            },
            {
                "secret": {
                    "name": "mlflow-login",
                    "optional": True,
                    "items": [{"key": key, "path": f"mlflow/{key}"} for key in ("username", "password", "token")],
                }
            },
        ],
    }
    assert "envFrom" not in container
    plain = pod_of(tracking={"csv": {}, "wandb": {"project": "p", "mode": "offline"}})
    assert env.TRACKER_SECRETS not in environment(plain)
    assert all(each["name"] != "tracker-secrets" for each in plain["spec"]["volumes"])


def test_the_signing_key_is_a_file_that_only_the_pods_group_can_read() -> None:
    pod = pod_of(checkpoint={"sign": {"secretName": "signer"}})
    assert environment(pod)[env.SIGNING_KEY] == "/capstan/signing/private.pem"
    mounts = pod["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "signing", "mountPath": "/capstan/signing", "readOnly": True} in mounts
    assert {"name": "signing", "secret": {"secretName": "signer", "defaultMode": 0o440}} in pod["spec"]["volumes"]


def test_the_grace_leaves_time_to_stop_save_and_report() -> None:
    pod = pod_of(recovery={"deadlines": {"stop": 5, "save": 30}})
    assert pod["spec"]["terminationGracePeriodSeconds"] == 45


def test_every_name_a_job_can_need_fits_into_a_label() -> None:
    for workers in (1, 10, 11, 16384):
        job = "x" * longest_job_name(workers)
        assert len(pod_name(job, workers - 1, 9999)) == LABEL_LENGTH
        assert len(secret_name(job)) <= LABEL_LENGTH


def test_the_secret_holds_the_resolved_run_and_the_token() -> None:
    spec = parsed()
    run = build_run_config(make_job(), spec)
    secret = build_secret(make_job(), run, "secret-token")
    files = {name: base64.b64decode(text).decode() for name, text in secret.pop("data").items()}
    assert secret == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "digits-run",
            "namespace": "default",
            "labels": {"app.kubernetes.io/managed-by": "capstan", "capstan.dev/job": "digits"},
            "ownerReferences": [OWNER],
        },
        "type": "Opaque",
        "immutable": True,
    }
    assert files["token"] == "secret-token"
    assert RunConfig.parse(json.loads(files["run.json"])) == run
    assert run.training.virtual_ranks == 2


def test_a_pod_that_learns_from_a_trained_model_knows_all_of_its_store_and_any_other_does_not() -> None:
    teacher = {"registry": {"name": "digits", "stage": "production"}}
    pod = environment(pod_of(compression={"distill": {"teacher": teacher}}))
    assert pod["CAPSTAN_REGISTRY"] == "/var/lib/capstan/store"
    assert pod[env.STORE].startswith("/var/lib/capstan/store/")
    assert "CAPSTAN_REGISTRY" not in environment(pod_of())


def test_a_pod_that_records_its_steps_knows_its_node_and_its_image_and_any_other_does_not() -> None:
    plain, recording = (environment(pod_of(recordSteps=asked)) for asked in (False, True))
    assert {name: recording[name] for name in recording.keys() - plain.keys()} == {
        "CAPSTAN_NODE_NAME": {"fieldRef": {"fieldPath": "spec.nodeName"}},
        "CAPSTAN_IMAGE": "capstan/flax-trainer:latest",
    }
    assert plain == {name: recording[name] for name in plain}


def test_the_pods_of_a_program_have_its_frameworks_image_and_variables_and_are_told_its_command() -> None:
    spec = TrainingJobSpec.parse(
        {
            "program": {"command": ["python", "/code/train.py"], "framework": "torch"},
            "training": {"steps": 5, "globalBatchSize": 4},
            "workers": {"max": 2},
            "checkpoint": {"store": {"claim": {"name": "c"}}},
        }
    )
    pod = build_pod(make_job(), build_pod_template(make_job(), spec, OperatorSettings()), 0, 0)
    container = pod["spec"]["containers"][0]
    assert (container["image"], container["command"]) == (
        "capstan/deepspeed-trainer:latest", ["python", "-m", "capstan_runtime.supervisor"]
    )  # fmt: skip
    assert environment(pod)["DS_ACCELERATOR"] == "cpu"
    run = build_run_config(make_job(), spec)
    assert read_job_config(run_json(run).encode()) == run
    assert json.loads(run_json(run)) == {
        "job": "default/digits",
        "uid": "7f3a",
        "program": {"command": ["python", "/code/train.py"], "framework": "torch"},
        "training": {"steps": 5, "globalBatchSize": 4, "virtualRanks": 2},
        "checkpoint": {"interval": {"seconds": 600}},
    }


def test_a_program_that_names_its_image_gets_no_variables_of_a_framework() -> None:
    spec = TrainingJobSpec.parse(
        {
            "program": {"command": ["train"]},
            "training": {"steps": 5, "globalBatchSize": 4},
            "workers": {"max": 1, "image": "mine:1"},
            "checkpoint": {"store": {"claim": {"name": "c"}}},
        }
    )
    pod = build_pod(make_job(), build_pod_template(make_job(), spec, OperatorSettings()), 0, 0)
    assert pod["spec"]["containers"][0]["image"] == "mine:1"
    assert environment(pod).keys().isdisjoint({"DS_ACCELERATOR", "JAX_PLATFORMS"})


def test_the_runs_digest_changes_with_what_the_pods_read_and_with_nothing_else() -> None:
    digest = run_digest(build_run_config(make_job(), parsed()))
    same = parsed(workers={"resources": {"cpu": "1"}}, recovery={"budgets": {"crash": 9}}, suspend=True)
    other = parsed(checkpoint={"interval": {"steps": 21}})
    assert run_digest(build_run_config(make_job(), same)) == digest
    assert run_digest(build_run_config(make_job(), other)) != digest


def test_what_nobody_has_set_is_no_part_of_the_runs_digest() -> None:
    """So an operator that knows one field more does not take a run for another."""
    digest = run_digest(build_run_config(make_job(), parsed()))
    said = parsed(recovery={"warmSpare": True, "deadlines": {"hang": 60}}, checkpoint={"retention": {"last": 3}})
    assert run_digest(build_run_config(make_job(), said)) == digest
    assert run_digest(build_run_config(make_job(), parsed(recovery={"warmSpare": False}))) != digest
    assert run_digest(build_run_config(make_job(), parsed(recordSteps=False))) == digest
    assert run_digest(build_run_config(make_job(), parsed(recordSteps=True))) != digest


@pytest.mark.parametrize(
    ("quantity", "cores"), [("500m", 1), ("2", 2), ("2500m", 3), ("1.5", 2), ("1k", 1000), ("4Gi", 1), ("0", 1)]
)
def test_cores_are_counted_in_whole_ones(quantity: str, cores: int) -> None:
    assert whole_cores(quantity) == cores


def test_what_is_offloaded_to_a_disk_has_a_volume_that_a_patch_may_replace() -> None:
    offload = {"flax": None, "deepspeed": {"zeroStage": 1, "offload": {"optimizer": {"nvme": {}}}}}
    (mount,) = _scratch(pod_of(framework=offload)["spec"]["containers"][0]["volumeMounts"])
    assert mount == {"name": "scratch", "mountPath": "/var/cache/capstan/scratch"}
    assert _scratch(pod_of(framework=offload)["spec"]["volumes"]) == [{"name": "scratch", "emptyDir": {}}]
    assert _scratch(pod_of(framework={"flax": None, "deepspeed": {"zeroStage": 1}})["spec"]["volumes"]) == []
    # Its tier for saves would take as much memory as is to be spared.
    assert environment(pod_of(framework=offload))[env.MEMORY] == "/var/cache/capstan/scratch/saves"
    assert [volume["name"] for volume in pod_of(framework=offload)["spec"]["volumes"]] == ["run", "store", "scratch"]
    claim = {"volumeClaimTemplate": {"spec": {"storageClassName": "local-nvme"}}}
    patch = {"spec": {"volumes": [{"name": "scratch", "ephemeral": claim}]}}
    patched = pod_of(framework=offload, workers={"max": 1, "podPatch": patch})
    assert _scratch(patched["spec"]["volumes"]) == [{"name": "scratch", "ephemeral": claim}]


def _scratch(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["name"] == "scratch"]
