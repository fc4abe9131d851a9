"""Every file of cases/ is one rule, told by its name: given a story, expected all that is decided after it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import bench_cases

CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
REWRITE = os.environ.get("CAPSTAN_REWRITE") == "1"


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_decides_as_the_case_says(case: Path) -> None:
    if REWRITE:
        bench_cases.rewrite(case)
    given, expected = bench_cases.load(case)
    assert bench_cases.told_of(bench_cases.lived(given)) == expected


def test_a_decision_fed_back_comes_to_rest(case: Path) -> None:
    """What was decided, once stored, read again and carried out, leads to nothing more at the same moment."""
    given, _ = bench_cases.load(case)
    world = bench_cases.lived(given)
    world.settle()
    at_rest, told_before = world.status, len(world.events)
    world.settle()
    assert (world.status, len(world.events)) == (at_rest, told_before)
