"""What the API server and the operator say to a manifest, without either of them running."""

from __future__ import annotations

import copy
from typing import Any

from capstan_local.schema.structural import compile_schema
from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.crdgen import benchmark_crd, inference_service_crd, training_job_crd

Document = dict[str, Any]

SCHEMAS = {
    crd["spec"]["names"]["kind"]: compile_schema(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    for crd in (training_job_crd(), inference_service_crd(), benchmark_crd())
}
SPECS = {"TrainingJob": TrainingJobSpec, "InferenceService": InferenceServiceSpec, "Benchmark": BenchmarkSpec}


def refusals(document: Document) -> list[str]:
    """What the API server says to creating this; unknown fields included."""
    schema = SCHEMAS[document["kind"]]
    pruned, unknown = schema.prune(schema.default(copy.deepcopy(document)))
    return unknown + [str(error) for error in schema.validate(pruned, None)]
