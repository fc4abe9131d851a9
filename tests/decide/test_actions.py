"""Every class of failure has an action, a budget or none on purpose, and a reason when the budget is gone."""

from __future__ import annotations

from capstan_operator.api.recovery_spec import Budgets
from capstan_operator.decide.actions import ACTIONS, FATAL_REASONS, Action, budget_of
from capstan_operator.decide.reasons import budget_exhausted
from capstan_runtime.contract.exit_codes import FailureClass

# A stop that nobody of us asked for is counted as Lost.
COUNTED = set(FailureClass) - {FailureClass.STOPPED}


def test_every_class_leads_to_an_action() -> None:
    assert set(ACTIONS) == COUNTED


def test_every_class_that_is_restarted_has_a_budget_and_a_reason_for_its_end() -> None:
    restarted = {failure for failure in COUNTED if ACTIONS[failure] is not Action.HALT}
    assert {failure.name.lower() for failure in restarted} == set(Budgets.model_fields)
    for failure in restarted:
        assert budget_of(Budgets(), failure) == getattr(Budgets(), failure.name.lower())
        assert budget_exhausted(failure).value == f"{failure}BudgetExhausted"


def test_what_is_never_restarted_has_a_reason_of_its_own() -> None:
    fatal = {failure for failure in COUNTED if ACTIONS[failure] is Action.HALT}
    assert fatal == set(FATAL_REASONS)
    assert [budget_of(Budgets(), failure) for failure in fatal] == [0, 0]
