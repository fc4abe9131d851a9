"""Data from outside is taken or refused as documented, in bounded time and memory. `make fuzz` looks further."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.bending import any_bent
from tests.fuzz.regressions import REGRESSIONS
from tests.fuzz.table import TARGETS, table
from tests.fuzz.target import Target, feed_within_limits

README = Path(__file__).with_name("README.md")

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)


def test_the_readme_lists_every_target() -> None:
    assert [line for line in README.read_text().splitlines() if line.startswith("| `")] == table()


@each_target
def test_what_is_well_formed_is_taken(target: Target) -> None:
    refused = [seed for seed in target.seeds() if not feed_within_limits(target, seed)]
    assert (refused, len(target.seeds()) > 0) == ([], True)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_was_a_finding_once_is_none_any_more(name: str) -> None:
    for data in REGRESSIONS[name]:
        feed_within_limits(TARGETS[name], data)


@each_target
def test_whatever_comes_is_taken_or_refused_as_documented(target: Target) -> None:
    bent = st.builds(any_bent, st.just(target.seeds()), st.just(target.form), st.randoms(use_true_random=False))

    @settings(
        max_examples=target.examples,
        # the CPU time that is allowed does not depend on what else the machine does
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        derandomize=True,  # what is new is looked for by `make fuzz`, and breaks nobody's build
        database=None,
        phases=[Phase.generate],  # to make a finding smaller takes minutes, and it is short as it is
    )
    @given(st.one_of(bent, bent, bent, st.binary(max_size=200)))
    def holds(data: bytes) -> None:
        feed_within_limits(target, data)

    holds()
