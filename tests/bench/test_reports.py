"""Reports of results of every workload: all of it is there, nothing a user wrote is markup, Prometheus takes it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from prometheus_client.parser import text_string_to_metric_families

from capstan_runtime.bench import words
from capstan_runtime.bench.reports import markdown, write_reports
from capstan_runtime.bench.reports.prometheus import exposition
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.checkpoint.folder_store import FolderStore
from tests.support import bench_results
from tests.support.bench_results import RESULTS

HOSTILE = "<script>alert(1)</script> **bold** [here](http://x.example) | `code` _it_ \\ \n# head\x1b[31m"


@pytest.mark.parametrize("workload", RESULTS)
def test_markdown_begins_with_the_verdict_and_names_every_figure(workload: str) -> None:
    result = RESULTS[workload]()
    text = markdown(result)
    assert text.splitlines()[0] == f"# {result.verdict or 'Measured'}: default/{result.name}"
    for figure in result.figures:
        assert words.quantity(figure.median, figure.unit) in text
    for note in result.notes:
        assert note in text


@pytest.mark.parametrize("workload", RESULTS)
def test_every_line_of_a_table_is_as_long_as_the_others(workload: str) -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", markdown(RESULTS[workload]()), re.M)
    assert tables
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1


MARKS = st.text(alphabet="ab1 \\`*_[]()<>|~#+-=.!&;:x\n\t", min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(
    (st.text() | MARKS | st.just(HOSTILE)).filter(lambda text: any(one.isprintable() and one != " " for one in text))
)
def test_what_a_user_wrote_is_text_and_never_markdown(written: str) -> None:
    result = bench_results.control_plane().model_copy(update={"notes": (written,), "reason": written})
    shown = MarkdownIt("gfm-like", {"linkify": False}).render(markdown(result))
    reason, note = shown.split("</h1>")[1].split("</p>")[0], shown.split("<li>")[-1].split("</li>")[0]
    plain = "".join(letter if letter.isprintable() else " " for letter in written)
    for place in (reason.removeprefix("\n<p>"), note):
        assert " ".join(html.unescape(place).split()) == " ".join(plain.split())


@pytest.mark.parametrize("workload", RESULTS)
def test_prometheus_reads_back_every_figure_in_base_units(workload: str) -> None:
    result = RESULTS[workload]()
    families = {family.name: family for family in text_string_to_metric_families(exposition(result))}
    for figure in result.figures:
        samples = families[f"capstan_benchmark_{figure.metric}"].samples
        assert figure.median in [sample.value for sample in samples if sample.labels["statistic"] == "median"]
    assert all(sample.timestamp is None for family in families.values() for sample in family.samples)
    verdicts = {sample.labels["verdict"]: sample.value for sample in families["capstan_benchmark_verdict"].samples}
    assert verdicts == {name: float(name == result.verdict) for name in verdicts}
    assert len(verdicts) == 4


def test_labels_of_a_case_cannot_pass_for_those_of_the_benchmark() -> None:
    make = bench_results.Maker()
    make.measure("steps_per_second", "steps/s", "higher", 3.0, {"namespace": "other", "batchSize": "1", "0": HOSTILE})
    families = {
        family.name: family
        for family in text_string_to_metric_families(exposition(make.result("training", "3 steps/s")))
    }
    first = families["capstan_benchmark_steps_per_second"].samples[0]
    assert first.labels == {
        "namespace": "default",
        "benchmark": "training-nightly",
        "workload": "training",
        "statistic": "median",
        "case_namespace": "other",
        "batch_size": "1",
        "case_0": HOSTILE,
    }


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for folder in ("a", "b"):
        result = BenchmarkResult.model_validate_json(bench_results.training().model_dump_json())
        write_reports(result, FolderStore(tmp_path / folder), "train/uid")
        written.append({path.name: path.read_bytes() for path in (tmp_path / folder / "train/uid").iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) >= {"report.md", "metrics.prom"}
