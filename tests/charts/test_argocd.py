"""What Argo CD makes of our objects, by the Lua that it runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.argocd import health_of

UNSEEN = {"status": "Progressing", "message": "the operator has not seen this version yet"}


def health(kind: str, status: dict[str, Any], *, spec: dict[str, Any] | None = None, **annotations: str) -> str:
    """The word that Argo CD shows for an object of generation 2. The script comes out of the ConfigMap."""
    return _answer(kind, {"observedGeneration": 2, **status}, spec or {}, annotations)["status"]


def _answer(
    kind: str, status: dict[str, Any] | None, spec: dict[str, Any], annotations: dict[str, str]
) -> dict[str, str]:
    metadata = {"name": "it", "generation": 2, **({"annotations": annotations} if annotations else {})}
    document = {"kind": kind, "metadata": metadata, "spec": spec}
    return health_of(document | ({"status": status} if status is not None else {}))


@pytest.mark.parametrize("kind", ["TrainingJob", "InferenceService", "Benchmark"])
@pytest.mark.parametrize("status", [None, {}, {"observedGeneration": 1, "phase": "Succeeded"}])
def test_what_the_operator_has_not_seen_is_progressing(kind: str, status: dict[str, Any] | None) -> None:
    assert _answer(kind, status, {}, {}) == UNSEEN


@pytest.mark.parametrize(
    ("phase", "word"),
    [
        ("Pending", "Progressing"),
        ("Starting", "Progressing"),
        ("Running", "Healthy"),
        ("Restarting", "Progressing"),
        ("Suspending", "Progressing"),
        ("Suspended", "Suspended"),
        ("Succeeded", "Healthy"),
        ("Failed", "Degraded"),
        ("Invalid", "Degraded"),
    ],
)
def test_a_training_job_is_healthy_while_it_runs_and_once_it_has_succeeded(phase: str, word: str) -> None:
    assert health("TrainingJob", {"phase": phase}) == word


def test_a_sync_wave_can_wait_for_the_end_of_a_training_job() -> None:
    wait = {"capstan.dev/argocd-healthy": "Succeeded"}
    words = [health("TrainingJob", {"phase": phase}, **wait) for phase in ("Running", "Succeeded", "Failed")]
    assert words == ["Progressing", "Healthy", "Degraded"]


def _conditions(reason: str | None = None, **status: str) -> dict[str, Any]:
    return {"reason": reason, "conditions": [{"type": name, "status": value} for name, value in status.items()]}


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (_conditions(Accepted="True", Serving="True", UpToDate="True"), "Healthy"),
        (_conditions(Accepted="True", Serving="True", UpToDate="False", Progressing="True"), "Progressing"),
        (_conditions(Accepted="True", Serving="True", UpToDate="False", RolledBack="True"), "Degraded"),
        (_conditions(Accepted="False"), "Degraded"),
        (_conditions(Accepted="True", Serving="False", UpToDate="False", Progressing="True"), "Progressing"),
        (_conditions(Accepted="True", Serving="False", UpToDate="False", Progressing="False"), "Degraded"),
        (_conditions(Accepted="True"), "Progressing"),
        (
            _conditions(Accepted="True", Serving="False", Progressing="False", reason="TrainingJobNotDone"),
            "Progressing",
        ),
    ],
)
def test_an_inference_service_is_healthy_once_all_traffic_goes_to_what_was_asked_for(
    status: dict[str, Any], word: str
) -> None:
    assert health("InferenceService", status) == word


@pytest.mark.parametrize(
    ("verdict", "without_gate", "with_gate"),
    [
        ("Passed", "Healthy", "Healthy"),
        ("Improved", "Healthy", "Healthy"),
        ("Regressed", "Healthy", "Degraded"),
        ("Inconclusive", "Healthy", "Degraded"),
    ],
)
def test_a_gate_that_is_not_passed_stops_the_next_wave(verdict: str, without_gate: str, with_gate: str) -> None:
    status = {"phase": "Succeeded", "verdict": verdict}
    words = [health("Benchmark", status), health("Benchmark", status, spec={"gate": {"confidence": 0.95}})]
    assert words == [without_gate, with_gate]


@pytest.mark.parametrize(
    ("phase", "word"),
    [("Pending", "Progressing"), ("Running", "Progressing"), ("Reporting", "Progressing"), ("Failed", "Degraded")],
)
def test_a_benchmark_that_is_not_done_is_progressing_or_degraded(phase: str, word: str) -> None:
    assert health("Benchmark", {"phase": phase}) == word
