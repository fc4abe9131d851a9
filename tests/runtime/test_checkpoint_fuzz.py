"""Whatever happens to a stored checkpoint, it is noticed; what is whole is never accused; who dies leaves no harm.

A small part of `python -m tests.torture`, which has the faults, the deaths and the laws.
"""

import pytest

from tests.torture import kills
from tests.torture.faults import FAULTS, SIGNED_FAULTS, Fault, bit_flip, forged_with_a_key, garbage_page
from tests.torture.kills import Tally
from tests.torture.scenes import KINDS, LARGE_KINDS, SIGNED_KIND, Kind, clean, suffer


def problems(kind: Kind, fault: Fault, seeds: range) -> list[str]:
    return [f"seed {seed}: {problem}" for seed in seeds if (problem := suffer(kind, fault, seed)[1])]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_detected_or_harmless_by_its_law(fault: Fault) -> None:
    for kind in KINDS:
        assert problems(kind, fault, range(7)) == []


@pytest.mark.parametrize("kind", LARGE_KINDS, ids=lambda kind: f"{kind.world} ranks")
def test_a_fault_in_tensors_of_several_leaves_is_detected(kind: Kind) -> None:
    assert problems(kind, bit_flip, range(4)) == problems(kind, garbage_page, range(4)) == []


@pytest.mark.parametrize("fault", SIGNED_FAULTS, ids=lambda fault: fault.__name__)
def test_what_a_forger_makes_consistent_the_signature_tells(fault: Fault) -> None:
    assert problems(SIGNED_KIND, fault, range(8)) == []


def test_without_the_key_a_whole_forgery_passes_for_a_checkpoint() -> None:
    """So the faults above do need the signature."""
    told = [suffer(KINDS[1], forged_with_a_key, seed)[1] for seed in range(20)]
    assert all("step 20 was taken, not 10" in each for each in told)


def test_what_is_whole_is_never_accused() -> None:
    assert [problem for seed in range(60) if (problem := clean(seed))] == []


def test_a_reader_that_does_not_hash_is_found_out() -> None:
    told = [suffer(KINDS[0], bit_flip, seed, verify="manifest")[1] for seed in range(20)]
    assert any("step 20 was taken, not 10" in each for each in told)


def held(tally: Tally, least: int) -> None:
    assert (tally.misses, tally.points >= least) == ((), True)


def test_two_writers_that_die_anywhere_leave_what_was_acknowledged() -> None:
    tally = kills.two_writers(2, 30, seed=1)
    held(tally, 30)
    assert {"the commit before", "the second attempt's"} <= set(tally.read)


@pytest.mark.parametrize("is_second", [False, True], ids=["one attempt", "two attempts"])
def test_processes_killed_at_any_moment_leave_what_was_acknowledged(is_second: bool) -> None:
    held(kills.killed_processes(2, 12, seed=1, is_second=is_second), 12)


def test_retention_killed_anywhere_leaves_what_must_be_kept() -> None:
    held(kills.every_operation_of_a_sweep(stride=5), 10)
