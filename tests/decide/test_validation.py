"""A bad spec is refused with one line per field: path, value, rule, fix."""

from __future__ import annotations

from typing import Any

import pytest

from capstan_operator.decide.blueprint import Blueprint, Refusal, read_blueprint
from capstan_operator.observe import OperatorSettings
from tests.support.looks import make_job


def problems(spec: dict[str, Any], **changes: Any) -> list[str]:
    read = read_blueprint(make_job(spec, **changes), OperatorSettings())
    assert isinstance(read, Refusal), "the spec was accepted"
    return list(read.problems)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"workers": {"max": 0}}, "spec.workers.max: 0 must be at least 1; raise it"),
        ({"workers": {"max": "2"}}, "spec.workers.max: '2' must be a whole number; write one without quotes"),
        ({"workers": {"gpus": 17}}, "spec.workers.gpus: 17 must be at most 16; lower it"),
        ({"workers": {"gpu": 2}}, "spec.workers.gpu: is no field of this version; did you mean gpus?"),
        ({"workerz": {"max": 2}}, "spec.workerz: is no field of this version; did you mean workers?"),
        (
            {"workers": {"resources": {"cpu": "two"}}},
            "spec.workers.resources.cpu: 'two' must match ^[0-9]+(\\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$; "
            "correct it",
        ),
        ({"suspend": "yes"}, "spec.suspend: 'yes' must be true or false; write it without quotes"),
        ({"model": {"mlp": {"hidden": []}}}, "spec.model.mlp.hidden: [] must have at least 1 entries; add some"),
        (
            {"model": {"mlp": {"hidden": [64, 0]}}},
            "spec.model.mlp.hidden[1]: 0 must be at least 1; raise it",
        ),
        (
            {"optimizer": {"sgd": {"learningRate": 1.0}}},
            "spec.optimizer: got adamw, sgd: set exactly one of adamw, sgd, sophia, adan, lion, adabelief, "
            "radam, diffgrad, yogi, novograd",
        ),
        (
            {"training": {"steps": None}},
            "spec.training: set exactly one of steps, epochs",
        ),
        (
            {"workers": {"max": 3}},
            "spec.training: globalBatchSize 64 is not a multiple of virtualRanks 3 (default: workers.max); "
            "choose 63 or 66",
        ),
        (
            {"workers": {"max": 2, "min": 4}},
            "spec.workers: min 4 is above max 2; lower min",
        ),
        (
            {"workers": {"resources": {"nvidia.com/gpu": "1"}}},
            "spec.workers.resources[nvidia.com/gpu]: 1 comes from workers.gpus; remove it and set workers.gpus",
        ),
        (
            {"workers": {"podPatch": {"spec": {"restartPolicy": "Always"}}}},
            "spec.workers.podPatch.spec.restartPolicy: is set by the operator, which relies on it; remove it",
        ),
        ({"checkpoint": {"store": None}}, "spec.checkpoint.store: is missing; add it"),
    ],
)
def test_a_mistake_is_explained(spec: dict[str, Any], line: str) -> None:
    assert problems(spec) == [line]


def test_an_unknown_field_far_from_any_other_is_answered_with_all_there_are() -> None:
    (line,) = problems({"checkpoint": {"zzz": 1}})
    rule = "is no field of this version; remove it, or use one of store, interval, retention, verify, sign"
    assert line == f"spec.checkpoint.zzz: {rule}"


def test_all_mistakes_are_named_at_once_and_sorted() -> None:
    lines = problems({"workers": {"max": 0}, "data": {"text": {"path": ""}}, "suspend": 1})
    assert [line.partition(":")[0] for line in lines] == [
        "spec.data.text.path",
        "spec.data.text.sequenceLength",
        "spec.suspend",
        "spec.workers.max",
    ]


def test_long_values_are_cut() -> None:
    (line,) = problems({"training": {"precision": "x" * 500}})
    assert len(line) < 150


@pytest.mark.parametrize("spec", [None, [], "text", 7])
def test_a_section_of_the_wrong_kind_is_refused_not_fatal(spec: Any) -> None:
    if spec is None:
        assert problems({"workers": spec}) == ["spec.workers: is missing; add it"]
    else:
        (line,) = problems({"workers": spec})
        assert line.endswith("must be an object; write key: value lines")


def test_what_follows_from_a_spec_is_computed_once() -> None:
    first = read_blueprint(make_job(), OperatorSettings())
    assert isinstance(first, Blueprint)
    assert read_blueprint(make_job(generation=2), OperatorSettings()) is first
    assert read_blueprint(make_job({"suspend": True}), OperatorSettings()) is not first
