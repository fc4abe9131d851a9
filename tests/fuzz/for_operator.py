"""What the operator reads: pods' words, the API server's answers, users' specs, a kubeconfig."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lupa
import orjson
import yaml
from pydantic import BaseModel, ValidationError

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.bench_run import Usage, read_manifests
from capstan_operator.cluster.credentials import CredentialsError, read_kubeconfig
from capstan_operator.cluster.errors import UNREADABLE, ScrapeError, api_error
from capstan_operator.cluster.gateway_routes import decode_http_route
from capstan_operator.cluster.pods import decode_pod, read_final, read_lines, read_state
from capstan_operator.cluster.ray_services import decode_ray_service
from capstan_operator.cluster.reflector import Expired, read_event
from capstan_operator.cluster.replica_metrics import read_metrics
from capstan_operator.cluster.replicas import decode_deployment, decode_disruption_budget, decode_service, read_answer
from capstan_operator.cluster.statuses import read_status
from capstan_operator.decide.validation import explain
from capstan_runtime.contract.benchmark import Summary, TrialEnd
from capstan_runtime.contract.serving import ServedModel
from capstan_runtime.contract.state import Hint
from capstan_runtime.serving.metrics import Metrics as ReplicaMetrics
from tests.fuzz.scratch import scratch
from tests.fuzz.target import Target
from tests.support.benchmarks import summary, trial_end

_SPECS: dict[str, tuple[type[Any], type[Any]]] = {
    "TrainingJob": (TrainingJobSpec, TrainingJobStatus),
    "InferenceService": (InferenceServiceSpec, InferenceServiceStatus),
    "Benchmark": (BenchmarkSpec, BenchmarkStatus),
}


@cache
def _examples(kind: str) -> list[dict[str, Any]]:
    """The examples' objects of one kind."""
    documents = [
        one for path in sorted(Path("examples").glob("*/*.yaml")) for one in yaml.safe_load_all(path.read_text())
    ]
    return [one for one in documents if one and one["kind"] == kind]


def _dumped(*documents: Any) -> Callable[[], Sequence[bytes]]:
    return lambda: [json.dumps(document).encode() for document in documents]


_ROOT = "blake3:" + "0" * 64
_STATE = {
    "pod": "j-worker-0", "uid": "u", "fence": 3, "rank": 0, "world": 2, "phase": "Exited", "step": 40, "steps": 80,
    "metrics": {"loss": 0.5}, "checkpoint": {"step": 40, "root": _ROOT, "at": 1.0, "verifiedAt": 2.0},
    "timeline": {"Idle": 1.0}, "seconds": {"Training": 3.5}, "keepRoots": [_ROOT], "notes": ["n"],
    "quarantined": [{"step": 20, "root": "r", "reason": "flipped"}],
    "exit": {
        "fence": 3, "code": 137, "signal": "SIGKILL", "failure": "Lost", "message": "m", "lastLines": ["x"], "at": 9.0,
    },
}  # fmt: skip


def _state(data: bytes) -> bool:
    try:
        state = read_state(data)
    except ValidationError:
        return False
    again = type(state).parse(state.model_dump(by_alias=True))
    assert repr(again) == repr(state), "a state is read as it is written"
    return True


def _last_words(data: bytes) -> bool:
    """Kubernetes' strings are UTF-8."""
    message = data.decode(errors="replace")
    state, flaw = read_final(message)
    assert state is None or flaw is None
    assert all(line.isprintable() for line in read_lines(message))
    return state is not None


def _bench_end(data: bytes) -> bool:
    message, taken = data.decode(errors="replace"), False
    for kind in (TrialEnd, Summary):
        try:
            kind.model_validate_json(message, by_alias=True, by_name=False, extra="ignore")
            taken = True
        except ValidationError:
            continue
    return taken


def _resolved(data: bytes) -> bool:
    """What is taken leads nowhere but to a run's folder."""
    answer = read_answer(data.decode(errors="replace"))
    if answer is None:
        return False
    assert not {"", ".", ".."} & set(answer.run.split("/"))
    return True


def _hint(data: bytes) -> bool:
    try:
        Hint.model_validate_json(data, by_alias=True, by_name=False, extra="ignore")
    except ValidationError:
        return False
    return True


@cache
def _scraped() -> list[bytes]:
    metrics = ReplicaMetrics(ServedModel(name="digits", version="digits-1", run="r", root="blake3:5e"))
    metrics.show("ongoing_requests", "Requests that are worked on.", lambda: 2)
    return [metrics.render()]


