"""`capstan bench report|compare|gate`: what they print, where they look, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from capstan_runtime.bench import cli
from capstan_runtime.bench.analysis.compare import DEFAULT_GATE
from capstan_runtime.bench.analysis.judged import judge_anew
from capstan_runtime.bench.reports import markdown
from capstan_runtime.bench.result import BenchmarkResult, Series
from capstan_runtime.contract.benchmark import Verdict
from tests.support import bench_maker, bench_results
from tests.support.bench_maker import CPU, GPU


def keep(result: BenchmarkResult, folder: Path) -> Path:
    """As a report pod keeps it."""
    path = folder / result.namespace / result.name / result.uid / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(result.model_dump_json(by_alias=True, exclude_none=True))
    return path


def measured(name: str, factor: float = 1.0, workload: str = "training") -> BenchmarkResult:
    """Ten runs of one metric, the same scatter each time, `factor` times as fast."""
    values = tuple(factor * (1000 + 3 * ((7 * at) % 10)) for at in range(10))
    series = Series(
        metric="samples_per_second",
        unit="samples/s",
        better="higher",
        arm="candidate",
        values=values,
        trials=tuple(f"t{at:02d}" for at in range(10)),
        is_headline=True,
    )
    control = tuple(0.01 + 1e-6 * at for at in range(10))
    result = bench_maker.Maker().result(workload, "1,000 samples/s", name=name, control_seconds=control)
    return result.model_copy(update={"series": (series,)})


def test_notes_on_a_comparison_go_with_it() -> None:
    candidate = measured("now").model_copy(update={"notes": ("of the runs",)})
    unlike = measured("then").model_copy(update={"spec": {"job": {"workers": {"max": 4}}}, "environments": (GPU,)})
    first = judge_anew(unlike, candidate.model_copy(update={"environments": (GPU,)}), DEFAULT_GATE)
    assert [note.partition(",")[0] for note in first.notes] == [
        "the baseline's spec is another one",
        "the baseline was kept",
        "of the runs",
    ]
    again = judge_anew(measured("then"), first.model_copy(update={"environments": (CPU,)}), DEFAULT_GATE)
    assert (again.verdict, again.notes) == ("Passed", ("of the runs",))


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments], {})


def test_a_report_is_printed_from_a_file_a_folder_or_one_above(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench_results.training()
    path = keep(result, tmp_path)
    for place in (path, path.parent, tmp_path, f"{tmp_path}/", f"file://{tmp_path}"):
        assert run("report", place) == 0
        assert capsys.readouterr().out == markdown(result)


def test_a_report_is_written_to_a_folder_that_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = keep(bench_results.training(), tmp_path / "kept")
    assert run("report", path, "--output", tmp_path / "new" / "report") == 0
    files = {file.name for file in (tmp_path / "new" / "report").iterdir()}
    assert files == {"result.json", "report.md", "report.html", "metrics.prom"}
    assert json.loads((tmp_path / "new/report/result.json").read_text()) == json.loads(path.read_text())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "report.html" in captured.err


@pytest.mark.parametrize(
    ("verdict", "code"),
    [("Passed", 0), ("Improved", 0), ("Regressed", 3), ("Inconclusive", 4)],
)
def test_a_gate_is_one_line_and_an_exit_code(
    verdict: Verdict, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench_results.training(verdict)
    assert run("gate", keep(result, tmp_path)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{verdict}: default/training-nightly: {result.reason}\n"


def test_a_gate_without_a_baseline_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("gate", keep(bench_results.scaling(), tmp_path)) == 1
    assert "was compared with nothing, so there is no verdict; set spec.baseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("factor", "verdict", "code"), [(0.8, "Regressed", 3), (1.0, "Passed", 0), (1.3, "Improved", 0)]
)
def test_two_kept_results_are_compared(
    factor: float, verdict: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then, now = keep(measured("then"), tmp_path), keep(measured("now", factor), tmp_path)
    assert run("compare", then, now, "--output", tmp_path / "out") == code
    captured = capsys.readouterr()
    assert captured.out.startswith(f"# {verdict}: default/now\n")
    assert "Baseline: what Benchmark then found." in captured.out
    assert captured.err.splitlines()[-1].startswith(f"{verdict}: default/now: ")
    assert run("gate", tmp_path / "out") == code


def test_a_difference_below_the_minimum_is_none(tmp_path: Path) -> None:
    then, now = keep(measured("then"), tmp_path), keep(measured("now", 0.8), tmp_path)
    assert run("compare", then, now, "--minimum-effect-percent", "30") == 0


def test_unlike_machines_are_inconclusive_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = measured("now").model_copy(update={"environments": (GPU,)})
    assert CPU.fingerprint != GPU.fingerprint
    assert run("compare", keep(measured("then"), tmp_path), keep(other, tmp_path)) == 4
    assert "unlike hardware is not compared: gpus none and NVIDIA H100" in capsys.readouterr().err


def test_results_of_two_workloads_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then, now = keep(measured("then"), tmp_path), keep(measured("now", workload="inference"), tmp_path)
    assert run("compare", then, now) == 1
    assert capsys.readouterr().err == (
        "capstan bench: BASELINE measured workload training, and CANDIDATE inference; choose two of one workload\n"
    )


def test_a_place_that_is_not_there_or_holds_several_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("gate", tmp_path / "nowhere") == 2
    assert run("gate", tmp_path) == 2
    assert run("gate", tmp_path / "result.json") == 2
    assert run("gate", "ftp://host/x") == 2
    keep(measured("a"), tmp_path)
    keep(measured("b"), tmp_path)
    assert run("gate", tmp_path) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert errors[-1].startswith(f"capstan bench: RESULT: there are 2 results below {tmp_path} (default/a/")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no result.json of a Benchmark"),
        ("[]", "is no result.json of a Benchmark"),
        ('{"schemaVersion": 99}', "has schemaVersion 99, and 1 is the newest known here"),
        ('{"schemaVersion": 1, "name": "x"}', "is no result.json of a Benchmark"),
    ],
)
def test_a_file_that_is_no_result_says_why(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text(text)
    assert run("report", tmp_path) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_file_that_holds_no_result_is_not_called_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("# Words\n")
    for name, said in (("README.md", "is no folder"), ("nothing", "is not there")):
        assert run("report", tmp_path / name) == 2
        assert f"{tmp_path / name} {said}; give a result.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--confidence", "1"],
        ["--confidence", "x"],
        ["--minimum-effect-percent", "0"],
        ["--minimum-effect-percent", "nan"],
    ],
)
def test_a_gate_that_cannot_be_is_wrong_usage(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run("compare", "a", "b", *options)
    assert caught.value.code == 2


def test_the_operators_command_hands_over_and_returns_the_exit_code(tmp_path: Path) -> None:
    path = keep(bench_results.training("Regressed"), tmp_path)
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from capstan_operator.cli import main; raise SystemExit(main())",
            "bench",
            "gate",
            str(path),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith("Regressed: default/training-nightly: ")
