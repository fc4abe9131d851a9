"""Every file of cases/ is one rule, told by its name: given a look, expected all that is decided on it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.training_job import decide_training_job
from tests.support import decide_cases

CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
REWRITE = os.environ.get("CAPSTAN_REWRITE") == "1"


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_decides_as_the_case_says(case: Path) -> None:
    if REWRITE:
        decide_cases.rewrite(case)
    given, expected = decide_cases.load(case)
    assert decide_cases.decided(given) == expected


def test_a_decision_fed_back_writes_nothing_more(case: Path) -> None:
    """The status that was decided, once stored and read again, is the status that is decided."""
    given, _ = decide_cases.load(case)
    now = given.get("now", decide_cases.DEFAULT_NOW)
    observed = decide_cases.observe(given)
    decision = decide_training_job(observed, now)
    for _ in range(3):  # an end is recorded, what follows from it is planned, and that is all
        stored = TrainingJobStatus.parse(decision.status.document())
        observed = replace(observed, job=replace(observed.job, status=stored))
        decision = decide_training_job(observed, now)
        if decision.status == stored:
            break
    assert (decision.status, decision.events) == (stored, ())