def _replica_metrics(data: bytes) -> bool:
    try:
        read_metrics(data)
    except ScrapeError:
        return False
    return True


def _require_lines(told: Sequence[str]) -> None:
    assert told, "what is refused is explained"
    assert not any("\n" in line or not line for line in told), "one line for each mistake"


def _spec(kind: str) -> Callable[[bytes], bool]:
    model: type[Any] = _SPECS[kind][0]

    def feed(data: bytes) -> bool:
        try:
            document = orjson.loads(data)  # as the API server's answer is read
        except orjson.JSONDecodeError:
            return False
        try:
            spec = model.parse(document)
        except ValidationError as error:
            _require_lines(explain(error, model))
            return False
        again: BaseModel = model.parse(spec.document())
        assert again == spec, "a spec is read as it is written"
        return True

    return feed


def _status(kind: str) -> Callable[[bytes], bool]:
    model: type[Any] = _SPECS[kind][1]

    def feed(data: bytes) -> bool:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            return False
        if not isinstance(document, dict):
            return False  # the CRD says that it is an object
        status, dropped = read_status(document, model)
        return not dropped and orjson.loads(orjson.dumps(status.document())) is not None

    return feed


_OWNER = {"apiVersion": "capstan.dev/v1alpha1", "kind": "TrainingJob", "name": "j", "uid": "w", "controller": True}
_METADATA = {
    "name": "j-worker-0", "namespace": "default", "uid": "u", "resourceVersion": "7",
    "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"capstan.dev/job": "j"}, "ownerReferences": [_OWNER],
}  # fmt: skip
_ENDED = {"name": "c", "restartCount": 1, "state": {"terminated": {"exitCode": 1, "message": "m"}}}
_SEEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pod": (
        {"nodeName": "n", "containers": [{"name": "c"}]},
        {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready"}], "containerStatuses": [_ENDED]},
    ),
    "deployment": ({"replicas": 2}, {"readyReplicas": 1}),
    "service": ({"clusterIP": "10.0.0.2", "selector": {"a": "b"}}, {}),
    "disruption budget": ({"minAvailable": 1}, {}),
    "route": ({"rules": [{"backendRefs": [{"name": "a", "weight": 3}]}]}, {"parents": []}),
    "Ray service": ({}, {"conditions": [{"type": "Ready", "status": "True"}]}),
}
_OBJECTS = {
    kind: {"metadata": _METADATA, "spec": spec, "status": status} for kind, (spec, status) in _SEEN.items()
}  # fmt: skip
_DECODERS = {
    "pod": decode_pod,
    "deployment": decode_deployment,
    "service": decode_service,
    "disruption budget": decode_disruption_budget,
    "route": decode_http_route,
    "Ray service": decode_ray_service,
}


def _event(data: bytes) -> bool:
    """One line of a watch, taken for an event of every kind in turn."""
    is_taken = False
    for decode in _DECODERS.values():
        try:
            read_event(data, decode)
            is_taken = True
        except (Expired, *UNREADABLE):
            continue
    return is_taken


def _error_answer(data: bytes) -> bool:
    error = api_error(503, data, "GET /x")
    assert "\n" not in str(error)
    return True


_KUBECONFIG = {
    "apiVersion": "v1", "kind": "Config", "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "n"}}],
    "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority-data": "eA=="}}],
    "users": [{"name": "u", "user": {"token": "t", "client-certificate-data": "eA==", "client-key-data": "eA=="}}],
}  # fmt: skip


def _kubeconfig(data: bytes) -> bool:
    path = scratch() / "kubeconfig"
    path.write_bytes(data)
    try:
        read_kubeconfig(path)
    except CredentialsError:
        return False
    return True


def _manifests(data: bytes) -> bool:
    path = scratch() / "bench.yaml"
    path.write_bytes(data)
    try:
        read_manifests(path)
    except Usage:
        return False
    return True


def _benchmark_files() -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path("examples").glob("bench-*/*.yaml"))]


_HEALTHS = ("Healthy", "Progressing", "Degraded", "Suspended")


@cache
def _health_script(kind: str) -> str:
    data = yaml.safe_load(Path("charts/capstan/argocd/argocd-cm.yaml").read_text())["data"]
    script: str = data[f"resource.customizations.health.capstan.dev_{kind}"]
    return script


