"""The demo of Benchmarks: a row for every status, and a report that is kept without the machine's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench
import pytest

from capstan_runtime.bench.result import BenchmarkResult
from tests.support.bench_results import RESULTS

NOTHING_DONE = "░" * 16


@pytest.mark.parametrize(
    ("status", "cells"),
    [
        ({}, ("Pending", NOTHING_DONE, "", "7", "")),
        (
            {"phase": "Pending", "message": "the spec is valid"},
            ("Pending", NOTHING_DONE, "", "7", "the spec is valid"),
        ),
        (
            {
                "phase": "Running",
                "progress": {"done": 5, "total": 10, "summary": "5/10"},
                "running": {"trial": "t05", "case": "batchSize=32"},
            },
            ("Running", "█" * 8 + "░" * 8, "5/10", "7", "t05 batchSize=32"),
        ),
        (
            {
                "phase": "Succeeded",
                "progress": {"done": 1, "total": 1, "summary": "1/1"},
                "verdict": "Passed",
                "result": "1,204 samples/s",
            },
            ("Succeeded", "█" * 16, "1/1", "7", "Passed 1,204 samples/s"),
        ),
    ],
)
def test_a_row_for_every_status(status: dict[str, Any], cells: tuple[str, ...]) -> None:
    benchmark = {"spec": {"workload": {"training": {}}}, "status": status}
    assert bench.row("b", benchmark, 7.4) == ("b", "training", *cells)


def test_a_report_is_kept_without_the_machines_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "EXAMPLES", tmp_path)
    (tmp_path / "bench-it").mkdir()
    result = RESULTS["training"]()
    named = [one.model_copy(update={"node": "my-own-laptop"}) for one in result.environments]
    result = result.model_copy(update={"environments": tuple(named)})
    (tmp_path / "result.json").write_text(result.model_dump_json(by_alias=True))
    bench.keep(bench.Ended("it", "bench-it", {}, tmp_path, 1.0))
    kept = {path.name: path.read_text() for path in (tmp_path / "bench-it" / "report").iterdir()}
    assert kept.keys() == {"report.html", "report.md", "result.json"}
    assert [name for name, text in kept.items() if "my-own-laptop" in text] == []
    assert BenchmarkResult.model_validate_json(kept["result.json"]).series == result.series


KEPT = sorted(Path("examples").glob("bench-*/report/result.json"))


@pytest.mark.parametrize("path", KEPT, ids=str)
def test_a_report_that_was_kept_can_be_read_and_names_no_machine(path: Path) -> None:
    result = BenchmarkResult.model_validate_json(path.read_bytes())
    assert path.parts[1] == {"after": "bench-regression"}.get(result.name, result.name)
    assert {one.node for one in result.environments} == {""}
    sizes = {file.name: file.stat().st_size for file in path.parent.iterdir()}
    assert sizes.keys() == {"report.html", "report.md", "result.json"}
    assert max(sizes.values()) < bench.LARGEST_REPORT


def ended_with(verdict: str | None) -> bench.Ended:
    status = {"verdict": verdict, "verdictReason": "why"} if verdict else {}
    return bench.Ended("after", "bench-regression", {"status": status}, Path(), 1.0)


@pytest.mark.parametrize("verdict", ["Passed", "Improved", None])
def test_a_verdict_that_is_wrong_or_missing_fails_the_demo(verdict: str | None) -> None:
    with pytest.raises(bench.ExampleFailed, match=f"after is called {verdict} and not Regressed"):
        bench.judge([ended_with(verdict)])


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("Regressed", ""),
        (
            "Inconclusive",
            "    after is Inconclusive: this machine is too noisy now to see that it is Regressed: why\n",
        ),
    ],
)
def test_a_machine_too_noisy_to_tell_is_said_and_no_failure(
    verdict: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.judge([ended_with(verdict)])
    assert capsys.readouterr().out == said
