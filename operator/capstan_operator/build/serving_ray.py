"""The RayService of an InferenceService: KubeRay makes Ray clusters of it, whose workers are the replicas."""

import base64
from math import ceil
from typing import Any

import yaml

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import ModelStatus
from capstan_operator.build.children import Owner
from capstan_operator.build.host_path import checked_volumes
from capstan_operator.build.pod_patch import apply_pod_patch
from capstan_operator.build.serving_children import metadata
from capstan_operator.build.serving_pod import SERVER_POD, build_replica_template, model_store
from capstan_operator.build.serving_revision import Revision, build_config_secret
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from capstan_runtime.contract.serving import ServeConfig

KUBERAY_API = "ray.io/v1"
RAY_VERSION = "2.60.0"
"""Of the serving image. By it KubeRay chooses its probes."""
LONGEST_RAY_SERVICE_NAME = 47
"""KubeRay refuses longer ones, because it names clusters after them."""
APPLICATION, DEPLOYMENT = "capstan", "replica"
"""What Serve knows the application and its replicas by."""
INGRESS = "capstan_runtime.serve_replica.ingress"
TOKEN_FILE = "auth_token"  # nosec B105  # a name
"""Where KubeRay looks for the token in a Secret."""
_ALL_OF_A_POD = "0.0.0.0"  # nosec B104  # its addresses
_HEAD_RESOURCES = {"cpu": "1", "memory": "4Gi"}
"""Of the pod that keeps the cluster together, and serves nothing."""


def serve_service_name(service: str) -> str:
    """Of the Service that KubeRay makes."""
    return f"{service}-serve-svc"


def build_ray_cluster(
    spec: InferenceServiceSpec, model: ModelStatus, config: ServeConfig, secret: str, settings: OperatorSettings
) -> dict[str, Any]:
    """`rayClusterConfig` of a revision: a head without replicas, and a worker with one place for each replica.

    `secret` is the name of the Secret that holds `config` and the token. It stands in both pod templates, so KubeRay
    makes a new cluster for every revision. Raises PodPatchError, whose lines name the fields at fault.
    """
    head = spec.model_copy(update={"resources": _HEAD_RESOURCES, "gpus": 0})
    size = spec.replicas or 1
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token", "secretName": secret},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": _template(head, model, config, secret, settings),
        },
        "workerGroupSpecs": [
            {
                "groupName": "replicas",
                "replicas": size,
                "minReplicas": size,
                "maxReplicas": size,
                "rayStartParams": {"num-cpus": "1"},
                "template": _template(spec, model, config, secret, settings, _WORKER),
            }
        ],
    }


_WORKER: dict[str, Any] = {
    # As KubeRay would have it, but by HTTP: its own runs wget in the container.
    "readinessProbe": {
        "httpGet": {"path": "/-/healthz", "port": env.SERVE_PORT},
        "periodSeconds": 2,
        "timeoutSeconds": 2,
        "failureThreshold": 3,
    }
}


def _template(
    spec: InferenceServiceSpec,
    model: ModelStatus,
    config: ServeConfig,
    secret: str,
    settings: OperatorSettings,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The pod of a replica, in which KubeRay runs Ray instead of our first process, with `more` in its container."""
    template = build_replica_template(spec.model_copy(update={"pod_patch": None}), model, config, secret, settings)
    (server,) = template["spec"]["containers"]
    kept = {
        key: value
        for key, value in server.items()
        if key not in ("command", "startupProbe", "livenessProbe", "readinessProbe")
    }
    ray = kept | {
        "env": [*server["env"], *_env(config, secret)],
        # By this name KubeRay finds the port.
        "ports": [{"name": "serve", "containerPort": env.SERVE_PORT}],
        **(more or {}),
    }
    template = template | {"spec": template["spec"] | {"containers": [ray]}}
    patched = apply_pod_patch(template, spec.pod_patch, SERVER_POD) if spec.pod_patch else template
    return checked_volumes(patched, model_store(spec), SERVER_POD, settings)


def _env(config: ServeConfig, secret: str) -> list[dict[str, Any]]:
    plain = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # From SIGTERM on; it ends as soon as the pod's replica has none.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(ceil(config.drain_seconds + config.longest_finish_seconds)),
        # Into the pod's log, not to files of Ray's session.
        "RAY_LOG_TO_STDERR": "1",
        # A replica asks Ray for no accelerator, and shall see all that its pod has.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{INGRESS}:middlewares",
    }
    token = {"secretKeyRef": {"name": secret, "key": TOKEN_FILE}}
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        {"name": "RAY_AUTH_TOKEN", "valueFrom": token},
    ]


def build_ray_secret(owner: Owner, revision: Revision, token: str) -> dict[str, Any]:
    """Secret `<revision>` with serve.json and the token of the revision's cluster. Immutable, as the revision is."""
    secret = build_config_secret(owner, revision)
    return secret | {"data": secret["data"] | {TOKEN_FILE: base64.b64encode(token.encode()).decode()}}


def build_ray_service(owner: Owner, revision: Revision, deletion_delay_seconds: int) -> dict[str, Any]:
    """RayService `<name>`, of which KubeRay makes another cluster for each revision."""
    (workers,) = revision.template["workerGroupSpecs"]
    return {
        "apiVersion": KUBERAY_API,
        "kind": "RayService",
        "metadata": metadata(owner, owner.name, revision.name),
        "spec": {
            "serveConfigV2": _serve_config(workers["replicas"]),
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": deletion_delay_seconds,
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": revision.template,
        },
    }


def _serve_config(replicas: int) -> str:
    """The same for all revisions of one size: KubeRay would put a change of it into the cluster that serves. What makes
    a revision stands in serve.json."""
    document = {
        "proxy_location": "EveryNode",
        "http_options": {"host": _ALL_OF_A_POD, "port": env.SERVE_PORT},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": f"{INGRESS}:build",
                "deployments": [{"name": DEPLOYMENT, "num_replicas": replicas}],
            }
        ],
    }
    return yaml.safe_dump(document, sort_keys=False)
