"""What rungs say: figures, headlines, notes, and locust's file, from rungs that are made up."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.bench.load.figures import highest_kept_rate, load_notes, load_points
from capstan_runtime.bench.load.ladder import Rung
from capstan_runtime.bench.load.locust import locust_stats
from capstan_runtime.bench.measured import percentile
from capstan_runtime.contract.judged import JUDGED, OF_AN_OBJECTIVE
from capstan_runtime.contract.workloads import Load, ServiceLevel

INF = math.inf
ASK = {"name": "ask", "path": "/ask", "method": "POST"}
LOOK = {"name": "look", "path": "/look", "method": "GET", "weight": 3}


def rung_of(rate: float, latency: Sequence[float], **fields: Any) -> Rung:
    """Requests of one second, evenly due."""
    failed = sum(math.isinf(each) for each in latency)
    return Rung(
        **{
            "rate": rate,
            "duration": 1.0,
            "due": np.arange(len(latency)) / max(1, len(latency)),
            "latency": np.array(latency, np.float64),
            "kinds": np.zeros(len(latency), np.uint8),
            "failures": {(0, "status 503"): failed} if failed else {},
            "body_bytes": {0: 8 * len(latency)},
            "lag_p99": 0.0001,
            "cpu_share": 0.1,
        }
        | fields
    )


def load_of(*rates: float, scenario: Sequence[dict[str, Any]] = (ASK,), **fields: Any) -> Load:
    return Load.model_validate({"rates": rates, "scenario": list(scenario), **fields})


def test_a_rung_becomes_points_of_its_rate() -> None:
    load = load_of(4.0, timeout_seconds=2.0)
    points = load_points(load, [rung_of(4.0, [0.1, 0.3, INF, 0.5])])
    found = {point.metric: (point.value, point.unit, point.better, point.is_headline) for point in points}
    assert found == {
        # Due at 0, 0.25, 0.5 and 0.75 s: the last one is answered at 1.25 s, when the second was over.
        "requests_per_second": (2.0, "requests/s", "higher", True),
        "latency_p50_seconds": (0.3, "s", "lower", True),
        "error_ratio": (0.25, "failed/request", "lower", False),
        "generator_lag_p99_seconds": (0.0001, "s", "neither", False),
        "generator_cpu_ratio": (0.1, "cores", "neither", False),
    }
    assert {tuple(point.labels.items()) for point in points} == {(("rate", "4"),)}
    assert [point.samples for point in points if point.samples] == [(0.1, 0.3, INF, 0.5)]


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, []),
        (1, ["p50"]),
        (9, ["p50"]),
        (10, ["p50", "p90"]),
        (99, ["p50", "p90"]),
        (100, ["p50", "p90", "p99"]),
        (999, ["p50", "p90", "p99"]),
        (1000, ["p50", "p90", "p99", "p999"]),
    ],
)
def test_percentiles_are_told_as_far_as_there_are_requests(count: int, told: list[str]) -> None:
    points = load_points(load_of(4.0), [rung_of(4.0, [0.1] * count)])
    latencies = [point.metric for point in points if point.metric.startswith("latency_")]
    assert latencies == [f"latency_{name}_seconds" for name in told]


def test_kinds_of_requests_have_figures_of_their_own() -> None:
    load = load_of(4.0, scenario=(ASK, LOOK), timeout_seconds=2.0)
    rung = rung_of(4.0, [0.1, 0.2, INF, 0.4], kinds=np.array([0, 1, 1, 1], np.uint8), failures={(1, "status 503"): 1})
    found = {
        (point.metric, point.labels["request"]): point.value
        for point in load_points(load, [rung])
        if "request" in point.labels
    }
    assert found == {
        ("requests", "ask"): 1.0,
        ("latency_p50_seconds", "ask"): 0.1,
        ("error_ratio", "ask"): 0.0,
        ("requests", "look"): 3.0,
        ("latency_p50_seconds", "look"): 0.4,
        ("error_ratio", "look"): pytest.approx(1 / 3),
    }


@pytest.mark.parametrize(
    ("rungs", "kept"),
    [
        ([rung_of(10, [0.01] * 100), rung_of(20, [0.01] * 100)], 20.0),
        ([rung_of(20, [0.01] * 98 + [0.9] * 2), rung_of(10, [0.01] * 99 + [0.9])], 10.0),
        ([rung_of(10, [0.01] * 100), rung_of(20, [0.9] * 100), rung_of(30, [0.01] * 100)], 10.0),
        ([rung_of(10, [0.01] * 199 + [INF])], 0.0),
        ([rung_of(10, [0.01] * 999 + [INF])], 10.0),
        ([rung_of(10, [])], 0.0),
    ],
    ids=["all", "p99 in any order", "none above one that fails", "errors", "few errors", "nothing was asked"],
)
def test_the_highest_rate_that_keeps_the_objective_is_found(rungs: list[Rung], kept: float) -> None:
    assert highest_kept_rate(rungs, ServiceLevel(p99_milliseconds=100, error_percent=0.1)) == kept


def test_with_an_objective_the_rate_that_keeps_it_is_the_headline_and_goodput_is_told() -> None:
    load = load_of(2.0, 4.0, objective={"p99_milliseconds": 200})
    points = load_points(load, [rung_of(2.0, [0.1, 0.2]), rung_of(4.0, [0.1, 0.3, 0.1, 0.1])])
    assert [(point.metric, point.labels, point.value) for point in points if point.is_headline] == [
        ("sustained_requests_per_second", {}, 2.0),
        ("latency_p50_seconds", {"rate": "2"}, 0.1),
    ]
    goodput = [point.value for point in points if point.metric == "goodput_requests_per_second"]
    assert goodput == [2.0, 3.0]


def test_what_is_measured_and_can_be_judged_is_known_before() -> None:
    rung = rung_of(4.0, [0.1] * 1000)
    judged, without = (
        {point.metric for point in load_points(load_of(4.0, **more), [rung]) if point.better != "neither"}
        for more in ({"objective": {"p99_milliseconds": 200}}, {})
    )
    assert (judged, judged - without) == (set(JUDGED["serving"]), set(OF_AN_OBJECTIVE))


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        ({}, None),
        ({"lag_p99": 0.0042}, {"requests_per_second", "requests"}),
        ({"cpu_share": 0.93}, {"requests"}),
    ],
)
def test_figures_that_the_generator_limited_are_withdrawn(limit: dict[str, float], kept: set[str] | None) -> None:
    load = load_of(2.0, scenario=(ASK, LOOK))
    rung = rung_of(2.0, [0.1, 0.2], **limit)
    points = [point for point in load_points(load, [rung]) if not point.metric.startswith("generator_")]
    metrics = {point.metric for point in points}
    assert {point.metric for point in points if not point.is_withdrawn} == (metrics if kept is None else kept)
    assert [point.metric for point in points if point.is_headline] == ["requests_per_second", "latency_p50_seconds"]


def test_a_ladder_that_ends_where_the_generator_was_in_the_way_says_nothing_of_the_service() -> None:
    load = load_of(2.0, 4.0, objective={"p99_milliseconds": 200})
    rungs = [rung_of(2.0, [0.1, 0.2], lag_p99=0.05), rung_of(4.0, [0.3, 0.3], lag_p99=0.15)]
    sustained = next(point for point in load_points(load, rungs) if point.metric == "sustained_requests_per_second")
    assert (sustained.value, sustained.is_headline, sustained.is_withdrawn) == (2.0, True, True)
    assert load_notes(load, rungs)[-1] == (
        "the first rate that misses the objective is one of those: the service may keep up with more"
    )


def test_where_the_generator_was_in_the_way_is_told_once_for_all_rates() -> None:
    rungs = [rung_of(rate, [0.1], lag_p99=lag) for rate, lag in ((2.0, 0.0042), (4.0, 0.0009), (8.0, 0.012))]
    rungs.append(rung_of(16.0, [0.1], lag_p99=0.5, cpu_share=0.93))
    assert load_notes(load_of(2.0, 4.0, 8.0, 16.0), rungs) == [
        "at 16 requests/s the generator was the bottleneck: it used up to 0.93 of a core (limit 0.7); no figure there "
        "is judged",
        "at 2, 8 requests/s the generator was kept waiting for a core: up to 12.0 ms behind its schedule at p99 (limit "
        "1 ms); latencies there hold its delay and are not judged",
    ]


def test_failures_are_told_with_what_happened() -> None:
    load = load_of(4.0, timeout_seconds=2.0, scenario=(ASK, LOOK))
    rung = rung_of(4.0, [0.1, INF, INF, INF], failures={(0, "status 503"): 1, (1, "status 503"): 1, (1, "refused"): 1})
    assert load_notes(load, [rung]) == [
        "at 4 requests/s 3 of 4 requests failed (2 status 503, 1 refused); each counts as a latency without end"
    ]


@given(
    values=st.lists(st.floats(0, 100) | st.just(INF), min_size=1, max_size=300),
    share=st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]),
)
def test_a_percentile_was_seen_and_enough_are_not_above_it(values: list[float], share: float) -> None:
    found = percentile(np.sort(values), share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    below = [value for value in values if value < found]
    assert len(below) < max(1, share * len(values)), "and no smaller one would do"


def test_locusts_file_holds_its_columns_and_a_row_for_each_kind() -> None:
    load = load_of(4.0, scenario=(ASK, LOOK))
    rung = rung_of(
        4.0,
        [0.1, 0.2, INF, 0.4],
        kinds=np.array([0, 1, 1, 1], np.uint8),
        failures={(1, "status 503"): 1},
        body_bytes={0: 10, 1: 30},
    )
    rows = list(csv.reader(io.StringIO(locust_stats(rung, load.scenario, 2.0))))
    # As `locust --csv` of 2.x writes it.
    columns = (
        "Type,Name,Request Count,Failure Count,Median Response Time,Average Response Time,Min Response Time,"
        "Max Response Time,Average Content Size,Requests/s,Failures/s,50%,66%,75%,80%,90%,95%,98%,99%,99.9%,99.99%,100%"
    )
    assert ",".join(rows[0]) == columns
    assert rows[1:] == [
        ["POST", "ask", "1", "0", "100", "100.0", "100.0", "100.0", "10.0", "1.0", "0.0", *["100"] * 11],
        [
            *("GET", "look", "3", "1", "400", "866.6666666666666", "200.0", "2000.0", "10.0", "3.0", "1.0"),
            *("400", "400", *["2000"] * 9),
        ],
        [
            *("", "Aggregated", "4", "1", "200", "675.0", "100.0", "2000.0", "10.0", "4.0", "1.0"),
            *("200", "400", "400", *["2000"] * 8),
        ],
    ]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@sum(a1)", "\t=1"])
def test_a_name_that_a_spreadsheet_would_run_is_text_in_locusts_file(name: str) -> None:
    rung = rung_of(4.0, [0.1])
    (_, row, _) = csv.reader(
        io.StringIO(locust_stats(rung, load_of(4.0, scenario=(ASK | {"name": name},)).scenario, 2))
    )
    assert row[:2] == ["POST", f"'{name}"]
