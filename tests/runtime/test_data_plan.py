"""The order of the data: the same for every number of workers, and never a sample twice in an epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.data.batches import training_batch, validation_batches
from capstan_runtime.data.plan import Permutation, SamplePlan
from capstan_runtime.data.spec import Rows
from capstan_runtime.errors import ConfigError


@given(size=st.integers(1, 5000), key=st.lists(st.integers(0, 2**40), max_size=3))
def test_a_permutation_of_any_size_takes_every_value_once(size: int, key: list[int]) -> None:
    values = Permutation(size, *key)(np.arange(size))
    assert sorted(values.tolist()) == list(range(size))


def test_a_permutation_is_evaluated_at_any_position_of_a_huge_domain() -> None:
    order = Permutation(10**12, 3)
    positions = np.asarray([[0, 10**12 - 1], [5, 10**9]])
    values = order(positions)
    assert values.shape == positions.shape
    assert ((values >= 0) & (values < 10**12)).all()
    assert values.tolist() == [[int(order(each[None])[0]) for each in row] for row in positions]


def test_the_order_never_changes_between_versions() -> None:
    # A checkpoint resumes in the middle of an epoch: another order would show samples twice and leave others out.
    assert Permutation(10, 1, 2)(np.arange(10)).tolist() == [9, 5, 1, 4, 6, 8, 7, 2, 3, 0]


def test_seeds_epochs_and_sizes_give_different_orders() -> None:
    orders = {
        tuple(Permutation(size, *key)(np.arange(90)).tolist())
        for size, *key in [(90, 0, 0), (90, 0, 1), (90, 1, 0), (91, 0, 0), (90, 0)]
    }
    assert len(orders) == 5


plans = st.builds(
    lambda seed, slices, per_slice, extra, epochs: SamplePlan(
        seed, slices * per_slice * epochs + extra % (slices * per_slice), slices * per_slice, slices
    ),
    st.integers(0, 1000),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 200),
    st.integers(1, 6),
)


@given(plan=plans)
def test_an_epoch_shows_no_sample_twice(plan: SamplePlan) -> None:
    seen = np.concatenate([plan.ids(step) for step in range(plan.steps_per_epoch)])
    assert len(np.unique(seen)) == plan.steps_per_epoch * plan.global_batch_size
    assert 0 <= seen.min() <= seen.max() < plan.num_samples


@given(plan=plans, step=st.integers(0, 40))
def test_every_world_size_sees_the_same_global_batch_in_the_same_order(plan: SamplePlan, step: int) -> None:
    whole = plan.ids(step)
    for world in range(1, plan.virtual_ranks + 1):
        if plan.virtual_ranks % world:
            with pytest.raises(ConfigError, match="do not divide virtualRanks"):
                plan.ids_for_rank(step, 0, world)
            continue
        parts = [plan.ids_for_rank(step, rank, world) for rank in range(world)]
        shape = (plan.virtual_ranks // world, plan.global_batch_size // plan.virtual_ranks)
        assert {part.shape for part in parts} == {shape}
        assert np.concatenate(parts).ravel().tolist() == whole.tolist()


def test_long_epochs_are_the_same_however_they_are_cut_into_blocks() -> None:
    plan = SamplePlan(seed=5, num_samples=100_003, global_batch_size=7, virtual_ranks=7)
    order = Permutation(100_003, 5, 0)
    for step in (0, 2339, 2340, 2341, 14285):
        assert plan.ids(step).tolist() == order(np.arange(step * 7, step * 7 + 7)).tolist()


def test_fewer_samples_than_a_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"globalBatchSize: 64 is more than the 63 training samples .* at most 63"):
        SamplePlan(seed=0, num_samples=63, global_batch_size=64, virtual_ranks=4)


def test_a_training_batch_keeps_the_shape_of_its_ids() -> None:
    rows = Rows(np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20, dtype=np.int32))
    batch = training_batch(rows, np.asarray([[3, 1], [0, 19]]), np.asarray([[1, 2], [3, 4]], np.uint32))
    assert batch.inputs.shape == (2, 2, 3)
    assert batch.targets.tolist() == [[3, 1], [0, 19]]
    assert batch.weights is None


@given(samples=st.integers(1, 60), world=st.integers(1, 4), micro_steps=st.integers(1, 3), b=st.integers(1, 5))
def test_validation_counts_each_sample_once_over_all_ranks(samples: int, world: int, micro_steps: int, b: int) -> None:
    rows = Rows(np.zeros((samples, 2), np.float32), np.arange(samples, dtype=np.int32))
    by_rank = [list(validation_batches(rows, rank, world, micro_steps, b)) for rank in range(world)]
    assert len({len(batches) for batches in by_rank}) == 1
    batches = [batch for batches in by_rank for batch in batches]
    assert {batch.inputs.shape for batch in batches} == {(micro_steps, b, 2)}
    counted = [
        int(t) for batch in batches for t, w in zip(batch.targets.ravel(), batch.weights.ravel(), strict=True) if w
    ]
    assert sorted(counted) == list(range(samples))
