"""What the next attempt does differently: laws of smaller micro-batches and of batches left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.remedies import next_splits, skip_batches, skips_of
from capstan_runtime.contract.run_config import Skip
from capstan_runtime.data.plan import batch_index, micro_steps_of_slice
from tests.support.lives import Life

DECODER: dict[str, Any] = {
    "model": {"mlp": None, "transformer": {"layers": 2, "dim": 32, "heads": 4}},
    "data": {"digits": None, "text": {"path": "/data/text", "sequenceLength": 16}},
}


@given(st.integers(1, 200), st.data())
def test_every_split_at_least_halves_the_micro_batch_and_is_the_one_the_trainer_makes(
    samples: int, data: st.DataObject
) -> None:
    splits = data.draw(st.sampled_from([parts for parts in range(1, samples + 1) if samples % parts == 0]))
    parts = next_splits(samples, splits)
    if parts is None:
        assert 2 * splits > samples
        return
    assert samples % parts == 0
    assert 2 * (samples // parts) <= samples // splits
    assert micro_steps_of_slice(samples, 2 * splits) == parts == micro_steps_of_slice(samples, parts)


@pytest.mark.parametrize("samples", [1, 7, 12, 64])
def test_splitting_ends_at_one_sample(samples: int) -> None:
    splits, sizes = 1, []
    while (parts := next_splits(samples, splits)) is not None:
        splits = parts
        sizes.append(samples // splits)
    assert sizes[-1:] in ([1], [])
    assert (sizes == []) == (samples == 1)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12))
def test_what_is_left_out_is_disjoint_in_order_and_exactly_what_was_asked_for(asked: list[tuple[int, int]]) -> None:
    status = TrainingJobStatus()
    for first, count in asked:
        skips, _ = skip_batches(status, first, count)
        status = status.model_copy(update={"skips": skips})
    covered = [index for skip in status.skips for index in range(skip.first, skip.first + skip.count)]
    assert covered == sorted({index for first, count in asked for index in range(first, first + count)})
    ends = [skip.first + skip.count for skip in status.skips]
    assert all(end < skip.first for end, skip in zip(ends, status.skips[1:], strict=False)), "two could be one"


@given(st.sets(st.integers(0, 40), max_size=6))
def test_a_run_that_leaves_out_every_bad_batch_it_meets_meets_each_once(bad: set[int]) -> None:
    status, step = TrainingJobStatus(), 0
    rewinds = []
    while step < 60:
        index = batch_index(step, skips_of(status))
        if index in bad:
            skips, _ = skip_batches(status, index, 1)
            status = status.model_copy(update={"skips": skips})
            rewinds.append(index)
            step = 0
        else:
            step += 1
    assert rewinds == sorted(bad)


@pytest.mark.parametrize(
    ("change", "splits"),
    [
        ({"checkpoint": {"interval": {"steps": 5}}, "workers": {"resources": {"memory": "8Gi"}}}, 8),
        ({"workers": {"gpus": 2}}, None),
        ({"workers": {"nodeSelector": {"gpu": "large"}}}, None),
        ({"parallelism": {"tensor": 2}}, None),
    ],
)
def test_micro_steps_are_found_anew_after_a_suspension_for_other_devices_and_other_shares_of_the_model(
    change: dict[str, Any], splits: int | None
) -> None:
    life = Life("running", **DECODER)
    life.say(phase="Compiling", microSplits=8)
    life.decide(30.0)
    assert life.status.micro_splits == 8
    life.change_spec(suspend=True, **change)
    life.decide(31.0)
    assert life.status.micro_splits == 8, "its pods are still there"
    life.seen = replace(life.seen, pods=(), supervisors={})
    life.decide(40.0)
    life.decide(41.0)
    assert (life.status.phase, life.status.micro_splits) == ("Suspended", splits)
    life.change_spec(suspend=False)
    life.decide(50.0)
    assert (life.status.micro_splits, life.status.micro_splits_for is None) == (splits, splits is None)


def test_the_ranks_are_told_what_status_says() -> None:
    skips, words = skip_batches(TrainingJobStatus(), 45, 3)
    assert skips_of(TrainingJobStatus(skips=skips)) == (Skip(first=45, count=3),)
    assert words == "batches 45 to 47 are left out"
    assert skip_batches(TrainingJobStatus(), 45, 1)[1] == "batch 45 is left out"
