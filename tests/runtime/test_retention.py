"""What is kept and what goes: the laws of the rules, and a retention that is stopped at any point."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.checkpoint.keeping import Held, kept
from capstan_runtime.checkpoint.layout import SaveName
from capstan_runtime.contract.config import Best, Retention

NOW = 10_000.0


def held(step: int, *, fence: int = 1, age: float = 1e6, proven: bool = True, **metrics: float) -> Held:
    return Held(SaveName(step, fence, "0123456789ab"), NOW - age, metrics, False, proven)


saves = st.lists(
    st.builds(
        Held,
        st.builds(SaveName, st.integers(1, 60), st.integers(1, 3), st.just("0123456789ab")),
        st.floats(0, 2 * NOW),
        st.dictionaries(st.sampled_from(["loss", "accuracy"]), st.floats() | st.integers(0, 3).map(float)),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
    unique_by=lambda save: save.name,
)
rules = st.builds(
    Retention,
    last=st.integers(2, 5),
    every_steps=st.none() | st.integers(1, 20),
    best=st.none()
    | st.builds(
        Best, metric=st.sampled_from(["loss", "accuracy"]), mode=st.sampled_from(["min", "max"]), keep=st.integers(1, 3)
    ),
    newer_than_seconds=st.none() | st.integers(1, int(NOW)),
)


@given(saves, rules)
def test_the_newest_two_that_are_proven_always_stay_and_without_them_everything_does(
    found: list[Held], rule: Retention
) -> None:
    proven = sorted((save.name for save in found if save.is_proven), reverse=True)[:2]
    stay = kept(found, rule, NOW)
    assert stay >= set(proven)
    if len(proven) < 2:
        assert stay == {save.name for save in found}


@given(saves, rules)
def test_the_newest_and_the_pinned_stay_whatever_the_rules(found: list[Held], rule: Retention) -> None:
    stay = kept(found, rule, NOW)
    newest = sorted((save.name for save in found), reverse=True)
    assert stay >= {*newest[: rule.last], *(save.name for save in found if save.is_pinned)}
    assert stay <= set(newest)


@given(saves, rules, st.randoms(use_true_random=False))
def test_the_order_of_a_listing_does_not_matter(found: list[Held], rule: Retention, chance: object) -> None:
    shuffled = list(found)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert kept(shuffled, rule, NOW) == kept(found, rule, NOW)


@given(saves, rules)
def test_a_second_look_after_the_removal_removes_nothing_more(found: list[Held], rule: Retention) -> None:
    stay = kept(found, rule, NOW)
    assert kept([save for save in found if save.name in stay], rule, NOW) == stay


@given(saves, rules, st.floats(0, NOW), saves)
def test_what_has_been_let_go_is_never_wanted_again(
    found: list[Held], rule: Retention, later: float, more: list[Held]
) -> None:
    stay = kept(found, rule, NOW)
    newest = max((save.name.step for save in found), default=0)
    names = {save.name for save in found}
    after = [Held(SaveName(save.name.step + newest, 9, f"{i:012x}"), NOW, save.metrics) for i, save in enumerate(more)]
    assert kept([*found, *after], rule, NOW + later) & names <= stay


@given(saves, rules, rules)
def test_a_rule_that_is_added_only_keeps_more(found: list[Held], rule: Retention, other: Retention) -> None:
    for name in ("every_steps", "best", "newer_than_seconds"):
        less, more = (rule.model_copy(update={name: value}) for value in (None, getattr(other, name)))
        assert kept(found, less, NOW) <= kept(found, more, NOW)


STEPS = [held(step, loss=abs(step - 45), accuracy=0.5) for step in range(10, 101, 10)]


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        (Retention(last=2), [90, 100]),
        (Retention(last=3, every_steps=40), [40, 80, 90, 100]),
        (Retention(last=2, best=Best(metric="loss", mode="min", keep=3)), [30, 40, 50, 90, 100]),
        (Retention(last=2, best=Best(metric="loss", mode="max")), [90, 100]),
        (Retention(last=2, best=Best(metric="accuracy", mode="max")), [10, 90, 100]),
        (Retention(last=2, best=Best(metric="unheard_of", mode="max")), [90, 100]),
        (Retention(last=2, newer_than_seconds=3600), [90, 100]),
    ],
)
def test_each_rule_keeps_what_it_says(rule: Retention, steps: list[int]) -> None:
    assert {name.step for name in kept(STEPS, rule, NOW)} == set(steps)


def test_an_age_keeps_what_was_committed_within_it() -> None:
    found = [held(step, age=1000 - step) for step in range(100, 1000, 100)]
    assert {name.step for name in kept(found, Retention(last=2, newer_than_seconds=300), NOW)} == {700, 800, 900}


def test_a_broken_run_of_newer_ones_does_not_cost_the_older_proven_ones() -> None:
    found = [held(10), held(20), held(30, proven=False), held(40, proven=False), held(50, proven=False)]
    assert {name.step for name in kept(found, Retention(last=2), NOW)} == {10, 20, 40, 50}


def test_a_step_done_twice_is_kept_once() -> None:
    found = [held(10), held(20), held(20, fence=2), held(30, fence=2), held(40, fence=2)]
    stay = kept(found, Retention(last=2, every_steps=20), NOW)
    assert {(name.step, name.fence) for name in stay} == {(20, 2), (30, 2), (40, 2)}
