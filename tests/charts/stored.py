"""Objects as a cluster holds them after months: every example, and one of each kind in every phase of its life."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from capstan_operator.decide.inference_service import decide_inference_service
from capstan_operator.decide.training_job import decide_training_job
from tests.support import bench_cases, decide_cases, serving_cases

Json = dict[str, Any]

PLURALS = {"TrainingJob": "trainingjobs", "InferenceService": "inferenceservices", "Benchmark": "benchmarks"}
_CASES = Path("tests/decide")


def examples() -> list[Json]:
    """Every object of ours that the examples hold, under names of their own: some are versions of one another."""
    texts = [path.read_text() for path in sorted(Path("examples").glob("*/*.yaml"))]
    found = [each for text in texts for each in yaml.safe_load_all(text) if each and each["kind"] in PLURALS]
    return [each | {"metadata": {"name": f"example-{number}"}} for number, each in enumerate(found)]


def in_every_phase() -> list[Json]:
    """For each kind and phase an example's spec with the longest status that any decision has led to."""
    specs = {each["kind"]: each for each in examples()}
    found = []
    for kind, statuses in (
        ("TrainingJob", _of_jobs()),
        ("InferenceService", _of_services()),
        ("Benchmark", _of_benchmarks()),
    ):
        longest: dict[str, Json] = {}
        for status in statuses:
            # A service has reasons instead of phases; a look that could not be finished says nothing.
            phase = status.get("phase") or status.get("reason")
            if phase and len(str(status)) > len(str(longest.get(phase, ""))):
                longest[phase] = status
        assert len(longest) > 3, f"{kind}: only {sorted(longest)}"
        found += [
            specs[kind] | {"metadata": {"name": f"phase-{phase.lower()}"}, "status": status}
            for phase, status in sorted(longest.items())
        ]
    return found


def _of_jobs() -> Iterator[Json]:
    for path in sorted((_CASES / "cases").glob("*.yaml")):
        given, _ = decide_cases.load(path)
        status = decide_training_job(decide_cases.observe(given), given.get("now", decide_cases.DEFAULT_NOW)).status
        yield status.document()


def _of_services() -> Iterator[Json]:
    for path in sorted((_CASES / "serving" / "cases").glob("*.yaml")):
        world = serving_cases.lived(serving_cases.load(path)[0])
        yield decide_inference_service(world.look(), world.now).status.document()


def _of_benchmarks() -> Iterator[Json]:
    for path in sorted((_CASES / "bench" / "cases").glob("*.yaml")):
        yield bench_cases.lived(bench_cases.load(path)[0]).decide().status.document()
