"""What the answers of replicas add up to: laws of the sums, whatever happens to the pods in between."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.cluster.serving_traffic import (
    LEAST_FOR_P50,
    LEAST_FOR_P99,
    WINDOW_SECONDS,
    Counts,
    Reading,
    ServiceTraffic,
    counted_between,
    fitted,
)
from capstan_operator.observe_serving import LoadSample, ObservedLoad, ObservedTraffic, RevisionLatency, ServedTraffic

BOUNDS = (0.01, 0.1)
PODS = {"a": "one", "b": "one", "c": "two"}
"""Revision by pod."""
_process = count()


def counts(
    requests: int = 0,
    errors: int = 0,
    within: tuple[int, int] | None = None,
    turned_away: int = 0,
    compared: int = 0,
    different: int = 0,
) -> Counts:
    answers = requests - errors
    return Counts(requests, errors, turned_away, answers, BOUNDS, within or (answers, answers), compared, different)


def reading(revision: str, sums: Counts, began: float = 1.0, ongoing: int | None = None) -> Reading:
    return Reading(revision, began, sums, ongoing)


@dataclass
class TruePod:
    """A pod, and what of its requests nobody has heard yet."""

    revision: str
    began: float = field(default_factory=lambda: float(next(_process)))
    sums: Counts = field(default_factory=counts)
    untold: Counts = field(default_factory=counts)

    def serve(self, what: Counts) -> None:
        self.sums += what
        self.untold += what

    def restart(self) -> None:
        self.began, self.sums, self.untold = float(next(_process)), counts(), counts()

    def tell(self) -> tuple[Reading, Counts]:
        """Its answer, and what is new in it."""
        new, self.untold = self.untold, counts()
        return reading(self.revision, self.sums, self.began), new


def _counts_of(requests: int, errors: int, slow: int, compared: int, different: int) -> Counts:
    answers = requests - min(errors, requests)
    within = (answers - min(slow, answers), answers)
    return counts(requests, min(errors, requests), within, 0, compared, min(different, compared))


few = st.integers(0, 5)
served = st.builds(_counts_of, st.integers(0, 50), few, few, few, few)
happenings = st.one_of(
    st.tuples(st.just("serve"), st.sampled_from(sorted(PODS)), served),
    st.tuples(st.just("restart"), st.sampled_from(sorted(PODS)), st.none()),
    st.tuples(st.just("round"), st.just(""), st.sets(st.sampled_from(sorted(PODS)))),
    st.tuples(st.just("step"), st.just(""), st.none()),
)


@given(st.lists(happenings, max_size=40))
def test_of_each_step_all_that_pods_told_after_their_first_answer_is_counted_once(story: list[tuple]) -> None:  # type: ignore[type-arg]
    """A round's set are the pods that answer in it. Requests that a container took with it when it ended, before it
    could tell them, are not counted; and no others are missing."""
    traffic, pods = ServiceTraffic(), {uid: TruePod(revision) for uid, revision in PODS.items()}
    expected: dict[str, Counts] = {}
    told: set[str] = set()
    step = 0
    began: float | None = None
    for at, (what, uid, detail) in enumerate(story):
        match what:
            case "serve":
                pods[uid].serve(detail)
            case "restart":
                pods[uid].restart()
            case "step":
                step, expected, told, began = step + 1, {}, set(), None
            case "round":
                traffic.begin_round(f"step {step}", dict.fromkeys(PODS, True), 0.0)
                for answering in sorted(detail):
                    answer, new = pods[answering].tell()
                    traffic.take(answering, answer, 0.0)
                    so_far = expected.setdefault(answer.revision, counts())
                    if answering in told:
                        expected[answer.revision] = so_far + new
                    told.add(answering)
                traffic.end_round(0.0, float(at))
                began = float(at) if began is None else began
                assert traffic.traffic() == _observed(f"step {step}", expected, began)


def _observed(since: str, by_revision: dict[str, Counts], began: float = 0.0) -> ObservedTraffic:
    served = {
        name: ServedTraffic(one.requests, one.errors, one.within, one.timed, one.compared, one.different)
        for name, one in by_revision.items()
    }
    return ObservedTraffic(since, BOUNDS if served else (), served, began)


@given(served, served)
def test_a_counter_that_went_down_began_anew_even_if_the_process_says_it_did_not(before: Counts, after: Counts) -> None:
    new = counted_between(reading("one", before), reading("one", after))
    assert new == (after if after.is_less(before) else after - before)
    assert min(new.requests, new.errors, new.timed, *new.within, new.compared, new.different) >= 0


@given(served, served)
def test_another_process_is_counted_from_zero_even_if_it_has_counted_more(before: Counts, after: Counts) -> None:
    assert counted_between(reading("one", before, began=1.0), reading("one", after, began=2.0)) == after


bounds = st.sets(st.sampled_from((0.001, 0.01, 0.1, 1.0, 10.0)), min_size=1)


@given(bounds, bounds, st.lists(st.floats(0.0, 20.0)), st.lists(st.floats(0.0, 20.0)))
def test_histograms_with_different_buckets_are_added_exactly_in_those_that_both_have(
    bounds_a: set[float], bounds_b: set[float], seconds_a: list[float], seconds_b: list[float]
) -> None:
    added = _timed(bounds_a, seconds_a) + _timed(bounds_b, seconds_b)
    assert added == _timed(bounds_a & bounds_b, [*seconds_a, *seconds_b])
    assert added - _timed(bounds_b, seconds_b) == _timed(bounds_a & bounds_b, seconds_a)


def _timed(bounds: set[float], seconds: list[float]) -> Counts:
    edges = tuple(sorted(bounds))
    within = tuple(sum(one <= edge for one in seconds) for edge in edges)
    return Counts(len(seconds), 0, 0, len(seconds), edges, within)


def test_revisions_whose_replicas_have_different_buckets_are_compared_in_those_that_both_have() -> None:
    old, new = _timed({0.01, 0.1, 1.0}, [0.005, 0.5]), _timed({0.01, 1.0, 5.0}, [0.5, 2.0])
    assert [one.bounds for one in fitted((old, new, Counts()))] == [(0.01, 1.0), (0.01, 1.0), None]
    traffic = ServiceTraffic()
    traffic.begin_round("now", {"a": True, "b": True}, 0.0)
    for uid, sums in (("a", old), ("b", new)):
        traffic.take(uid, reading(uid, sums - sums), 0.0)
        traffic.take(uid, reading(uid, sums), 0.0)
    assert traffic.traffic() is None, "nobody knows yet from when on was counted"
    traffic.end_round(0.0, 7.0)
    assert traffic.traffic() == ObservedTraffic(
        "now", (0.01, 1.0), {"a": ServedTraffic(2, 0, (1, 2), 2), "b": ServedTraffic(2, 0, (0, 1), 2)}, 7.0
    )


def test_a_pod_that_comes_back_soon_goes_on_where_it_was_and_later_begins_anew() -> None:
    traffic = ServiceTraffic()
    for now, requests, asks in ((0.0, 5, True), (10.0, 0, False), (20.0, 9, True)):
        traffic.begin_round("now", {"a": True} if asks else {}, now)
        if asks:
            traffic.take("a", reading("one", counts(requests)), now)
        traffic.end_round(now, now)
    assert traffic.traffic() == _observed("now", {"one": counts(4)})
    traffic.begin_round("now", {}, 1000.0)
    traffic.begin_round("now", {"a": True}, 1001.0)
    traffic.take("a", reading("one", counts(12)), 1001.0)
    assert traffic.traffic() == _observed("now", {"one": counts(4)})


def test_latency_is_that_of_the_last_minute() -> None:
    traffic, sums, now = ServiceTraffic(), counts(), 0.0

    def pass_time(quick: int, slow: int) -> RevisionLatency:
        """Ten rounds in twenty seconds, of which the last brings these answers."""
        nonlocal sums, now
        for turn in range(10):
            now += 2.0
            if turn == 9:
                sums += counts(quick + slow, 0, (quick, quick + slow))
            traffic.begin_round(None, {"a": True}, now)
            traffic.take("a", reading("one", sums), now)
            traffic.end_round(now, now)
        return traffic.latency()["one"]

    pass_time(0, 0)
    assert pass_time(LEAST_FOR_P50 - 1, 0) == RevisionLatency(None, None, LEAST_FOR_P50 - 1)
    assert pass_time(1, 0) == RevisionLatency(0.01, None, LEAST_FOR_P50)
    assert pass_time(LEAST_FOR_P99 - LEAST_FOR_P50, 0) == RevisionLatency(0.01, 0.01, LEAST_FOR_P99)
    assert pass_time(0, 200).p99 == 0.1
    for _ in range(int(WINDOW_SECONDS / 20) + 1):
        later = pass_time(0, 0)
    assert later == RevisionLatency(None, None, 0)
    assert pass_time(300, 0) == RevisionLatency(0.01, 0.01, 300)


def test_a_percentile_beyond_the_last_bucket_is_not_told() -> None:
    assert Counts(100, 0, 0, 100, BOUNDS, (50, 98)).quantile(0.5) == 0.01
    assert Counts(100, 0, 0, 100, BOUNDS, (50, 98)).quantile(0.99) is None


def test_a_revision_without_pods_is_forgotten_but_in_the_step_it_was_in() -> None:
    traffic = ServiceTraffic()
    for now, uid, sums in ((0.0, "a", counts()), (1.0, "a", counts(7)), (2000.0, "b", counts())):
        revision = {"a": "old", "b": "new"}[uid]
        traffic.begin_round("now", {uid: True}, now)
        traffic.take(uid, reading(revision, sums), now)
        traffic.end_round(now, now)
    assert set(traffic.latency()) == {"new"}
    assert traffic.traffic() == _observed("now", {"old": counts(7), "new": counts()})


@given(load_seconds=st.integers(1, 60), rounds=st.integers(1, 40))
def test_each_round_is_a_sample_of_the_load_of_ready_pods_as_far_back_as_is_asked(
    load_seconds: int, rounds: int
) -> None:
    traffic = ServiceTraffic()
    for number in range(rounds):
        at = 1e9 + 2.0 * number
        traffic.begin_round(None, {"a": True, "b": True, "c": True, "d": False}, 2.0 * number, load_seconds)
        traffic.take("a", reading("one", counts(turned_away=3 * number), ongoing=2), 2.0 * number)
        traffic.take("b", reading("one", counts(), ongoing=5), 2.0 * number)
        traffic.take("d", reading("two", counts(), ongoing=7), 2.0 * number)
        traffic.end_round(2.0 * number, at)
    load = traffic.load()
    assert load is not None
    assert load.samples[-1] == LoadSample(at, ready=3, answered=2, ongoing=7, turned_away=3 if rounds > 1 else 0)
    ages = [round(at - one.at) for one in load.samples]
    oldest = min(2 * (rounds - 1), 2 * -(-load_seconds // 2))
    assert ages == list(range(oldest, -1, -2))


def test_nobody_keeps_samples_of_a_load_that_decides_nothing_and_those_that_are_handed_out_stay_as_they_are() -> None:
    traffic = ServiceTraffic()
    loads = []
    for number, load_seconds in enumerate((None, 60.0, 60.0, None)):
        traffic.begin_round(None, {"a": True}, 2.0 * number, load_seconds)
        traffic.end_round(2.0 * number, 100.0 + 2 * number)
        loads.append(traffic.load())
    first, second = (LoadSample(at, ready=1, answered=0, ongoing=0) for at in (102.0, 104.0))
    assert loads == [None, ObservedLoad((first,)), ObservedLoad((first, second)), None]


def test_numbers_are_news_only_in_a_step_and_only_if_there_are_new_ones() -> None:
    traffic = ServiceTraffic()
    news = []
    for since, requests in ((None, 0), (None, 5), ("now", 9), ("now", 9), ("now", 10), (None, 12)):
        traffic.begin_round(since, {"a": True}, 0.0)
        traffic.take("a", reading("one", counts(requests)), 0.0)
        news.append(traffic.end_round(0.0, 0.0))
    assert news == [False, False, False, False, True, False]
    assert traffic.traffic() is None
