"""Statistics of a canary: is it worse than the revision beside it, and is that certain?

Numbers are looked at every few seconds, and a test that is right once in twenty looks wrong sooner or later when it is
asked a thousand times. So all bounds here hold at every moment at once: they come from the beta-binomial mixture
martingale (Robbins 1970; Howard, Ramdas, McAuliffe, Sekhon 2021, arXiv 1810.08240, section 4.3), whose ratio to the
likelihood of the true rate exceeds 1/alpha at any time with a probability of at most alpha (Ville's inequality).
"""

from collections.abc import Callable, Sequence
from math import inf, lgamma, log, log1p, pi
from typing import Literal

from capstan_operator.api.inference_service_status import GateStatus
from capstan_operator.api.rollout import Gates
from capstan_operator.observe_serving import ServedTraffic

QUANTILE = 0.99
_PRIOR = 0.5
"""Of both kinds of outcome: Jeffreys' prior. It costs power, never validity."""
_HALVINGS = 40
"""2^-40 is far below any rate that can be told from zero."""

Verdict = Literal["Pass", "Fail", "Inconclusive"]


def judge(
    gates: Gates, canary: ServedTraffic, stable: ServedTraffic, bounds: Sequence[float]
) -> tuple[GateStatus, ...]:
    """What the gates of errors, of latency and, if there is one, of agreement say of `canary` beside `stable`, with
    `gates.confidence` each, whenever and however often they are asked."""
    judged = _judge_errors(gates, canary, stable), _judge_latency(gates, canary, stable, bounds)
    if gates.min_agreement is None:
        return judged
    return *judged, _judge_agreement(gates.min_agreement, gates, canary)


def rate_bounds(hits: int, trials: int, alpha: float) -> tuple[float, float]:
    """Bounds of the rate of which `hits` of `trials` were seen. The chance that it is ever outside of them, over all
    trials there will be, is at most `alpha`."""
    if trials == 0:
        return 0.0, 1.0
    misses = trials - hits
    mixture = (
        lgamma(_PRIOR + hits) + lgamma(_PRIOR + misses) - lgamma(2 * _PRIOR + trials) - log(pi)  # B(1/2, 1/2) = pi
    )

    def is_refuted(rate: float) -> bool:
        likelihood = (hits * log(rate) if hits else 0.0) + (misses * log1p(-rate) if misses else 0.0)
        return mixture - likelihood >= -log(alpha)

    seen = hits / trials
    lower = _edge(is_refuted, 0.0, seen) if hits else 0.0
    upper = _edge(is_refuted, 1.0, seen) if misses else 1.0
    return lower, upper


def _edge(is_refuted: Callable[[float], bool], refuted: float, kept: float) -> float:
    """The last refuted rate between one that is, and one that is not; never on the wrong side of the edge."""
    for _ in range(_HALVINGS):
        middle = (refuted + kept) / 2
        if middle in (refuted, kept):
            break
        refuted, kept = (middle, kept) if is_refuted(middle) else (refuted, middle)
    return refuted


def _judge_errors(gates: Gates, canary: ServedTraffic, stable: ServedTraffic) -> GateStatus:
    alpha = (1.0 - gates.confidence) / 2  # either of two bounds may be wrong
    canary_low, canary_high = rate_bounds(min(canary.errors, canary.requests), canary.requests, alpha)
    stable_low, stable_high = rate_bounds(min(stable.errors, stable.requests), stable.requests, alpha)
    least, most = canary_low - stable_high, canary_high - stable_low
    verdict = _verdict(
        is_worse=least > gates.max_error_rate_increase,
        is_good=most <= gates.max_error_rate_increase and canary.requests >= gates.min_requests,
    )
    message = (
        f"{canary.errors} of {canary.requests} requests failed, of the other revision {stable.errors} of "
        f"{stable.requests}: a rate higher by {least:+.4f} to {most:+.4f}; allowed is {gates.max_error_rate_increase:g}"
    )
    return GateStatus(name="ErrorRate", verdict=verdict, message=message)


def _judge_latency(gates: Gates, canary: ServedTraffic, stable: ServedTraffic, bounds: Sequence[float]) -> GateStatus:
    alpha = (1.0 - gates.confidence) / 2
    canary_low, canary_high = _quantile_bounds(canary, bounds, alpha)
    stable_low, stable_high = _quantile_bounds(stable, bounds, alpha)
    # Quicker than the first bound is quick enough: nothing smaller can be told apart.
    is_quick = bool(bounds) and canary_high <= bounds[0]
    verdict = _verdict(
        is_worse=canary_low > gates.max_latency_ratio * stable_high,
        is_good=(is_quick or canary_high <= gates.max_latency_ratio * stable_low)
        and canary.timed >= gates.min_requests,
    )
    message = (
        f"99 % of {canary.timed} answers took at most {_span(canary_low, canary_high)}, of the other revision's "
        f"{stable.timed} {_span(stable_low, stable_high)}; allowed is {gates.max_latency_ratio:g} times that"
    )
    return GateStatus(name="LatencyP99", verdict=verdict, message=message)


def _judge_agreement(least: float, gates: Gates, canary: ServedTraffic) -> GateStatus:
    """Both revisions answered the same requests, so there is one rate to bound, and one bound that may be wrong."""
    allowed = 1.0 - least
    low, high = rate_bounds(min(canary.different, canary.compared), canary.compared, 1.0 - gates.confidence)
    verdict = _verdict(is_worse=low > allowed, is_good=high <= allowed and canary.requests >= gates.min_requests)
    message = (
        f"{canary.different} of {canary.compared} compared answers name another class than the other revision's: a "
        f"share of {low:.4f} to {high:.4f}; allowed is {allowed:g}"
    )
    return GateStatus(name="Agreement", verdict=verdict, message=message)


def _quantile_bounds(traffic: ServedTraffic, bounds: Sequence[float], alpha: float) -> tuple[float, float]:
    """Seconds between which the 99th percentile lies; inf: above the last bound, or too few requests to tell.

    One `alpha` is enough for all buckets: whichever are misjudged, the one next to the true percentile is among them.
    """
    low, high = 0.0, inf
    for bound, within in zip(bounds, traffic.latencies, strict=True):
        slower = min(max(0, traffic.timed - within), traffic.timed)
        slower_low, slower_high = rate_bounds(slower, traffic.timed, alpha)
        if slower_low > 1.0 - QUANTILE:
            low = bound
        if slower_high <= 1.0 - QUANTILE:
            high = min(high, bound)
    return low, high


def _verdict(*, is_worse: bool, is_good: bool) -> Verdict:
    return "Fail" if is_worse else "Pass" if is_good else "Inconclusive"


def _span(low: float, high: float) -> str:
    return f"{low:g} to {high:g} s" if high < inf else f"{low:g} s or more"
