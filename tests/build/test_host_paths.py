"""Folders of the nodes: in no pod, however a spec asks for them, unless the operator allows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from capstan_operator.api.benchmark import Pods
from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import ModelStatus
from capstan_operator.api.store import Store
from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.benchmark_pod import BenchPod, build_bench_pod
from capstan_operator.build.host_path import allowing
from capstan_operator.build.pod import build_pod_template
from capstan_operator.build.pod_patch import PodPatchError
from capstan_operator.build.serving_pod import build_replica_template, model_store
from capstan_operator.build.serving_ray import build_ray_cluster
from capstan_operator.build.serving_revision import build_revision
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract.benchmark import BenchTask
from tests.support.looks import SPEC, make_job, merged
from tests.support.serving_world import World

Document = dict[str, Any]
Build = Callable[[Document, Document | None, OperatorSettings], Any]
CLAIM, FOLDER = {"claim": {"name": "own"}}, {"hostPath": {"path": "/data"}}


def patch_of(host_path: Any) -> Document:
    return {"spec": {"volumes": [{"name": "theirs", "hostPath": host_path}]}}


PATCH = patch_of({"path": "/var/lib/kubelet"})
OVERRIDE = {"spec": {"volumes": [{"name": "store", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}


def job(store: Document, patch: Document | None, settings: OperatorSettings) -> Any:
    spec = merged(SPEC, {"checkpoint": {"store": {"claim": None} | store}, "workers": {"podPatch": patch}})
    return build_pod_template(make_job(), TrainingJobSpec.parse(spec), settings)


def service(backend: str) -> Build:
    def build(store: Document, patch: Document | None, settings: OperatorSettings) -> Any:
        spec = {"modelRef": {"trainingJob": {"name": "digits"}}, "backend": backend, "podPatch": patch}
        if backend == "RayService":
            spec["rollout"] = {"strategy": {"blueGreen": {"holdSeconds": 7}}}
        told = {"source": "x", "run": "default/d/u", "digest": "blake3:" + 64 * "0", "store": store}
        template = build_ray_cluster if backend == "RayService" else build_replica_template
        parsed = InferenceServiceSpec.parse({name: value for name, value in spec.items() if value is not None})
        return build_revision(World().look().service, parsed, ModelStatus.parse(told), "torch", settings, template)

    return build


def benchmark(store: Document, patch: Document | None, settings: OperatorSettings) -> Any:
    pods = Pods.parse({"podPatch": patch} if patch else {})
    task = BenchTask(benchmark="b", namespace="default", uid="u", seed=0)
    return build_bench_pod(make_job(), BenchPod("b-t00", "t00", task, Store.parse(store), pods, None, 60), settings)


BUILDS: dict[str, tuple[Build, str, str]] = {
    "TrainingJob": (job, "checkpoint.store", "workers.podPatch"),
    "InferenceService": (service("Standalone"), "modelRef.trainingJob: its checkpoint.store", "podPatch"),
    "RayService": (service("RayService"), "modelRef.trainingJob: its checkpoint.store", "podPatch"),
    "Benchmark": (benchmark, "results.store", "pods.podPatch"),
}


def test_a_folder_in_the_spec_of_a_service_is_called_by_its_field() -> None:
    store = {"run": "default/digits/uid", "digest": "blake3:" + 64 * "0", "store": FOLDER}
    spec = InferenceServiceSpec.parse({"modelRef": {"uri": store}, "runtime": "torch"})
    assert model_store(spec) == "modelRef.uri.store"


@pytest.mark.parametrize("kind", BUILDS)
@pytest.mark.parametrize(
    ("store", "patch", "field"),
    [
        (FOLDER, None, "{store}.hostPath: /data"),
        (CLAIM, PATCH, "{patch}.spec.volumes[theirs].hostPath: /var/lib/kubelet"),
        (CLAIM, OVERRIDE, "{store}.hostPath: /"),
        (CLAIM, patch_of({"type": "Directory"}), "{patch}.spec.volumes[theirs].hostPath: None"),
        (CLAIM, patch_of("/data"), "{patch}.spec.volumes[theirs].hostPath: /data"),
        (CLAIM, patch_of(["/data"]), "{patch}.spec.volumes[theirs].hostPath: ['/data']"),
        (CLAIM, patch_of({"path": {"a": 1}}), "{patch}.spec.volumes[theirs].hostPath: {{'a': 1}}"),
    ],
)
def test_a_folder_of_the_node_is_refused_with_what_to_do(
    kind: str, store: Document, patch: Document | None, field: str
) -> None:
    build, store_field, patch_field = BUILDS[kind]
    with pytest.raises(PodPatchError) as refused:
        build(store, patch, OperatorSettings())
    (problem,) = refused.value.problems
    assert problem.startswith(field.format(store=store_field, patch=patch_field) + ": ")
    assert problem.endswith("use a claim or a bucket, or run the operator with --allow-host-path")
    build(store, patch, OperatorSettings(allow_host_path=True))


@pytest.mark.parametrize("kind", BUILDS)
def test_a_folder_that_it_has_already_is_let_through_and_no_other(kind: str) -> None:
    build, _, patch_field = BUILDS[kind]
    settings = allowing(OperatorSettings(), ["/data"])
    build(FOLDER, None, settings)
    build(CLAIM, patch_of({"path": "/data", "type": "Directory"}), settings)
    with pytest.raises(PodPatchError) as refused:
        build(FOLDER, PATCH, settings)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{patch_field}.spec.volumes[theirs].hostPath: /var/lib/kubelet: ")


@pytest.mark.parametrize("kind", BUILDS)
def test_what_a_namespace_gives_itself_is_not(kind: str) -> None:
    patch = {"spec": {"volumes": [{"name": "more", "persistentVolumeClaim": {"claimName": "data"}}]}}
    BUILDS[kind][0](CLAIM, patch, OperatorSettings())
