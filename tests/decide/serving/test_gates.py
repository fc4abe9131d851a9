"""The statistics of a canary: how often they are wrong, looked at as often as they are, and how soon they decide."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.api.rollout import Gates
from capstan_operator.decide.serving.gates import judge, rate_bounds
from capstan_operator.observe_serving import ServedTraffic

BOUNDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
LOOK_EVERY = 50


def served(latencies: list[float], errors: int) -> ServedTraffic:
    within = tuple(sum(latency <= bound for latency in latencies) for bound in BOUNDS)
    return ServedTraffic(len(latencies), errors, within, len(latencies))


class Stream:
    """Requests of one revision as they come in: quick ones take 8 ms, slow ones 30."""

    def __init__(self, chance: random.Random, error_rate: float, slow_rate: float) -> None:
        self._chance, self._error_rate, self._slow_rate = chance, error_rate, slow_rate
        self._requests = self._errors = self._slow = 0

    def go_on(self, requests: int) -> ServedTraffic:
        self._requests += requests
        self._errors += sum(self._chance.random() < self._error_rate for _ in range(requests))
        self._slow += sum(self._chance.random() < self._slow_rate for _ in range(requests))
        quick = self._requests - self._slow
        within = tuple(0 if bound < 0.008 else quick if bound < 0.03 else self._requests for bound in BOUNDS)
        return ServedTraffic(self._requests, self._errors, within, self._requests)


def first_verdict(gate: int, canary: Stream, stable: Stream, gates: Gates, most: int) -> str:
    """What the gate says the first time it says anything, looked at every 50 requests of the canary."""
    for _ in range(0, most, LOOK_EVERY):
        verdict = judge(gates, canary.go_on(LOOK_EVERY), stable.go_on(LOOK_EVERY), BOUNDS)[gate].verdict
        if verdict != "Inconclusive":
            return verdict
    return "Inconclusive"


def test_of_canaries_that_just_fail_to_be_good_enough_few_are_ever_passed() -> None:
    chance = random.Random(4)
    gates = Gates(max_error_rate_increase=0.05, min_requests=1, confidence=0.9)
    canaries = 150
    passed = sum(
        first_verdict(0, Stream(chance, 0.0701, 0.0), Stream(chance, 0.02, 0.0), gates, 2000) == "Pass"
        for _ in range(canaries)
    )
    assert passed <= 0.1 * canaries


def test_of_canaries_that_are_just_too_slow_few_are_ever_passed() -> None:
    chance = random.Random(5)
    gates = Gates(max_latency_ratio=2.0, min_requests=1, confidence=0.9)
    canaries = 60
    passed = sum(  # the canary's 99th percentile is 0.03 s, the other one's 0.008 s
        first_verdict(1, Stream(chance, 0.0, 0.0101), Stream(chance, 0.0, 0.0), gates, 2000) == "Pass"
        for _ in range(canaries)
    )
    assert passed <= 0.1 * canaries


def test_few_canaries_that_are_as_good_are_ever_refused() -> None:
    chance = random.Random(6)
    gates = Gates(max_error_rate_increase=0.02, min_requests=1, confidence=0.9)
    canaries = 100
    refused = sum(
        first_verdict(0, Stream(chance, 0.05, 0.0), Stream(chance, 0.05, 0.0), gates, 1500) == "Fail"
        for _ in range(canaries)
    )
    assert refused <= 0.1 * canaries


class Compared:
    """Answers of a canary as they are compared, of which so many differ."""

    def __init__(self, chance: random.Random, difference_rate: float) -> None:
        self._chance, self._difference_rate = chance, difference_rate
        self._compared = self._different = 0

    def go_on(self, answers: int) -> ServedTraffic:
        self._compared += answers
        self._different += sum(self._chance.random() < self._difference_rate for _ in range(answers))
        return agreeing(self._compared, self._different)


def agreeing(compared: int, different: int) -> ServedTraffic:
    """A canary without faults of which this was compared."""
    requests = 2 * compared
    within = tuple(0 if bound < 0.008 else requests for bound in BOUNDS)
    return ServedTraffic(requests, 0, within, requests, compared, different)


def first_agreement(canary: Compared, gates: Gates, looks: int) -> str:
    """What the gate of agreement says the first time it says anything, looked at every ten answers."""
    for _ in range(looks):
        verdict = judge(gates, canary.go_on(10), ServedTraffic(latencies=(0,) * len(BOUNDS)), BOUNDS)[2].verdict
        if verdict != "Inconclusive":
            return verdict
    return "Inconclusive"


def test_of_canaries_that_agree_just_too_rarely_few_are_ever_passed() -> None:
    chance = random.Random(7)
    gates = Gates(min_agreement=0.9, min_requests=1, confidence=0.9)
    canaries = 100
    passed = sum(first_agreement(Compared(chance, 0.1001), gates, 100) == "Pass" for _ in range(canaries))
    assert passed <= 0.1 * canaries


def test_of_canaries_that_agree_just_often_enough_few_are_ever_refused() -> None:
    chance = random.Random(8)
    gates = Gates(min_agreement=0.9, min_requests=1, confidence=0.9)
    canaries = 100
    refused = sum(first_agreement(Compared(chance, 0.0999), gates, 100) == "Fail" for _ in range(canaries))
    assert refused <= 0.1 * canaries


def test_agreement_is_proven_within_the_requests_that_the_api_promises() -> None:
    gates = Gates(min_agreement=0.9, min_requests=1)
    beside = served([0.008] * 20_000, 0)
    assert judge(gates, agreeing(55, 0), beside, BOUNDS)[2].verdict == "Pass"
    assert judge(gates, agreeing(45, 0), beside, BOUNDS)[2].verdict == "Inconclusive"


def test_a_canary_that_predicts_at_random_is_refused_after_ten_answers() -> None:
    gate = judge(Gates(min_agreement=0.9), agreeing(10, 9), served([0.008] * 2000, 0), BOUNDS)[2]
    assert (gate.name, gate.verdict, gate.message) == (
        "Agreement",
        "Fail",
        "9 of 10 compared answers name another class than the other revision's: a share of 0.4560 to 0.9995; "
        "allowed is 0.1",
    )


def test_where_answers_are_not_compared_there_is_no_such_gate() -> None:
    wrong = agreeing(500, 500)
    assert [gate.name for gate in judge(Gates(), wrong, wrong, BOUNDS)] == ["ErrorRate", "LatencyP99"]


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.01, 0.99))
def test_more_that_differ_never_make_a_canary_look_better(different: int, more: int, least: float) -> None:
    order = {"Pass": 0, "Inconclusive": 1, "Fail": 2}
    gates = Gates(min_agreement=least)
    verdicts = [
        judge(gates, agreeing(500, count), served([0.008], 0), BOUNDS)[2].verdict
        for count in (different, min(500, different + more))
    ]
    assert order[verdicts[0]] <= order[verdicts[1]]


def test_a_canary_without_faults_passes_within_the_requests_that_the_api_promises() -> None:
    fine = served([0.008] * 1100, 0)
    beside = served([0.008] * 20_000, 0)
    assert [gate.verdict for gate in judge(Gates(), fine, beside, BOUNDS)] == ["Pass", "Pass"]
    assert judge(Gates(), served([0.008] * 450, 0), beside, BOUNDS)[0].verdict == "Pass"
    assert judge(Gates(max_error_rate_increase=0.01), served([0.008] * 900, 0), beside, BOUNDS)[0].verdict == "Pass"


def test_a_canary_that_fails_every_fifth_time_is_refused_after_a_hundred_requests() -> None:
    gates = judge(Gates(), served([0.008] * 100, 20), served([0.008] * 2000, 10), BOUNDS)
    assert gates[0].verdict == "Fail"
    assert gates[0].message == (
        "20 of 100 requests failed, of the other revision 10 of 2000: a rate higher by +0.0721 to +0.3607; "
        "allowed is 0.02"
    )


def test_a_slow_canary_is_refused() -> None:
    gate = judge(Gates(), served([0.1] * 300, 0), served([0.008] * 3000, 0), BOUNDS)[1]
    assert (gate.verdict, gate.message) == (
        "Fail",
        "99 % of 300 answers took at most 0.08 s or more, of the other revision's 3000 0.005 to 0.01 s; "
        "allowed is 2 times that",
    )


def test_without_traffic_nothing_is_decided() -> None:
    nothing = ServedTraffic(latencies=(0,) * len(BOUNDS))
    gates = Gates(min_agreement=0.5)
    assert [gate.verdict for gate in judge(gates, nothing, nothing, BOUNDS)] == ["Inconclusive"] * 3
    assert {gate.verdict for gate in judge(Gates(), ServedTraffic(), ServedTraffic(), ())} == {"Inconclusive"}


def test_fewer_requests_than_asked_for_never_pass() -> None:
    fine = replace(served([0.001] * 5000, 0), compared=2500)
    gates = Gates(min_requests=5001, min_agreement=0.9)
    assert [gate.verdict for gate in judge(gates, fine, fine, BOUNDS)] == ["Inconclusive"] * 3


def test_what_is_in_no_bucket_took_longer_than_the_last() -> None:
    lost = ServedTraffic(1000, 0, (900,) * len(BOUNDS), 1000)
    assert judge(Gates(), lost, served([0.001] * 3000, 0), BOUNDS)[1].verdict == "Fail"


@given(st.integers(0, 3000), st.integers(0, 3000), st.floats(1e-6, 0.5))
def test_bounds_enclose_what_was_seen_and_narrow_with_less_confidence(hits: int, misses: int, alpha: float) -> None:
    trials = hits + misses
    low, high = rate_bounds(hits, trials, alpha)
    assert 0.0 <= low <= high <= 1.0
    if trials:
        assert low <= hits / trials <= high
    wider = rate_bounds(hits, trials, alpha / 10)
    assert wider[0] <= low
    assert high <= wider[1]


@given(st.integers(0, 500), st.integers(1, 500))
def test_more_errors_never_make_a_canary_look_better(errors: int, more: int) -> None:
    order = {"Pass": 0, "Inconclusive": 1, "Fail": 2}
    stable = served([0.008] * 4000, 40)
    requests = 1000
    verdicts = [
        judge(Gates(), ServedTraffic(requests, count, (requests,) * len(BOUNDS)), stable, BOUNDS)[0].verdict
        for count in (errors, min(requests, errors + more))
    ]
    assert order[verdicts[0]] <= order[verdicts[1]]


def test_two_of_a_kind_pass_in_whichever_buckets_of_a_replica_they_fall() -> None:
    """The default ratio must be wider than what the buckets cannot tell apart."""
    bounds = [0.001, 0.00125, 0.0016, 0.002, 0.0025, 0.00315, 0.004, 0.005, 0.0063, 0.008, 0.01]
    for slow in range(2, len(bounds) - 1):
        for share in (0.002, 0.05):  # the 99th percentile is in one bucket, or in the one above it
            within = tuple(
                2000 if i > slow else round(2000 * (1 - share)) if i == slow else 0 for i in range(len(bounds))
            )
            one = ServedTraffic(2000, 0, within, 2000)
            assert judge(Gates(), one, one, bounds)[1].verdict == "Pass"


def test_counts_that_contradict_each_other_are_survived() -> None:
    odd = ServedTraffic(10, 12, (11,) * len(BOUNDS), 10, compared=2, different=3)
    gates = Gates(min_agreement=0.1)
    assert [gate.verdict for gate in judge(gates, odd, odd, BOUNDS)] == ["Inconclusive"] * 3
    assert rate_bounds(0, 0, 0.05) == (0.0, 1.0)
    assert rate_bounds(5, 5, 0.05)[1] == 1.0
    assert inf > rate_bounds(1, 5, 0.05)[1]
