"""Runs that were made elsewhere: from a spec or a file to a trial's result; a bad line is refused by its number."""

import re
from pathlib import Path

import pytest

from capstan_runtime.bench.trial import result_key, run_trial
from capstan_runtime.bench.workloads.scaling_law import parse_runs
from capstan_runtime.contract.benchmark import BenchTask, TrialEnd, TrialResult
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import ConfigError

RUNS = [(1e6, 1e8, 3.5), (1e7, 1e8, 3.25), (1e6, 1e9, 3.0), (1e7, 1e9, 2.75), (1e8, 1e10, 2.5)]
CSV = "parameters,tokens,loss\n" + "".join(f"{size},{tokens},{loss}\n" for size, tokens, loss in RUNS)


def run(store: Path, work: dict[str, object]) -> tuple[int, TrialEnd, list[tuple[float, ...]] | None]:
    """The trial's exit code, its last words, and the runs it kept."""
    task = {
        "benchmark": "law",
        "namespace": "default",
        "uid": "u1",
        "seed": 0,
        "trial": {"trial": "t00", "seed": 0, "work": {"scalingLaw": work}, "deadlineSeconds": 60},
    }
    words = store.parent / "words"
    environ = {"CAPSTAN_STORE": str(store), "CAPSTAN_TERMINATION_LOG": str(words)}
    code = run_trial(BenchTask.parse(task), environ)
    kept = store / result_key("law", "u1", "t00", 1)
    runs = None
    if kept.exists():
        result = TrialResult.model_validate_json(kept.read_bytes())
        runs = list(zip(*(point.samples for point in result.points), strict=True))
    return code, TrialEnd.model_validate_json(words.read_bytes()), runs


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def test_points_of_the_spec_are_kept_as_the_trials_samples(store: Path) -> None:
    points = [dict(zip(("parameters", "tokens", "loss"), run, strict=True)) for run in RUNS]
    assert run(store, {"points": points}) == (
        ExitCode.OK,
        TrialEnd(is_ok=True, message="lowest_loss 2.5 nats and 2 more"),
        RUNS,
    )


def test_a_file_in_the_store_is_read(store: Path) -> None:
    (store / "runs").mkdir()
    (store / "runs/all.csv").write_text(CSV)
    code, _, runs = run(store, {"file": "runs/all.csv"})
    assert (code, runs) == (ExitCode.OK, RUNS)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("runs.csv", "workload.scalingLaw.file: runs.csv is not in {store}; put it there, or correct the path"),
        ("../words", "workload.scalingLaw.file: ../words leaves results.store; write its path below {store}"),
        ("/etc/passwd", "workload.scalingLaw.file: /etc/passwd leaves results.store; write its path below {store}"),
    ],
)
def test_a_file_that_is_not_in_the_store_is_refused_for_good(store: Path, file: str, message: str) -> None:
    code, end, runs = run(store, {"file": file})
    assert (code, runs) == (ExitCode.CONFIG, None)
    assert end == TrialEnd(is_ok=False, is_final=True, message=message.format(store=store))


def test_columns_may_be_in_any_order_among_others_and_comments_count_for_nothing() -> None:
    lines = ["# from our runs", "", "loss, name ,tokens,parameters"]
    lines += [f'{loss},"a, b",{tokens:.0f}, {size:.0f} ' for size, tokens, loss in RUNS]
    assert parse_runs("a.csv", lines) == RUNS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv is empty; begin it with the line parameters,tokens,loss"),
        (
            "parameters,loss\n1,2\n",
            "a.csv line 1: parameters,loss names tokens 0 times; the header names each of parameters, tokens, "
            "loss once",
        ),
        (
            "loss,tokens,parameters,loss\n",
            "a.csv line 1: loss,tokens,parameters,loss names loss 2 times; the header names each of parameters, "
            "tokens, loss once",
        ),
        (
            "parameters,tokens,loss\n1,2,3\n1,2,3\n",
            "a.csv has 2 runs, which determine no law; give 5 or more",
        ),
        (
            CSV + "# a comment\n1e6,1e8\n",
            "a.csv line 8: has 2 columns, and the header 3; make them as many",
        ),
        (CSV + "1e6,1e8,low\n", "a.csv line 7: loss 'low' is no number above 0; correct or remove the line"),
        (CSV + "0,1e8,3\n", "a.csv line 7: parameters '0' is no number above 0; correct or remove the line"),
        (CSV + "1e6,inf,3\n", "a.csv line 7: tokens 'inf' is no number above 0; correct or remove the line"),
        (CSV + "1e6,,3\n", "a.csv line 7: tokens '' is no number above 0; correct or remove the line"),
        (
            "parameters,tokens,loss\n" + "1,2,3\n" * 10_001,
            "a.csv has 10001 runs; give 10000 at most",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_refused_by_the_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^workload.scalingLaw.file: {re.escape(message)}$"):
        parse_runs("a.csv", text.splitlines())
