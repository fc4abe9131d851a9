"""What is varied: the cases of a workload, and the TrainingJob that measures one of them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.store import Store

SELDOM = 2**31 - 1
"""Seconds between two saves: none but that at the end."""
MOST_SEED = 2**31


@dataclass(frozen=True)
class Case:
    """One point of what is varied."""

    labels: tuple[tuple[str, str], ...] = ()
    changes_json: str = "{}"
    """Of spec.job, as a JSON merge patch; of a case that is no TrainingJob: none."""

    @cached_property
    def text(self) -> str:
        """`batchSize=32`; empty: nothing is varied."""
        return case_text(dict(self.labels))


def case_text(labels: dict[str, str]) -> str:
    """How a case is told: `workers=2, mode=strong`."""
    return ", ".join(f"{name}={value}" for name, value in labels.items())


def cases_of(spec: BenchmarkSpec) -> tuple[Case, ...]:
    """All cases of a workload, in the order of its spec; never empty."""
    kinds: dict[str, Callable[[BenchmarkSpec], Iterator[Case]]] = {
        "training": _batch_sizes,
        "scaling": _sizes,
        "scalingLaw": _grid,
    }
    found = kinds.get(spec.workload.kind)
    return tuple(dict.fromkeys(found(spec))) if found else (Case(),)


def job_spec(arm: BenchmarkSpec, case: Case, repetition: int, store: Store) -> dict[str, Any]:
    """The spec of the TrainingJob that measures `case` of `arm`. It keeps its records in `store`, that of the results.

    The numbers of workers is fixed, and nothing runs beside the trainer: a spare's imports would be measured, too.
    """
    assert arm.job is not None
    job = _merged(arm.job.document(), json.loads(case.changes_json))
    job["workers"].pop("min", None)
    if arm.workload.kind == "scalingLaw":
        # Each repetition is another draw: initial weights and order of the data.
        job["training"]["seed"] = (job["training"].get("seed", 0) + repetition) % MOST_SEED
    return job | {
        "checkpoint": {"store": store.document(), "interval": {"seconds": SELDOM}},
        "recovery": {"warmSpare": False, "memoryTier": False},
        "recordSteps": True,
    }


def _batch_sizes(spec: BenchmarkSpec) -> Iterator[Case]:
    assert spec.workload.training is not None
    for size in spec.workload.training.batch_sizes:
        yield _case({"batchSize": str(size)}, {"training": {"globalBatchSize": size}})
    if not spec.workload.training.batch_sizes:
        yield Case()


def _sizes(spec: BenchmarkSpec) -> Iterator[Case]:
    scaling, job = spec.workload.scaling, spec.job
    assert scaling is not None
    assert job is not None
    batch = job.training.global_batch_size
    modes = [mode for mode, is_wanted in (("strong", scaling.strong), ("weak", scaling.weak)) if is_wanted]
    for workers in scaling.workers:
        # One worker is the same job in either mode: it is run once, and is the base of both.
        for mode in modes if workers > 1 else modes[:1]:
            size = batch * workers if mode == "weak" else batch
            yield _case(
                {"workers": str(workers), "mode": mode},
                {"workers": {"max": workers}, "training": {"globalBatchSize": size, "virtualRanks": workers}},
            )


def _grid(spec: BenchmarkSpec) -> Iterator[Case]:
    grid = spec.workload.scaling_law.grid if spec.workload.scaling_law else None
    if grid is None:
        yield Case()
        return
    for model in grid.models:
        for steps in grid.steps:
            yield _case(
                {"model": model.name, "steps": str(steps)},
                # None of the keys of the job's own model may stay beside the one that takes its place.
                {"model": _only(model.architecture.document()), "training": {"steps": steps, "epochs": None}},
            )


def _only(document: dict[str, Any]) -> dict[str, Any]:
    return {"$replace": document}


def _case(labels: dict[str, str], changes: dict[str, Any]) -> Case:
    return Case(tuple(labels.items()), json.dumps(changes, sort_keys=True))


def _merged(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`document` with `changes` merged in: None removes, `$replace` takes the place of all there was."""
    merged = dict(document)
    for name, value in changes.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and "$replace" in value:
            merged[name] = value["$replace"]
        elif isinstance(value, dict):
            merged[name] = _merged(merged.get(name) or {}, value)
        else:
            merged[name] = value
    return merged
