"""The CRD of Benchmark: legal, complete, and of one mind with the models it comes from, on real servers, too."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from capstan_local.schema.structural import check_structural, compile_schema
from capstan_operator.api import benchmark
from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.meta import API_VERSION
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import BENCHMARKS
from capstan_operator.cluster.limiter import Lane
from capstan_operator.crd_size import MAX_CRD_BYTES, applied_bytes
from capstan_operator.crdgen import benchmark_crd
from capstan_operator.decide.bench.blueprint import name_problem
from capstan_runtime.contract import workloads
from capstan_runtime.contract.base import OneOf
from tests.support.benchmark_specs import ACCEPTED, BEFORE, REFUSED
from tests.support.benchmarks import spec_of
from tests.support.control_planes import ControlPlane
from tests.support.real_cluster import Cluster, real_cluster

Document = dict[str, Any]
CRD = benchmark_crd()
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
COMPILED = compile_schema(SCHEMA)


def a_benchmark(spec: Document, name: str = "bench") -> Document:
    return {"apiVersion": API_VERSION, "kind": "Benchmark", "metadata": {"name": name}, "spec": spec}


def schema_refusals(spec: Document, name: str = "bench", old: Document | None = None) -> list[str]:
    """What the API server says to creating this, or to changing `old` into it; unknown fields included."""
    new = COMPILED.default(copy.deepcopy(a_benchmark(spec, name)))
    pruned, unknown = COMPILED.prune(copy.deepcopy(new))
    before = COMPILED.default(copy.deepcopy(a_benchmark(old, name))) if old is not None else None
    return unknown + [str(error) for error in COMPILED.validate(pruned, before)]


def model_refusal(spec: Document) -> str | None:
    try:
        BenchmarkSpec.parse(spec)
    except ValidationError as error:
        return str(error)
    return None


def undescribed(schema: Document, path: str = "") -> list[str]:
    found = []
    for name, child in schema.get("properties", {}).items():
        where = f"{path}.{name}"
        found += [] if child.get("description") or where == ".metadata" else [where]
        found += undescribed(child, where)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found += undescribed(schema[key], f"{path}[]")
    return found


def test_the_schema_is_structural_and_small() -> None:
    assert check_structural(SCHEMA) == []
    assert applied_bytes(CRD) < MAX_CRD_BYTES


def test_the_columns_answer_what_was_measured_and_what_that_means() -> None:
    version = CRD["spec"]["versions"][0]
    shown = [column["name"] for column in version["additionalPrinterColumns"] if "priority" not in column]
    assert shown == ["Workload", "Phase", "Runs", "Result", "Verdict", "Age"]
    assert (CRD["spec"]["names"]["shortNames"], "status" in version["subresources"]) == (["bm"], True)


def test_the_status_is_described() -> None:
    assert undescribed(SCHEMA["properties"]["status"]) == []


def test_the_api_server_fills_in_what_the_models_fill_in() -> None:
    for spec in ACCEPTED.values():
        if "job" in spec or "service" in spec["workload"].get("serving", {}):
            continue  # what those fill in is told by their own tests
        defaulted = COMPILED.default(a_benchmark(copy.deepcopy(spec)))["spec"]
        assert outside_lists(defaulted) == outside_lists(BenchmarkSpec.parse(spec).document())
        assert BenchmarkSpec.parse(defaulted) == BenchmarkSpec.parse(spec)


def outside_lists(value: Any) -> Any:
    """Without what elements of lists hold: a server that completed them would make drift of them."""
    if isinstance(value, dict):
        return {name: outside_lists(field) for name, field in value.items()}
    return len(value) if isinstance(value, list) else value


@pytest.mark.parametrize("what", ACCEPTED)
def test_both_accept(what: str) -> None:
    assert schema_refusals(ACCEPTED[what]) == []
    assert model_refusal(ACCEPTED[what]) is None


@pytest.mark.parametrize("what", REFUSED)
def test_both_refuse_and_say_why(what: str) -> None:
    spec, text = REFUSED[what]
    assert any(text in line for line in schema_refusals(spec)), schema_refusals(spec)
    assert text in (model_refusal(spec) or "")


CHANGES: dict[str, tuple[Document, bool]] = {
    "the workload": (spec_of({"roofline": {"runtime": "flax"}}), False),
    "the repetitions": (spec_of(repetitions=3), False),
    "the seed": (spec_of(seed=1), False),
    "where results are kept": (spec_of(results={"store": {"claim": {"name": "other"}}}), False),
    "the pods": (spec_of(pods={"image": "other"}), False),
    "the baseline": (spec_of(baseline=BEFORE), True),
    "a pause": (spec_of(suspend=True, ttlSecondsAfterFinished=5, trialDeadlineSeconds=60), True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_measured_cannot_change_and_what_is_made_of_it_can(what: str) -> None:
    changed, is_allowed = CHANGES[what]
    refusals = schema_refusals(changed, old=spec_of())
    assert (refusals == []) == is_allowed
    rule = "cannot change after the benchmark was created; create one with a new name"
    assert is_allowed or rule in refusals[0]


TWINS: dict[str, tuple[str, ...]] = {
    "BenchmarkSpec._fields_agree": ("job: is missing", "job: is run by no part"),
    "BenchmarkSpec._gate_can_judge": (
        "gate: compares with",
        "a reference row is never a gate",
        "gate: this scalingLaw",
        "cannot be judged",
        "cannot reach gate.confidence",
    ),
    "BenchmarkSpec._warmup_leaves_a_window": (
        "workload.training.warmupSteps: ",
        "workload.scaling.warmupSteps: ",
    ),
    "BenchmarkSpec._reference_is_known": ("is no reference row",),
    "BenchmarkSpec._deadline_holds_the_plan": ("inference measures", "serving measures", "roofline measures"),
    "CheckpointIo._is_a_size": ("state: '",),
    "CheckpointIo._tells_figures_apart": ("beside: holds",),
    "Collectives._sizes_rise": ("smallest: '", "largest: '", "is above largest"),
    "Collectives._tells_figures_apart": ("operations: holds",),
    "FreshModel._takes_its_input": ("input: transformer takes tokens",),
    "Gate._judges_each_once": ("metrics: holds",),
    "Inference._tells_figures_apart": ("batchSizes: holds",),
    "LawGrid._tells_figures_apart": ("models: holds", "steps: holds"),
    "Load._fits_into_memory": ("are the most; lower rates",),
    "Load._tells_figures_apart": ("rates: holds", "scenario: holds"),
    "Roofline._tells_figures_apart": ("dtypes: holds", "matrixSizes: holds", "models: holds"),
    "RooflineModel._takes_its_input": ("input: transformer takes tokens",),
    "ScalingWorkload._has_a_base": ("workers: holds no 1", "strong: false"),
    "ScalingWorkload._tells_figures_apart": ("workers: holds",),
    "ServingWorkload._one_target": ("set exactly one of service, url",),
    "ServingWorkload._url_is_a_place": ("url: holds a user", "has a query"),
    "TrainingWorkload._tells_figures_apart": ("batchSizes: holds",),
}
"""Every validator of a Benchmark's own models, and what its twins in the CRD say."""


