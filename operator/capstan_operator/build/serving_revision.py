"""A revision: one checkpoint, one configuration, one pod template. It never changes; only its size does."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import ModelStatus
from capstan_operator.build.children import Owner
from capstan_operator.build.serving_children import HASH_DIGITS, metadata, proven_name, selector
from capstan_operator.build.serving_pod import CONFIG_FILE, PORT_NAME, build_replica_template
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract import env
from capstan_runtime.contract.saving import Verification
from capstan_runtime.contract.serving import Compare, ServeConfig, ServedModel

UNNAMED = "-"
"""Stands in for the revision's name in what the name is a digest of."""
BuildTemplate = Callable[[InferenceServiceSpec, ModelStatus, ServeConfig, str, OperatorSettings], dict[str, Any]]
"""Of a backend: all that it is told of replicas. The text is the name of the Secret with the configuration."""


@dataclass(frozen=True, slots=True)
class Revision:
    """All that is made of a spec and a model."""

    name: str
    model: ModelStatus
    config: ServeConfig
    template: dict[str, Any]
    """What the backend makes replicas from. Shared: never changed."""


def build_revision(
    owner: Owner,
    spec: InferenceServiceSpec,
    model: ModelStatus,
    runtime: Literal["flax", "torch"],
    settings: OperatorSettings,
    build_template: BuildTemplate = build_replica_template,
    name: str | None = None,
) -> Revision:
    """The revision that serves `model` as `spec` says. Its name is a digest of all that its pods depend on, unless it
    has one already: `name`.

    Raises PodPatchError.
    """
    config = ServeConfig(
        service=f"{owner.namespace}/{owner.name}",
        model=ServedModel(
            name=owner.name,
            version=UNNAMED,
            run=model.run.rpartition("/")[2],
            root=model.digest,
            verify=Verification(level="full", public_key=model.public_key),
        ),
        runtime=runtime,
        protocols=tuple(dict.fromkeys(spec.protocols)),
        guards=spec.guards,
        drain_seconds=float(spec.drain_seconds),
        finish_seconds=_finish_seconds(spec),
        compare=_compare(owner, spec),
    )
    if name is None:
        template = build_template(spec, model, config, UNNAMED, settings)
        name = f"{owner.name}-{_digest(config, template)[:HASH_DIGITS]}"
    named = config.model_copy(update={"model": config.model.model_copy(update={"version": name})})
    return Revision(name, model, named, build_template(spec, model, named, name, settings))


def _finish_seconds(spec: InferenceServiceSpec) -> float | None:
    """None where it is what a replica does by itself, so that it is in no revision's name."""
    return None if spec.finish_seconds == spec.timeout_seconds else spec.finish_seconds


def _compare(owner: Owner, spec: InferenceServiceSpec) -> Compare | None:
    """An address that is the same whichever revision is proven: or the name would depend on what it is to replace."""
    canary = spec.rollout.strategy.canary
    if canary is None or canary.gates.min_agreement is None:
        return None
    scheme = "https" if spec.tls else "http"
    return Compare(url=f"{scheme}://{proven_name(owner.name)}.{owner.namespace}.svc:{env.SERVE_PORT}")


def _digest(config: ServeConfig, template: dict[str, Any]) -> str:
    """Fields of the configuration that equal their default are left out: a field that a newer operator knows, and that
    nobody has set, makes no other revision."""
    document = config.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    text = json.dumps([document, template], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def build_config_secret(owner: Owner, revision: Revision) -> dict[str, Any]:
    """Secret `<revision>` with serve.json. Immutable, as the revision is."""
    text = json.dumps(revision.config.document(), sort_keys=True, separators=(",", ":"))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(owner, revision.name, revision.name),
        "type": "Opaque",
        "immutable": True,
        "data": {CONFIG_FILE: base64.b64encode(text.encode()).decode()},
    }


def build_deployment(owner: Owner, revision: Revision, replicas: int) -> dict[str, Any]:
    """Deployment `<revision>`. Of it nothing but `replicas` is ever changed."""
    labels = selector(owner, revision.name)
    own = metadata(owner, revision.name, revision.name)
    patched: dict[str, Any] = revision.template["metadata"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": own,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            # Another revision is another Deployment, so no pod of this one is ever replaced by a different one.
            "revisionHistoryLimit": 0,
            "template": revision.template
            | {"metadata": patched | {"labels": patched.get("labels", {}) | own["labels"]}},
        },
    }


def build_revision_service(owner: Owner, name: str) -> dict[str, Any]:
    """Service `<revision>`: exactly that revision, to try it out before and while it has traffic."""
    return _service(metadata(owner, name, name), selector(owner, name))


def build_route(owner: Owner, revision: str | None) -> dict[str, Any]:
    """Service `<name>`: the stable address. It leads to one revision, or (None) to all that have pods."""
    return _service(metadata(owner, owner.name), selector(owner, revision))


def build_proven(owner: Owner, revision: str) -> dict[str, Any]:
    """Service `<name>-proven`: the proven revision, with whose answers those of others are compared."""
    return _service(metadata(owner, proven_name(owner.name)), selector(owner, revision))


def build_disruption_budget(owner: Owner, api: str) -> dict[str, Any]:
    """PodDisruptionBudget `<name>`, in `api` (an apiVersion): of all pods, whichever their revision, one at a time is
    evicted."""
    return {
        "apiVersion": api,
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, owner.name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(owner, None)}},
    }


def _service(of: dict[str, Any], chosen: dict[str, str]) -> dict[str, Any]:
    ports = [{"name": PORT_NAME, "port": env.SERVE_PORT, "protocol": "TCP", "targetPort": PORT_NAME}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": of,
        "spec": {"type": "ClusterIP", "selector": chosen, "ports": ports},
    }
