"""Reports of results of every workload: all of it is there, nothing a user wrote is markup, Prometheus takes it."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from prometheus_client.parser import text_string_to_metric_families

from capstan_runtime.bench.reports import markdown, write_reports
from capstan_runtime.bench.reports.html import page
from capstan_runtime.bench.reports.prometheus import exposition
from capstan_runtime.bench.reports.sections import sections
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract import words
from tests.support import bench_maker, bench_results
from tests.support.bench_edges import EDGES, HOSTILE
from tests.support.bench_results import RESULTS


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


@settings(max_examples=200)
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
    make = bench_maker.Maker()
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
    assert set(written[0]) == {"report.md", "report.html", "metrics.prom"}


ALL = {**RESULTS, **EDGES}
VOID = {"meta", "br"}


@cache
def page_of(name: str) -> str:
    return page(ALL[name]())


class Reader(HTMLParser):
    """What a browser would see: elements with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", ALL)
def test_a_page_is_whole_needs_nothing_and_runs_nothing(name: str) -> None:
    text = page_of(name)
    reader = Reader(text)
    assert reader.open == []
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "image", "form", "base", "a"}
    for _, attributes in reader.elements:
        assert "style" not in attributes
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "xlink:href", "srcset")]
        assert (attributes.get("href") or "#").startswith("#")
    identities = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    referred = re.findall(r'(?:url\(#|href="#)([^")]+)', text)
    assert set(referred) <= set(identities)
    assert len(text) < 400_000


@pytest.mark.parametrize("name", ALL)
def test_the_policy_of_a_page_allows_its_own_style_and_nothing_else(name: str) -> None:
    text = page_of(name)
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policies = [one.get("content") for _, one in Reader(text).elements if "http-equiv" in one]
    assert policies == [f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"]
    assert "url(" not in style[1]


@pytest.mark.parametrize("name", ALL)
def test_a_page_shows_every_figure_as_text_and_names_every_plot(name: str) -> None:
    result, reader = ALL[name](), Reader(page_of(name))
    shown = " ".join(reader.text)
    for figure in result.figures:
        assert words.quantity(figure.median, figure.unit) in shown
    plots = [attributes for tag, attributes in reader.elements if tag == "svg"]
    for attributes in plots:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"] or "") > 20


def test_step_times_are_said_to_be_means_and_only_they() -> None:
    said = {name: "mean over training.logEverySteps steps" in markdown(made()) for name, made in RESULTS.items()}
    has_steps = {
        name: any(one.metric == "step_seconds" for one in made().distributions) for name, made in RESULTS.items()
    }
    assert said == has_steps
    assert set(said.values()) == {False, True}


def test_every_workload_has_plots() -> None:
    assert {name: page_of(name).count("<svg") > 0 for name in RESULTS} == dict.fromkeys(RESULTS, True)


def test_what_a_user_wrote_is_text_and_never_html() -> None:
    shown = " ".join("".join(Reader(page_of("hostile")).text).split())
    assert shown.count("<script>alert(1)</script> **bold** [here](http://x.example) | `code` _it_ \\ $x^2$ # head") >= 9


def test_colours_are_variables_of_the_page_so_that_they_follow_light_and_dark() -> None:
    for name in ALL:
        svgs = "".join(re.findall(r"<svg.*?</svg>", page_of(name), re.S))
        assert re.findall(r'(?:fill|stroke)="#[0-9a-f]+"', svgs) == []


def test_another_process_makes_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(bench_results.scaling().model_dump_json())
    program = (
        "import sys, pathlib; from capstan_runtime.bench.result import BenchmarkResult;"
        "from capstan_runtime.bench.reports.html import page;"
        "text = page(BenchmarkResult.model_validate_json(pathlib.Path(sys.argv[1]).read_text()));"
        "sys.stdout.buffer.write(text.encode())"
    )
    made = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "result.json")], capture_output=True, check=True, timeout=120
    )
    assert made.stdout.decode() == page_of("scaling")


@pytest.mark.parametrize(
    ("runs", "column", "held"),
    [
        (1, "interval", ""),
        (2, "interval", "50"),
        (3, "interval", "75"),
        (5, "interval", "93.8"),
        (6, "95 % interval", ""),
    ],
)
def test_an_interval_of_few_runs_is_not_called_what_it_cannot_be(runs: int, column: str, held: str) -> None:
    figure = RESULTS["training"]().figures[0].model_copy(update={"n": runs})
    result = RESULTS["training"]().model_copy(update={"figures": (figure,), "comparisons": ()})
    (section,) = (one for one in sections(result) if one.key == "figures")
    assert column in section.tables[0].columns
    told = [
        f"n = {runs}: the interval is from smallest to largest run; it holds the true median in {held} % of cases"
    ] * bool(held)
    assert list(section.items) == told
    assert all(sentence in markdown(result) for sentence in told)