def _health(data: bytes) -> bool:
    """Argo CD gives a script what the API server has: the status is what the CRD's schema lets be written."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(document, dict) or not isinstance(status := document.get("status"), dict):
        return False
    annotations = document.get("annotations")
    if not isinstance(annotations, dict) or not all(isinstance(one, str) for one in annotations.values()):
        return False
    for kind, (_, model) in _SPECS.items():
        try:
            model.model_validate_json(orjson.dumps(status), strict=True, by_alias=True, by_name=False, extra="ignore")
        except ValidationError:
            continue
        runtime = lupa.LuaRuntime(unpack_returned_tuples=True, max_memory=16 << 20)
        metadata = {"name": "it", "generation": 2, "annotations": annotations}
        seen = {"metadata": metadata, "spec": document.get("spec"), "status": status}
        runtime.globals().obj = runtime.table_from(_without_null(seen), recursive=True)
        assert dict(runtime.execute(_health_script(kind)))["status"] in _HEALTHS
    return True


def _without_null(value: Any) -> Any:
    """Lua has no null: a field that is null is not there."""
    if isinstance(value, dict):
        return {name: _without_null(one) for name, one in value.items() if one is not None}
    return [_without_null(one) for one in value if one is not None] if isinstance(value, list) else value


_CONDITION = {
    "type": "Ready", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z",
}  # fmt: skip
_STATUSES: dict[str, Any] = {
    "TrainingJob": {"phase": "Running", "observedGeneration": 2, "fence": 4, "conditions": [_CONDITION], "step": 7},
    "InferenceService": {"observedGeneration": 2, "conditions": [_CONDITION], "url": "http://x", "ready": "1/1"},
    "Benchmark": {"phase": "Running", "observedGeneration": 2, "conditions": [_CONDITION], "seed": 3},
}
_ERROR = {"code": 409, "reason": "Conflict", "message": "m", "details": {"causes": [{"reason": "r"}]}}
_HEALTH = {"annotations": {"capstan.dev/argocd-healthy": "Succeeded"}, "spec": {}}

TARGETS = (
    Target("state", "supervisors", "cluster.pods.read_state", "ValidationError", "json", _dumped(_STATE), _state),
    Target("last-words", "supervisors", "cluster.pods.read_final", "a flaw", "json",
           lambda: [json.dumps(_STATE, separators=(",", ":")).encode()], _last_words),
    Target("bench-end", "pods of Benchmarks", "contract.benchmark.TrialEnd, Summary", "ValidationError", "json",
           lambda: [trial_end().encode(), summary("Regressed").encode()], _bench_end),
    Target("registry-answer", "pods that ask a registry", "cluster.replicas.read_answer", "None", "json",
           _dumped({"name": "digits", "version": "1.0.0", "digest": "blake3:" + 64 * "0", "run": "default/digits/7f3a",
                    "step": 3, "framework": "flax"}), _resolved),
    Target("hint", "anybody", "contract.state.Hint", "ValidationError", "json",
           _dumped({"namespace": "n", "job": "j", "pod": "p"}), _hint),
    Target("replica-metrics", "replicas", "cluster.replica_metrics.read_metrics", "ScrapeError", "lines", _scraped,
           _replica_metrics),
    *(Target(f"spec-{kind}", "users", f"api.{kind}Spec.parse", "ValidationError, one line each", "json",
             lambda kind=kind: [json.dumps(one["spec"]).encode() for one in _examples(kind)], _spec(kind))
      for kind in _SPECS),
    *(Target(f"status-{kind}", "whoever edits it", "cluster.statuses.read_status", "fields left out", "json",
             _dumped(_STATUSES[kind]), _status(kind))
      for kind in _SPECS),
    Target("watch-event", "the API server", "cluster.reflector.read_event", "UNREADABLE", "json",
           _dumped(*({"type": "ADDED", "object": one} for one in _OBJECTS.values()),
                   {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}), _event),
    Target("api-error", "the API server and what is before it", "cluster.errors.api_error", "ApiError that quotes it",
           "json", _dumped(_ERROR), _error_answer),
    Target("kubeconfig", "users", "cluster.credentials.read_kubeconfig", "CredentialsError", "json",
           lambda: [json.dumps(_KUBECONFIG).encode(), yaml.safe_dump(_KUBECONFIG).encode()], _kubeconfig),
    Target("bench-manifests", "users", "bench_run.read_manifests", "Usage", "lines", _benchmark_files, _manifests),
    Target("argocd-health", "the API server", "charts/capstan/argocd", "a health of Argo CD's", "json",
           _dumped(*({**_HEALTH, "status": one} for one in _STATUSES.values())), _health),
)  # fmt: skip
