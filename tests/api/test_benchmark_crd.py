"""The CRD of Benchmark: legal, complete, and of one mind with the models it comes from, on real servers, too."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pydantic import ValidationError

from capstan_local.schema.structural import check_structural, compile_schema
from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.meta import API_VERSION
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import BENCHMARKS
from capstan_operator.cluster.limiter import Lane
from capstan_operator.crdgen import MAX_CRD_BYTES, benchmark_crd, render
from capstan_operator.decide.bench.blueprint import name_problem
from tests.support.benchmarks import job_of, spec_of
from tests.support.control_planes import ControlPlane
from tests.support.real_cluster import Cluster, real_cluster

Document = dict[str, Any]
CRD = benchmark_crd()
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
COMPILED = compile_schema(SCHEMA)
DIGEST = "blake3:" + "0" * 64
MODEL: Document = {
    "fresh": {"architecture": {"mlp": {"hidden": [8]}}, "input": {"vector": {"features": 4, "classes": 2}}}
}
LOAD: Document = {"rates": [5], "scenario": [{"name": "predict", "path": "/"}]}
SERVICE: Document = {"modelRef": {"trainingJob": {"name": "digits"}}}
GRID: Document = {
    "models": [{"name": f"m{n}", "architecture": {"mlp": {"hidden": [n]}}} for n in (4, 8, 16)],
    "steps": [10, 20, 30],
}
POINTS: list[Document] = [{"parameters": 10.0 * n, "tokens": 100.0 * n, "loss": 9.0 - n} for n in range(1, 6)]
BEFORE: Document = {"benchmark": {"name": "before"}}


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
    assert len(render(CRD).encode()) < MAX_CRD_BYTES


def test_the_columns_answer_what_was_measured_and_what_that_means() -> None:
    version = CRD["spec"]["versions"][0]
    shown = [column["name"] for column in version["additionalPrinterColumns"] if "priority" not in column]
    assert shown == ["Workload", "Phase", "Result", "Verdict", "Age"]
    assert (CRD["spec"]["names"]["shortNames"], "status" in version["subresources"]) == (["bm"], True)


def test_the_status_is_described() -> None:
    assert undescribed(SCHEMA["properties"]["status"]) == []


def test_the_api_server_fills_in_what_the_models_fill_in() -> None:
    for spec in ACCEPTED.values():
        if "job" in spec or "service" in spec["workload"].get("serving", {}):
            continue  # what those fill in is told by their own tests
        defaulted = COMPILED.default(a_benchmark(copy.deepcopy(spec)))["spec"]
        assert defaulted == BenchmarkSpec.parse(spec).document()


ACCEPTED: dict[str, Document] = {
    "a roofline": spec_of(),
    "training": spec_of({"training": {"batchSizes": [16, 32]}}, job=job_of()),
    "scaling": spec_of({"scaling": {"workers": [1, 2], "weak": True}}, job=job_of()),
    "inference of a fresh model": spec_of({"inference": {"runtime": "torch", "model": MODEL}}),
    "inference of a checkpoint": spec_of(
        {"inference": {"runtime": "flax", "model": {"checkpoint": {"run": "a/b/c", "digest": DIGEST}}}}
    ),
    "load on a service of its own": spec_of({"serving": {"service": SERVICE} | LOAD}),
    "load on a URL": spec_of({"serving": {"url": "http://digits:8480"} | LOAD}),
    "collectives": spec_of({"collectives": {"framework": {"flax": {}}, "workers": 4}}),
    "a grid": spec_of({"scalingLaw": {"grid": GRID}}, job=job_of()),
    "points": spec_of({"scalingLaw": {"points": POINTS}}),
    "a file": spec_of({"scalingLaw": {"file": "runs.csv"}}),
    "checkpoints": spec_of({"checkpoint": {"state": "64MiB", "beside": ["TorchDCP"]}}),
    "the control plane": spec_of({"controlPlane": {}}, pods={"serviceAccountName": "bursts"}),
    "a gate": spec_of(repetitions=5, baseline=BEFORE, gate={"metrics": ["samples_per_second"]}),
    "a confidence that so many runs reach": spec_of(repetitions=6, baseline=BEFORE, gate={"confidence": 0.995}),
    "all the confidence there is": spec_of(repetitions=13, baseline=BEFORE, gate={"confidence": 0.9999999}),
    "a rerun": spec_of(baseline={"benchmark": {"name": "before", "rerun": True}}),
    "a kept result": spec_of(repetitions=5, baseline={"configMap": {"name": "kept"}}, gate={}),
    "all the rest": spec_of(
        seed=7,
        suspend=True,
        trialDeadlineSeconds=60,
        ttlSecondsAfterFinished=0,
        pods={"image": "x", "gpus": 1, "nodeSelector": {"a": "b"}, "podPatch": {"spec": {"priorityClassName": "low"}}},
    ),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_both_accept(what: str) -> None:
    assert schema_refusals(ACCEPTED[what]) == []
    assert model_refusal(ACCEPTED[what]) is None


REFUSED: dict[str, tuple[Document, str]] = {
    "an unknown field": (spec_of(cases=3), "cases"),
    "no workload": (spec_of({"none": {}}), "workload"),
    "two workloads": (
        spec_of({"roofline": {"runtime": "torch"}, "controlPlane": {}}),
        "got roofline, controlPlane: set exactly one of",
    ),
    "training without a job": (
        spec_of({"training": {}}),
        "job: is missing, and this workload runs TrainingJobs; add the job to run",
    ),
    "a job that nobody runs": (spec_of(job=job_of()), "job: is run by no part of this workload; remove it"),
    "a job for given points": (
        spec_of({"scalingLaw": {"points": POINTS}}, job=job_of()),
        "job: is run by no part of this workload; remove it",
    ),
    "scaling without a base": (
        spec_of({"scaling": {"workers": [2, 4]}}, job=job_of()),
        "workers: holds no 1, which all others are compared with; add 1",
    ),
    "a service and a URL": (
        spec_of({"serving": {"service": SERVICE, "url": "http://x"} | LOAD}),
        "set exactly one of service, url",
    ),
    "no load": (spec_of({"serving": {"url": "http://x"}}), "rates"),
    "a rate twice": (spec_of({"serving": LOAD | {"url": "http://x", "rates": [5, 7, 5]}}), "rates: holds a rate twice"),
    "two requests of one name": (
        spec_of({"serving": LOAD | {"url": "http://x", "scenario": [{"name": "a", "path": "/"}] * 2}}),
        "two kinds of requests have the same name",
    ),
    "collectives of one": (spec_of({"collectives": {"framework": {"flax": {}}, "workers": 1}}), "workers"),
    "a size in other units": (
        spec_of({"checkpoint": {"state": "64MB"}}),
        "64MB is no size; write a whole number with one of B, KiB, MiB, GiB, such as 64MiB",
    ),
    "too few points": (spec_of({"scalingLaw": {"points": POINTS[:4]}}), "points"),
    "a model that takes something else": (
        spec_of(
            {
                "inference": {
                    "runtime": "torch",
                    "model": {
                        "fresh": {
                            "architecture": {"mlp": {"hidden": [8]}},
                            "input": {"tokens": {"vocabulary": 9, "sequenceLength": 8}},
                        }
                    },
                }
            }
        ),
        "input: transformer takes tokens, cnn takes image, mlp takes image or vector; change input or architecture",
    ),
    "no repetition": (spec_of(repetitions=0), "repetitions"),
    "more repetitions than anybody waits for": (spec_of(repetitions=101), "repetitions"),
    "a gate without a baseline": (
        spec_of(repetitions=5, gate={}),
        "gate: compares with a baseline, and there is none; add spec.baseline, or remove gate",
    ),
    "a gate that nothing could pass": (
        spec_of(repetitions=4, baseline=BEFORE, gate={}),
        "repetitions: 4 cannot be judged; a gate needs 5 or more: raise repetitions, or remove gate",
    ),
    "a confidence that so few runs cannot reach": (
        spec_of(repetitions=5, baseline=BEFORE, gate={"confidence": 0.995}),
        "repetitions: 5 cannot reach gate.confidence 0.995, however large a difference is; raise repetitions to 6, or "
        "lower gate.confidence",
    ),
    "near certainty": (
        spec_of(repetitions=12, baseline=BEFORE, gate={"confidence": 0.99999999}),
        "repetitions: 12 cannot reach gate.confidence 0.99999999, however large a difference is; raise repetitions to "
        "13, or",
    ),
    "a gate at a published row": (
        spec_of(
            {"training": {}},
            job=job_of(),
            repetitions=5,
            baseline={"reference": "bert-base-flax"},
            gate={},
        ),
        "baseline.reference: a published row is never a gate, only shown beside; remove gate",
    ),
    "a gate for given points": (
        spec_of({"scalingLaw": {"points": POINTS}}, repetitions=5, baseline=BEFORE, gate={}),
        "gate: this scalingLaw runs nothing that could be repeated; remove gate, or use scalingLaw.grid",
    ),
    "two baselines": (
        spec_of(baseline=BEFORE | {"configMap": {"name": "kept"}}),
        "got benchmark, configMap: set exactly one of benchmark, configMap, reference",
    ),
    "no effect": (spec_of(repetitions=5, baseline=BEFORE, gate={"minimumEffectPercent": 0}), "minimumEffectPercent"),
    "certainty": (spec_of(repetitions=5, baseline=BEFORE, gate={"confidence": 1.0}), "confidence"),
    "nowhere to keep results": ({"workload": {"roofline": {"runtime": "torch"}}}, "results"),
    "a deadline that is over at once": (spec_of(trialDeadlineSeconds=1), "trialDeadlineSeconds"),
}


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