def test_every_rule_of_the_models_is_one_of_the_crd() -> None:
    found: dict[str, set[str]] = {}
    for model in own_models(BenchmarkSpec):
        said = [rule["messageExpression"] for rule in own_rules(model)]
        for name in model.__pydantic_decorators__.model_validators:
            if (owner := next(one for one in model.__mro__ if name in vars(one))) is not OneOf:
                validator = f"{owner.__name__}.{name}"
                texts = TWINS.get(validator, ())
                found[validator] = {text for text in texts if any(text in message for message in said)}
    assert found == {name: set(texts) for name, texts in TWINS.items()}


def own_models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """`model` and all below it that came with Benchmarks; jobs, services and stores have tests of their own."""
    found = {model}
    for field in model.model_fields.values():
        for below in models_in(field.annotation):
            if below.__module__ in (benchmark.__name__, workloads.__name__):
                found |= own_models(below)
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def own_rules(model: type[BaseModel]) -> list[Document]:
    rules: list[Document] = model.model_json_schema(by_alias=True).get("x-kubernetes-validations", [])
    return rules


NAMES = ["bench", "a", "a" * 32, "a-1", "1bench", "a" * 33, "bench.v2", "-a", "a-"]


@pytest.mark.parametrize("name", NAMES)
def test_both_judge_a_name_alike(name: str) -> None:
    assert (schema_refusals(spec_of(), name) == []) == (name_problem(name) is None)


BY_RULE = ("an unknown field", "no workload")
"""Refused by what came to Kubernetes after the oldest server at hand, as all is that is said in a sentence."""


async def test_servers_say_the_same(control_plane: ControlPlane) -> None:
    async with real_cluster(control_plane) as cluster:
        for what, spec in ACCEPTED.items():
            assert await said_by(cluster, a_benchmark(spec)) is None, what
        for what, (spec, text) in REFUSED.items():
            if control_plane.is_current or not (" " in text or what in BY_RULE):
                assert text in (await said_by(cluster, a_benchmark(spec)) or "accepted"), what
        if not control_plane.is_current:
            return
        for name in NAMES:
            answer = await said_by(cluster, a_benchmark(spec_of(), name))
            assert (answer is None) == (name_problem(name) is None), name
        await cluster.create(BENCHMARKS, "bench", spec=spec_of())
        for what, (spec, is_allowed) in CHANGES.items():
            answer = await said_by(cluster, a_benchmark(spec), verb="PUT")
            assert (answer is None) == is_allowed, what


async def said_by(cluster: Cluster, document: Document, verb: str = "POST") -> str | None:
    """Why the server refuses to create or replace this; None: it does not."""
    name = document["metadata"]["name"]
    if verb == "PUT":
        known = await cluster.get(BENCHMARKS, name)
        document["metadata"]["resourceVersion"] = known["metadata"]["resourceVersion"]
    path = BENCHMARKS.path(cluster.namespace, name if verb == "PUT" else None)
    params = {"dryRun": "All", "fieldValidation": "Strict"}
    try:
        await cluster.client.call(verb, path, lane=Lane.SYSTEM, body=json.dumps(document).encode(), params=params)
    except ApiError as error:
        return error.message
    return None
