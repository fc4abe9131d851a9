"""RayServices: what a service with that backend turns into."""

from __future__ import annotations

import base64
import importlib.metadata
import json
from typing import Any

import yaml

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import ModelStatus
from capstan_operator.build.serving_ray import RAY_VERSION, build_ray_secret, build_ray_service
from capstan_operator.build.serving_revision import Revision
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.decide.serving.blueprint import read_revision
from capstan_operator.observe import OperatorSettings
from capstan_operator.observe_serving import ObservedService
from tests.support.serving_world import World

SPEC: dict[str, Any] = {
    "modelRef": {"trainingJob": {"name": "digits"}},
    "backend": "RayService",
    "replicas": 3,
    "rollout": {"strategy": {"blueGreen": {"holdSeconds": 7}}},
}
MODEL = ModelStatus.parse(
    {
        "source": "trainingJob digits",
        "run": "default/digits/uid",
        "digest": "blake3:" + 64 * "0",
        "framework": "torch",
        "store": {"claim": {"name": "checkpoints"}},
    }
)
OWNER: ObservedService = World().look().service


def revision_of(**changes: Any) -> Revision:
    revision = read_revision(OWNER, InferenceServiceSpec.parse({**SPEC, **changes}), MODEL, OperatorSettings())
    assert not isinstance(revision, Refusal)
    return revision


def parts(revision: Revision) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pods of (head, workers)."""
    cluster = revision.template
    return cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]


def server_of(pod: dict[str, Any]) -> dict[str, Any]:
    (server,) = pod["containers"]
    return dict(server)


def test_a_ray_service_is_this_around_its_clusters() -> None:
    revision = revision_of()
    made = build_ray_service(OWNER, revision, 7)
    spec = made.pop("spec")
    assert made == {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": "digits",
            "namespace": "default",
            "labels": {
                "app.kubernetes.io/managed-by": "capstan",
                "capstan.dev/service": "digits",
                "capstan.dev/revision": revision.name,
            },
            "ownerReferences": [
                {
                    "apiVersion": "capstan.dev/v1alpha1",
                    "kind": "InferenceService",
                    "name": "digits",
                    "uid": OWNER.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
    }
    assert spec.pop("rayClusterConfig") == revision.template
    assert yaml.safe_load(spec.pop("serveConfigV2")) == {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8480},
        "applications": [
            {
                "name": "capstan",
                "route_prefix": "/",
                "import_path": "capstan_runtime.serve_replica.ingress:build",
                "deployments": [{"name": "replica", "num_replicas": 3}],
            }
        ],
    }
    assert spec == {
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterDeletionDelaySeconds": 7,
        "excludeHeadPodFromServeSvc": True,
    }


def test_a_head_has_no_place_for_replicas_and_each_worker_has_one() -> None:
    cluster = revision_of(gpus=1, resources={"cpu": "2", "memory": "8Gi"}).template
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert {key: value for key, value in workers.items() if key != "template"} == {
        "groupName": "replicas",
        "replicas": 3,
        "minReplicas": 3,
        "maxReplicas": 3,
        "rayStartParams": {"num-cpus": "1"},
    }
    limits = [server_of(group["template"]["spec"])["resources"]["limits"] for group in (head, workers)]
    assert limits == [{"cpu": "1", "memory": "4Gi"}, {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"}]


def test_ray_runs_in_the_pods_of_replicas_hardened_and_with_a_token() -> None:
    revision = revision_of(auth={"apiKeysSecretRef": {"name": "keys"}})
    assert revision.template["authOptions"] == {"mode": "token", "secretName": revision.name}
    for pod in parts(revision):
        server = server_of(pod)
        assert not {"command", "startupProbe", "livenessProbe"} & set(server)
        assert server["ports"] == [{"name": "serve", "containerPort": 8480}]
        assert server["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        said = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in server["env"]}
        assert said["RAY_AUTH_MODE"] == "token"
        assert (said["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"], pod["terminationGracePeriodSeconds"]) == ("40", 50)
        assert said["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": revision.name, "key": "auth_token"}}
        assert said["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "capstan_runtime.serve_replica.ingress:middlewares"
        assert [volume["name"] for volume in pod["volumes"]] == ["serve", "api-keys", "store"]
        assert pod["volumes"][0]["secret"]["secretName"] == revision.name


def test_a_secret_holds_the_configuration_and_the_token() -> None:
    revision = revision_of()
    secret = build_ray_secret(OWNER, revision, "s3cret")
    files = {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}
    assert secret["immutable"] is True
    assert secret["metadata"]["name"] == revision.name
    assert json.loads(files.pop("serve.json"))["model"]["version"] == revision.name
    assert files == {"auth_token": "s3cret"}


def test_a_patch_reaches_every_pod_and_may_bring_probes_of_its_own() -> None:
    probe = {"tcpSocket": {"port": 8480}}
    patch = {
        "metadata": {"annotations": {"a": "b"}},
        "spec": {"imagePullSecrets": [{"name": "pull"}], "containers": [{"name": "server", "livenessProbe": probe}]},
    }
    cluster = revision_of(podPatch=patch).template
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        template = group["template"]
        assert template["metadata"] == {"annotations": {"a": "b"}}
        assert template["spec"]["imagePullSecrets"] == [{"name": "pull"}]
        assert server_of(template["spec"])["livenessProbe"] == probe


def test_each_revision_differs_in_both_pod_templates_so_kuberay_makes_another_cluster() -> None:
    """KubeRay passes over numbers of replicas, and puts another serveConfigV2 into the cluster that serves."""
    revisions = [revision_of(), revision_of(replicas=4), revision_of(timeoutSeconds=9), revision_of(image="other")]
    for index in (0, 1):
        assert len({json.dumps(parts(revision)[index], sort_keys=True) for revision in revisions}) == len(revisions)
    same_size = [revisions[0], revisions[2], revisions[3]]
    assert len({build_ray_service(OWNER, one, 7)["spec"]["serveConfigV2"] for one in same_size}) == 1


def test_how_long_an_old_cluster_stays_makes_no_other_revision() -> None:
    assert revision_of(rollout={"strategy": {"blueGreen": {"holdSeconds": 8}}}) == revision_of()


def test_the_version_of_ray_is_that_of_the_image() -> None:
    assert importlib.metadata.version("ray") == RAY_VERSION
