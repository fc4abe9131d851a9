"""spec.managedBy is the same field, with the same rules, on all three kinds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from capstan_local.schema.structural import compile_schema
from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.crdgen import benchmark_crd, inference_service_crd, training_job_crd
from tests.support.benchmarks import job_of, spec_of
from tests.support.real_cluster import STORED_MODEL

Document = dict[str, Any]
JOB: Document = job_of() | {"checkpoint": {"store": {"claim": {"name": "store"}}}}
KINDS: dict[str, tuple[Document, Document, type[TrainingJobSpec | InferenceServiceSpec | BenchmarkSpec]]] = {
    "TrainingJob": (training_job_crd(), JOB, TrainingJobSpec),
    "InferenceService": (inference_service_crd(), STORED_MODEL, InferenceServiceSpec),
    "Benchmark": (benchmark_crd(), spec_of(), BenchmarkSpec),
}
VALUES = {
    "capstan.dev/operator": True,
    "kueue.x-k8s.io/multikueue": True,
    "acme/Train_er.v2": True,
    f"a.b/{59 * 'c'}": True,
    f"a.b/{60 * 'c'}": False,
    "operator": False,
    "": False,
    "/operator": False,
    "acme.io/": False,
    "Acme.io/operator": False,
    "acme..io/operator": False,
    "acme.io/-operator": False,
    "acme.io/a/b": False,
}


def schema_refusals(kind: str, spec: Document, old: Document | None = None) -> list[str]:
    compiled = compile_schema(KINDS[kind][0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"])

    def stored(spec: Document) -> Document:
        head = {"apiVersion": "capstan.dev/v1alpha1", "kind": kind, "metadata": {"name": "one"}}
        return compiled.default(copy.deepcopy(head | {"spec": spec}))  # type: ignore[no-any-return]

    return [str(error) for error in compiled.validate(stored(spec), stored(old) if old is not None else None)]


def model_accepts(kind: str, spec: Document) -> bool:
    try:
        KINDS[kind][2].parse(spec)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_schema_and_models_agree_on_what_names_a_controller(kind: str) -> None:
    spec = KINDS[kind][1]
    judged = {value: (schema_refusals(kind, spec | {"managedBy": value}) == []) for value in VALUES}
    assert judged == VALUES
    assert {value: model_accepts(kind, spec | {"managedBy": value}) for value in VALUES} == VALUES


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_never_handed_over(kind: str) -> None:
    spec = KINDS[kind][1]
    ours, theirs = spec | {"managedBy": "capstan.dev/operator"}, spec | {"managedBy": "acme.io/trainer"}
    for old, new in ((spec, theirs), (theirs, spec), (ours, theirs), (ours, spec)):
        (refusal,) = schema_refusals(kind, new, old)
        assert "managedBy: cannot change after the object was created; create one with a new name" in refusal
    for same in (spec, ours, theirs):
        assert schema_refusals(kind, same, same) == []
