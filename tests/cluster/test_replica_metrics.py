"""A replica's numbers are read as a general parser would read them, and mean what the replica meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from capstan_operator.cluster.errors import ScrapeError
from capstan_operator.cluster.replica_metrics import IS_FAILURE, read_metrics
from capstan_operator.cluster.serving_traffic import Counts, Reading
from capstan_runtime.contract.serving import ServedModel
from capstan_runtime.serving.metrics import Compared, Metrics
from capstan_runtime.serving.refusal import Outcome, Shed

ends = st.tuples(st.sampled_from(Outcome), st.one_of(st.none(), st.sampled_from(Shed)), st.floats(0.0, 100.0))


def replica(ongoing: int = 0) -> Metrics:
    metrics = Metrics(ServedModel(name="digits", version="digits-1a2b", run="run-uid", root="blake3:5e"))
    metrics.show("ongoing_requests", "Requests that are worked on or wait for it.", lambda: ongoing)
    return metrics


def test_every_outcome_that_a_replica_knows_is_in_the_table() -> None:
    assert set(IS_FAILURE) == {outcome.value for outcome in Outcome}


@given(st.lists(ends, max_size=30), st.integers(0, 1000), st.lists(st.sampled_from(Compared), max_size=20))
def test_an_answer_is_read_as_a_general_parser_reads_it(
    story: list[tuple[Outcome, Shed | None, float]], ongoing: int, compared: list[Compared]
) -> None:
    metrics = replica(ongoing)
    for outcome, shed, seconds in story:
        metrics.note_end(outcome, shed if outcome in (Outcome.SHED, Outcome.UNAVAILABLE) else None, seconds)
        metrics.note_mirrored(outcome)
    for result in compared:
        metrics.note_compared(result)
    body = metrics.render()
    samples = {
        (sample.name.removeprefix("capstan_serving_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    errors = sum(samples["requests_total", outcome] for outcome in ("failed", "timeout", "unavailable"))
    buckets = {float(key[1]): value for key, value in samples.items() if key[0] == "latency_seconds_bucket"}
    assert read_metrics(body) == Reading(
        revision="digits-1a2b",
        began=samples[("latency_seconds_created",)],
        counts=Counts(
            requests=int(samples["requests_total", "ok"] + errors),
            errors=int(errors),
            turned_away=int(samples["shed_total", "queue"] + samples["shed_total", "adaptive_limit"]),
            timed=int(samples[("latency_seconds_count",)]),
            bounds=tuple(sorted(buckets))[:-1],
            within=tuple(int(buckets[bound]) for bound in sorted(buckets))[:-1],
            compared=int(samples["compared_total", "same"] + samples["compared_total", "different"]),
            different=int(samples["compared_total", "different"]),
        ),
        ongoing=ongoing,
    )


def test_a_replica_that_does_not_tell_what_it_works_on_is_read_without_it() -> None:
    body = replica().render().replace(b"ongoing_requests", b"running_requests")
    assert read_metrics(body).ongoing is None


def test_an_outcome_of_a_newer_replica_is_not_counted() -> None:
    metrics = replica()
    metrics.note_end(Outcome.OK, None, 0.1)
    more = b'capstan_serving_requests_total{outcome="enchanted"} 7.0\n'
    assert read_metrics(metrics.render() + more) == read_metrics(metrics.render())


@given(st.binary(max_size=2000))
def test_anything_else_is_refused_and_raises_nothing_else(body: bytes) -> None:
    with pytest.raises(ScrapeError):
        read_metrics(body)


@given(st.integers(0, 9000), st.binary(min_size=1, max_size=8))
def test_a_damaged_answer_is_read_or_refused(at: int, damage: bytes) -> None:
    metrics = replica()
    metrics.note_end(Outcome.OK, None, 0.1)
    body = metrics.render()
    damaged = body[:at] + damage + body[at + len(damage) :]
    try:
        reading = read_metrics(damaged)
    except ScrapeError:
        return
    counts = reading.counts
    assert 0 <= counts.errors <= counts.requests
    assert list(counts.within) == sorted(counts.within)
    assert all(0 <= count <= counts.timed for count in counts.within)
