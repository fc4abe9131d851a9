"""The pod of one replica: the same for all replicas of a revision."""

from math import ceil
from typing import Any

from capstan_operator.api.inference_service import STOP_SECONDS, InferenceServiceSpec
from capstan_operator.api.inference_service_status import ModelStatus
from capstan_operator.api.meta import LABEL_MANAGED_BY, LABEL_REVISION, LABEL_SERVICE
from capstan_operator.build.host_path import checked_volumes
from capstan_operator.build.pod_parts import (
    TERMINATION_LOG,
    container_resources,
    env_entries,
    hardened_container,
    hardened_pod,
    scheduling,
    whole_cores,
)
from capstan_operator.build.pod_patch import Patchable, apply_pod_patch
from capstan_operator.build.store import STORE_FOLDER, STORE_VOLUME, store_env, store_env_from, store_volume
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from capstan_runtime.contract.serving import API_KEYS_FOLDER, TLS_FOLDER, ServeConfig

SERVER = "server"
"""Name of the container."""
PORT_NAME = "http"
CONFIG_VOLUME = "serve"
CONFIG_FOLDER = "/etc/capstan/serve"
CONFIG_FILE = "serve.json"
KEYS_VOLUME = "api-keys"
TLS_VOLUME = "tls"
SERVE_REPLICA = ["python", "-m", "capstan_runtime.serve_replica"]
START_SECONDS = 600
"""How long a replica may take until it is live: Ray, the framework and a large checkpoint."""
LIVE, READY = "/v2/health/live", "/v2/health/ready"

SERVER_POD = Patchable(
    path="podPatch",
    container=SERVER,
    labels=(LABEL_MANAGED_BY, LABEL_SERVICE, LABEL_REVISION),
    volumes=(CONFIG_VOLUME, KEYS_VOLUME, TLS_VOLUME),
    folders=(CONFIG_FOLDER, API_KEYS_FOLDER, TLS_FOLDER),
    pod_fields=("restartPolicy", "terminationGracePeriodSeconds"),
)


def model_store(spec: InferenceServiceSpec) -> str:
    """What the model's store is called in messages: it stands in the spec, or in that of the job which made it."""
    if spec.model_ref.registry:
        return "modelRef.registry.store"
    return "modelRef.uri.store" if spec.model_ref.uri else "modelRef.trainingJob: its checkpoint.store"


def build_replica_template(
    spec: InferenceServiceSpec, model: ModelStatus, config: ServeConfig, secret: str, settings: OperatorSettings
) -> dict[str, Any]:
    """`{metadata, spec}` of every replica, the user's patch merged in; labels are added by the Deployment.

    `secret` is the name of the Secret that holds `config`. Raises PodPatchError, whose lines name the fields at fault.
    """
    template = {
        "metadata": {},
        "spec": {
            "terminationGracePeriodSeconds": ceil(config.drain_seconds + config.longest_finish_seconds) + STOP_SECONDS,
            **hardened_pod(),
            "containers": [_server(spec, model, config, settings)],
            "volumes": _volumes(spec, model, secret),
            **scheduling(spec.node_selector, spec.tolerations),
        },
    }
    patched = apply_pod_patch(template, spec.pod_patch, SERVER_POD) if spec.pod_patch else template
    return checked_volumes(patched, model_store(spec), SERVER_POD, settings)


def _server(
    spec: InferenceServiceSpec, model: ModelStatus, config: ServeConfig, settings: OperatorSettings
) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [{"name": CONFIG_VOLUME, "mountPath": CONFIG_FOLDER, "readOnly": True}]
    if spec.auth:
        mounts.append({"name": KEYS_VOLUME, "mountPath": API_KEYS_FOLDER, "readOnly": True})
    if spec.tls:
        mounts.append({"name": TLS_VOLUME, "mountPath": TLS_FOLDER, "readOnly": True})
    if not model.store.object:
        # Who serves a checkpoint has no business to change it.
        mounts.append({"name": STORE_VOLUME, "mountPath": STORE_FOLDER, "readOnly": True})
    return {
        "name": SERVER,
        "image": spec.image or settings.serve_image,
        "command": SERVE_REPLICA,
        "env": _env(spec, model, config),
        **store_env_from(model.store),
        "ports": [{"name": PORT_NAME, "containerPort": env.SERVE_PORT}],
        **container_resources(spec.resources, spec.gpus),
        **_probes(is_tls=spec.tls is not None),
        **hardened_container(),
        "volumeMounts": mounts,
    }


def _env(spec: InferenceServiceSpec, model: ModelStatus, config: ServeConfig) -> list[dict[str, Any]]:
    plain = {
        env.SERVE_CONFIG: f"{CONFIG_FOLDER}/{CONFIG_FILE}",
        env.TERMINATION_LOG: TERMINATION_LOG,
        **store_env(model.store, model.run),
    }
    if config.runtime == "flax":
        # Named, so that a pod whose GPU is broken fails instead of computing on its CPU.
        plain["JAX_PLATFORMS"] = "cuda,cpu" if spec.gpus else "cpu"
    if "cpu" in spec.resources:
        # Libraries count the cores of the node, not of the container, and start that many threads.
        plain["OMP_NUM_THREADS"] = str(whole_cores(spec.resources["cpu"]))
    return env_entries(plain)


def _volumes(spec: InferenceServiceSpec, model: ModelStatus, secret: str) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": CONFIG_VOLUME, "secret": {"secretName": secret, "defaultMode": 0o440}},
    ]
    if spec.auth:
        keys = {"secretName": spec.auth.api_keys_secret_ref.name, "defaultMode": 0o440}
        volumes.append({"name": KEYS_VOLUME, "secret": keys})
    if spec.tls:
        pair = {"secretName": spec.tls.secret_ref.name, "defaultMode": 0o440}
        volumes.append({"name": TLS_VOLUME, "secret": pair})
    if not model.store.object:
        volumes.append(store_volume(model.store))
    return volumes


def _probes(is_tls: bool) -> dict[str, Any]:
    """Ready is who has verified, loaded and warmed its model; live is whose model still answers."""
    scheme = {"scheme": "HTTPS"} if is_tls else {}
    live, ready = ({"httpGet": {"path": path, "port": PORT_NAME, **scheme}} for path in (LIVE, READY))
    return {
        "startupProbe": live | {"periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": START_SECONDS // 2},
        "livenessProbe": live | {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        # A replica that is busy answers late; only one that does not answer at all for a while is taken out.
        "readinessProbe": ready | {"periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 3},
    }
