"""What an effect means. A difference must be certain and large enough; so must be that there is none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from capstan_runtime.bench.statistics.effect import Effect
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import Better, Verdict


@dataclass(frozen=True, slots=True)
class Rule:
    """When a difference is one."""

    minimum_effect_percent: float
    confidence: float

    @property
    def allowed_p(self) -> float:
        return 1 - self.confidence

    @property
    def log_minimum(self) -> float:
        """The same either way: 5 % is a ratio of 1.05 or of 1/1.05, so it does not matter which arm is the baseline."""
        return math.log1p(self.minimum_effect_percent / 100)


@dataclass(frozen=True, slots=True)
class Judged:
    verdict: Verdict
    reason: str


def judge(
    effect: Effect, better: Better, adjusted_p: float, rule: Rule, tests: int = 1, drift: Effect | None = None
) -> Judged:
    """The verdict on one metric of `tests`.

    Regressed and Improved need all three: the interval excludes 0, p is small enough, and the effect is at least the
    minimum. Passed needs the whole interval inside the minimum, either way: that a difference could not be shown is no
    proof that there is none. All else is Inconclusive.

    `drift` is how much longer the control took beside the candidate, where both arms were not measured in turns: a
    difference that the machine itself may account for is Inconclusive, and so is its absence when the machine may hide
    one. Nothing is ever divided by it.
    """
    found = f"{words.percent(effect.percent)} ({_span(effect)})"
    minimum = f"{words.number(rule.minimum_effect_percent)} %"
    level = f"{100 * rule.confidence:.4g} %"
    if effect.smallest_p > rule.allowed_p:
        return Judged(
            "Inconclusive",
            f"{found}: so few runs can show nothing at {level}, since p cannot go below {effect.smallest_p:.2g}; raise "
            "repetitions (at 95 % to 4 or more)",
        )
    is_sure = effect.excludes_none and adjusted_p <= rule.allowed_p
    if is_sure and abs(effect.log_ratio) >= rule.log_minimum:
        is_worse = (effect.log_ratio < 0) == (better == "higher")
        if drift is not None and _accounts_for(drift, effect, is_worse):
            return Judged("Inconclusive", f"{found}, and {_machine(drift)}, which may account for it; {_RERUN}")
        return Judged(
            "Regressed" if is_worse else "Improved", f"{found}, p {_chance(adjusted_p)}{_PAIRED * effect.is_paired}"
        )
    if _is_inside(effect, rule):
        if drift is not None and not _is_inside(drift, rule):
            return Judged("Inconclusive", f"{found}, but {_machine(drift)}, which may hide a difference; {_RERUN}")
        return Judged("Passed", f"{found}, all of it less than {minimum}")
    if not effect.excludes_none:
        return Judged("Inconclusive", f"{found}: neither no difference nor one of {minimum} can be ruled out; {_MORE}")
    if effect.smallest_p * tests > rule.allowed_p:
        return Judged(
            "Inconclusive",
            f"{found}: so few runs can show nothing among {tests} metrics at {level}; raise repetitions, or name fewer "
            "in gate.metrics",
        )
    if adjusted_p > rule.allowed_p:
        return Judged(
            "Inconclusive", f"{found}: p {_chance(adjusted_p)}, adjusted for {tests} metrics, is too large; {_MORE}"
        )
    return Judged("Inconclusive", f"{found}: it differs, and whether by {minimum} is not sure; {_MORE}")


_PAIRED = ", run by run"
_MORE = "more repetitions tell"
_RERUN = "baseline.benchmark.rerun: true measures both in turns"


def machine_changed(drift: Effect, rule: Rule) -> str | None:
    """Why nothing can be compared: the control says that the machine itself is another now. None: it does not."""
    if drift.excludes_none and abs(drift.log_ratio) >= rule.log_minimum:
        return f"the machine itself changed: {_machine(drift)}; {_RERUN}"
    return None


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst that was found: Regressed, else Inconclusive, else Improved, else Passed. Of none, Inconclusive."""
    for verdict in ("Regressed", "Inconclusive", "Improved"):
        if verdict in verdicts:
            return verdict
    return "Passed" if verdicts else "Inconclusive"


def _is_inside(effect: Effect, rule: Rule) -> bool:
    return -rule.log_minimum < effect.log_low and effect.log_high < rule.log_minimum


def _accounts_for(drift: Effect, effect: Effect, is_worse: bool) -> bool:
    """A machine that may be slower by as much as the effect may be small, for a change for the worse; else faster."""
    nearest = min(abs(effect.log_low), abs(effect.log_high))
    return nearest <= (drift.log_high if is_worse else -drift.log_low)


def _machine(drift: Effect) -> str:
    return f"a fixed piece of arithmetic now takes {words.percent(drift.percent)} ({_span(drift)}) against then"


def _span(effect: Effect) -> str:
    return f"{words.percent(effect.low_percent)} to {words.percent(effect.high_percent)}"


def _chance(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
