"""Revisions: what a spec and a checkpoint turn into, and what makes another one of it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import ModelStatus
from capstan_operator.build.pod_patch import PodPatchError
from capstan_operator.build.serving_children import LONGEST_SERVICE_NAME, proven_name
from capstan_operator.build.serving_revision import (
    Revision,
    build_config_secret,
    build_deployment,
    build_disruption_budget,
    build_proven,
    build_revision,
    build_revision_service,
    build_route,
)
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract.serving import API_KEYS_FOLDER, TLS_FOLDER, Compare, ServeConfig
from tests.support.looks import make_job, merged, root

OWNER = make_job(name="mnist", uid="51ab")
LABELS = {"app.kubernetes.io/managed-by": "capstan", "capstan.dev/service": "mnist"}
MODEL = {
    "source": "trainingJob digits",
    "run": "default/digits/7f3a",
    "digest": root(200),
    "step": 200,
    "framework": "flax",
    "store": {"claim": {"name": "checkpoints"}},
}


def revision(
    spec: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    runtime: Any = "flax",
    settings: OperatorSettings | None = None,
) -> Revision:
    parsed = InferenceServiceSpec.parse({"modelRef": {"trainingJob": {"name": "digits"}}, **(spec or {})})
    return build_revision(
        OWNER, parsed, ModelStatus.parse(merged(MODEL, model or {})), runtime, settings or OperatorSettings()
    )


def server(built: Revision) -> dict[str, Any]:
    container: dict[str, Any] = built.template["spec"]["containers"][0]
    return container


def variables(built: Revision) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in server(built)["env"]}


def test_a_cpu_deployment_is_this_and_nothing_else() -> None:
    built = revision({"resources": {"cpu": "1500m"}})
    name = built.name
    probe = {"port": "http"}
    assert build_deployment(OWNER, built, 3) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": LABELS | {"capstan.dev/revision": name},
            "ownerReferences": [
                {
                    "apiVersion": "capstan.dev/v1alpha1",
                    "kind": "InferenceService",
                    "name": "mnist",
                    "uid": "51ab",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"capstan.dev/service": "mnist", "capstan.dev/revision": name}},
            "revisionHistoryLimit": 0,
            "template": {
                "metadata": {"labels": LABELS | {"capstan.dev/revision": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 50,
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
                            "name": "server",
                            "image": "capstan/serve-replica:latest",
                            "command": ["python", "-m", "capstan_runtime.serve_replica"],
                            "env": [
                                {
                                    "name": "CAPSTAN_POD_NAME",
                                    "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
                                },
                                {"name": "CAPSTAN_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                                {"name": "CAPSTAN_SERVE_CONFIG", "value": "/etc/capstan/serve/serve.json"},
                                {"name": "CAPSTAN_TERMINATION_LOG", "value": "/dev/termination-log"},
                                {"name": "CAPSTAN_STORE", "value": "/var/lib/capstan/store/default/digits/7f3a"},
                                {"name": "JAX_PLATFORMS", "value": "cpu"},
                                {"name": "OMP_NUM_THREADS", "value": "2"},
                            ],
                            "ports": [{"name": "http", "containerPort": 8480}],
                            "resources": {"requests": {"cpu": "1500m"}, "limits": {"cpu": "1500m"}},
                            "startupProbe": {
                                "httpGet": {"path": "/v2/health/live", **probe},
                                "periodSeconds": 2,
                                "timeoutSeconds": 2,
                                "failureThreshold": 300,
                            },
                            "livenessProbe": {
                                "httpGet": {"path": "/v2/health/live", **probe},
                                "periodSeconds": 10,
                                "timeoutSeconds": 5,
                                "failureThreshold": 3,
                            },
                            "readinessProbe": {
                                "httpGet": {"path": "/v2/health/ready", **probe},
                                "periodSeconds": 2,
                                "timeoutSeconds": 2,
                                "failureThreshold": 3,
                            },
                            "terminationMessagePath": "/dev/termination-log",
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                            "volumeMounts": [
                                {"name": "serve", "mountPath": "/etc/capstan/serve", "readOnly": True},
                                {"name": "store", "mountPath": "/var/lib/capstan/store", "readOnly": True},
                            ],
                        }
                    ],
                    "volumes": [
                        {"name": "serve", "secret": {"secretName": name, "defaultMode": 0o440}},
                        {"name": "store", "persistentVolumeClaim": {"claimName": "checkpoints"}},
                    ],
                },
            },
        },
    }


def test_pods_read_exactly_the_checkpoint_of_their_revision() -> None:
    built = revision({"cache": {"maxMebibytes": 8}, "protocols": ["KServeV1", "KServeV1"]})
    secret = build_config_secret(OWNER, built)
    assert (secret["metadata"]["name"], secret["immutable"]) == (built.name, True)
    config = ServeConfig.model_validate_json(base64.b64decode(secret["data"]["serve.json"]), by_alias=True)
    assert config == built.config
    assert (config.service, config.model.version, config.model.root) == ("default/mnist", built.name, root(200))
    assert (config.model.run, config.model.verify.level, config.protocols) == ("7f3a", "full", ("KServeV1",))
    assert config.guards.cache is not None
    assert config.guards.cache.max_mebibytes == 8


def test_services_lead_to_one_revision_or_to_all() -> None:
    built = revision()
    ports = [{"name": "http", "port": 8480, "protocol": "TCP", "targetPort": "http"}]
    one = {"capstan.dev/service": "mnist", "capstan.dev/revision": built.name}
    assert build_revision_service(OWNER, built.name)["spec"] == {"type": "ClusterIP", "selector": one, "ports": ports}
    assert build_route(OWNER, built.name)["spec"]["selector"] == one
    assert build_route(OWNER, built.name)["metadata"]["name"] == "mnist"
    assert build_route(OWNER, None)["spec"]["selector"] == {"capstan.dev/service": "mnist"}
    assert build_proven(OWNER, built.name) == build_route(OWNER, built.name) | {
        "metadata": build_route(OWNER, built.name)["metadata"] | {"name": "mnist-proven"}
    }


def test_a_disruption_budget_is_this_and_nothing_else() -> None:
    assert build_disruption_budget(OWNER, "policy/v1beta1") == {
        "apiVersion": "policy/v1beta1",
        "kind": "PodDisruptionBudget",
        "metadata": build_route(OWNER, None)["metadata"],
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"capstan.dev/service": "mnist"}}},
    }


def compares(least: float | None) -> dict[str, Any]:
    return {"rollout": {"strategy": {"canary": {"gates": {} if least is None else {"minAgreement": least}}}}}


def test_who_is_to_be_compared_is_told_an_address_that_no_promotion_changes() -> None:
    assert revision(compares(None)).config.compare is None
    compared = revision(compares(0.9))
    assert compared.config.compare == Compare(url="http://mnist-proven.default.svc:8480")
    assert compared.name == revision(compares(0.8)).name
    over_tls = revision(compares(0.9) | {"tls": {"secretRef": {"name": "cert"}}})
    assert over_tls.config.compare == Compare(url="https://mnist-proven.default.svc:8480")


def test_the_name_of_the_proven_service_fits_wherever_a_revisions_does() -> None:
    longest = "a" * LONGEST_SERVICE_NAME
    assert len(proven_name(longest)) < 63


OTHERS: dict[str, dict[str, Any]] = {
    "another checkpoint": {"model": {"digest": root(300)}},
    "a guard": {"spec": {"timeoutSeconds": 5.0}},
    "a certificate": {"spec": {"tls": {"secretRef": {"name": "digits-tls"}}}},
    "another image": {"spec": {"image": "mine:1"}},
    "another image of the operator's": {"settings": OperatorSettings(serve_image="registry/serve:2")},
    "resources": {"spec": {"resources": {"cpu": "2"}}},
    "a patch": {"spec": {"podPatch": {"metadata": {"annotations": {"again": "1"}}}}},
    "another runtime": {"runtime": "torch"},
    "a longer drain": {"spec": {"drainSeconds": 45}},
    "time for streams": {"spec": {"terminationGracePeriodSeconds": 900}},
    "a key": {"model": {"publicKey": "PEM"}},
    "a comparison": {"spec": {"rollout": {"strategy": {"canary": {"gates": {"minAgreement": 0.9}}}}}},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_revision_is_made_by(what: str) -> None:
    assert revision(**OTHERS[what]).name != revision().name


@pytest.mark.parametrize(
    "spec", [{"replicas": 9}, {"rollout": {"autoRollback": False}}, {"timeoutSeconds": 30.0}, {"queue": {}}]
)
def test_size_rollout_and_what_equals_the_default_make_no_other_revision(spec: dict[str, Any]) -> None:
    assert revision(spec).name == revision().name


def test_keys_and_gpus_and_buckets_reach_the_pod() -> None:
    bucket = {"store": {"claim": None, "object": {"url": "s3://b/p/", "region": "eu", "secretName": "s3"}}}
    built = revision({"auth": {"apiKeysSecretRef": {"name": "keys"}}, "gpus": 1}, bucket)
    volumes = {volume["name"]: volume for volume in built.template["spec"]["volumes"]}
    assert volumes["api-keys"]["secret"]["secretName"] == "keys"
    assert "store" not in volumes
    assert {mount["mountPath"] for mount in server(built)["volumeMounts"]} == {"/etc/capstan/serve", API_KEYS_FOLDER}
    assert server(built)["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert server(built)["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert variables(built)["CAPSTAN_STORE"] == "s3://b/p/default/digits/7f3a"
    assert variables(built)["JAX_PLATFORMS"] == "cuda,cpu"
    assert "JAX_PLATFORMS" not in variables(revision(runtime="torch"))


def test_a_certificate_reaches_the_pod_and_its_probes_speak_tls() -> None:
    plain, built = revision(), revision({"tls": {"secretRef": {"name": "digits-tls"}}})
    assert built.config.guards.tls is not None
    assert built.config.guards.tls.secret_ref.name == "digits-tls"
    added = {"name": "tls", "secret": {"secretName": "digits-tls", "defaultMode": 0o440}}
    mount = {"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True}
    assert [volume["name"] for volume in plain.template["spec"]["volumes"]] == ["serve", "store"]
    assert [volume for volume in built.template["spec"]["volumes"] if volume["name"] == "tls"] == [added]
    assert [each for each in server(built)["volumeMounts"] if each["name"] == "tls"] == [mount]
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    assert [server(built)[probe]["httpGet"].get("scheme") for probe in probes] == ["HTTPS"] * 3
    assert {key for key, value in server(built).items() if value != server(plain)[key]} == {*probes, "volumeMounts"}


@pytest.mark.parametrize(
    ("spec", "drain", "finish", "grace"),
    [
        ({}, 10.0, 30.0, 50),
        ({"drainSeconds": 45, "timeoutSeconds": 5.5}, 45.0, 5.5, 61),
        ({"protocols": ["OpenAI"]}, 10.0, 300.0, 320),
        ({"protocols": ["OpenAI"], "timeoutSeconds": 900}, 10.0, 900.0, 920),
        ({"protocols": ["OpenAI"], "terminationGracePeriodSeconds": 620}, 10.0, 600.0, 620),
        ({"protocols": ["OpenAI"], "terminationGracePeriodSeconds": 50}, 10.0, 30.0, 50),
        ({"terminationGracePeriodSeconds": 120, "drainSeconds": 0}, 0.0, 110.0, 120),
    ],
)
def test_a_pod_is_killed_only_after_all_that_its_replica_may_take_to_drain(
    spec: dict[str, Any], drain: float, finish: float, grace: int
) -> None:
    built = revision(spec)
    assert (built.config.drain_seconds, built.config.longest_finish_seconds) == (drain, finish)
    assert built.template["spec"]["terminationGracePeriodSeconds"] == grace


def test_the_grace_of_a_pod_is_the_specs_and_not_the_patchs() -> None:
    with pytest.raises(PodPatchError) as refused:
        revision({"podPatch": {"spec": {"terminationGracePeriodSeconds": 900}}})
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "podPatch.spec.terminationGracePeriodSeconds"
    ]


@pytest.mark.parametrize("name", ["serve", "api-keys", "tls"])
def test_the_operators_volumes_cannot_be_patched(name: str) -> None:
    with pytest.raises(PodPatchError) as refused:
        revision({"podPatch": {"spec": {"volumes": [{"name": name, "emptyDir": {}}]}}})
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [f"podPatch.spec.volumes[{name}]"]


def test_what_the_operator_relies_on_cannot_be_patched() -> None:
    patch = {
        "metadata": {"labels": {"capstan.dev/revision": "x", "team": "vision"}},
        "spec": {
            "volumes": [{"name": "serve", "emptyDir": {}}],
            "containers": [{"name": "server", "env": [{"name": "CAPSTAN_STORE", "value": "/tmp"}]}],
        },
    }
    with pytest.raises(PodPatchError) as refused:
        revision({"podPatch": patch})
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "podPatch.metadata.labels[capstan.dev/revision]",
        "podPatch.spec.containers[server].env[CAPSTAN_STORE]",
        "podPatch.spec.volumes[serve]",
    ]


def test_a_patch_reaches_pods_and_keeps_the_operators_labels() -> None:
    built = revision({"podPatch": {"metadata": {"labels": {"team": "vision"}}, "spec": {"priorityClassName": "high"}}})
    template = build_deployment(OWNER, built, 1)["spec"]["template"]
    assert template["metadata"]["labels"] == LABELS | {"capstan.dev/revision": built.name, "team": "vision"}
    assert template["spec"]["priorityClassName"] == "high"
    json.dumps(template)
