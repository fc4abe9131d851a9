"""Benchmarks to try things with: smallest specs, and what their pods say at the end."""

from __future__ import annotations

from typing import Any

from capstan_runtime.contract.benchmark import Environment, Figure, Summary, TrialEnd
from tests.support.looks import make_job

Document = dict[str, Any]
STORE: Document = {"claim": {"name": "results"}}
ROOFLINE: Document = {"roofline": {"runtime": "torch"}}
MACHINE = Environment(cpu="a CPU", cores=2, memory_bytes=2**30, kernel="6.1", python="3.11.9")


def spec_of(workload: Document | None = None, **more: Any) -> Document:
    """Of a Benchmark with two repetitions."""
    return {"workload": workload or ROOFLINE, "repetitions": 2, "results": {"store": STORE}} | more


def job_of(**training: Any) -> Document:
    """`spec.job`: what a TrainingJob's spec says of the run itself."""
    spec = make_job().spec
    fields = ("framework", "model", "data", "optimizer", "schedule", "training", "workers")
    run: Document = {field: dict(spec[field]) for field in fields}
    run["training"] = run["training"] | training
    return run


def trial_end(message: str = "measured", *, is_ok: bool = True, is_final: bool = False) -> str:
    """Last words of a trial's pod."""
    return TrialEnd(is_ok=is_ok, message=message, is_final=is_final).model_dump_json(by_alias=True)


def summary(verdict: str | None = None, headline: str = "100 samples/s ±1 %") -> str:
    """Last words of a report's pod."""
    figure = Figure(
        metric="samples_per_second", unit="samples/s", better="higher", n=2, median=100.0, low=99.0, high=101.0
    )
    told = Summary.model_validate(
        {
            "headline": headline,
            "verdict": verdict,
            "reason": "slower by 12 %" if verdict == "Regressed" else "measured",
            "figures": (figure,),
            "environment": MACHINE,
            "fingerprint": MACHINE.fingerprint,
            "result_digest": "blake3:" + "0" * 64,
            "place": "bench/uid",
        }
    )
    return told.model_dump_json(by_alias=True, exclude_none=True)
