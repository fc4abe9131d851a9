"""The samples and their order are the same for every walk through world sizes, and the digest of them says so."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.context import TrainContext
from capstan_runtime.contract.run_config import Skip
from capstan_runtime.data.batches import training_batch
from capstan_runtime.data.plan import SamplePlan
from capstan_runtime.data.spec import Rows
from capstan_runtime.randomness import sample_keys

VIRTUAL_RANKS, PER_SLICE, SAMPLES = 8, 6, 500
DATA = Rows(np.arange(SAMPLES, dtype=np.float32)[:, None], np.arange(SAMPLES, dtype=np.int32))


def context_of(rank: int, world: int, splits: int) -> TrainContext:
    training = SimpleNamespace(virtual_ranks=VIRTUAL_RANKS, global_batch_size=VIRTUAL_RANKS * PER_SLICE)
    run: Any = SimpleNamespace(training=training, workers_per_replica=1)
    membership: Any = SimpleNamespace(rank=rank, world=world, micro_splits=splits)
    nothing: Any = None
    return TrainContext(run=run, membership=membership, data=nothing, steps=0, environ={})


def consumed(plan: SamplePlan, step: int, world: int, splits: int) -> list[int]:
    """What the ranks' batches hold, rank after rank, micro-step after micro-step."""
    found: list[int] = []
    for rank in range(world):
        context = context_of(rank, world, splits)
        ids = plan.ids_for_rank(step, rank, world).reshape(context.micro_steps, context.samples_per_micro_step)
        batch = training_batch(DATA, ids, sample_keys(0, step, ids))
        assert batch.targets.shape == (context.micro_steps, context.samples_per_micro_step)
        found += batch.targets.ravel().tolist()
    return found


def order_digest(walk: list[tuple[int, int, int]], skips: tuple[Skip, ...] = ()) -> str:
    """Of all samples consumed over `walk`: (steps, world, splits) of each attempt."""
    plan = SamplePlan(3, SAMPLES, VIRTUAL_RANKS * PER_SLICE, VIRTUAL_RANKS, skips)
    digest, step = blake3(), 0
    for steps, world, splits in walk:
        for _ in range(steps):
            digest.update(np.asarray(consumed(plan, step, world, splits), np.int64).tobytes())
            step += 1
    return digest.hexdigest()


def test_8_then_4_then_2_then_8_workers_see_what_8_would_have_seen() -> None:
    undisturbed = order_digest([(40, 8, 1)])
    assert order_digest([(11, 8, 1), (9, 4, 1), (13, 2, 1), (7, 8, 1)]) == undisturbed
    assert order_digest([(39, 8, 1), (1, 8, 1)]) == undisturbed
    assert order_digest([(40, 8, 1)], (Skip(first=17, count=1),)) != undisturbed


walks = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4])), min_size=1, max_size=6
)


@given(
    walk=walks, skips=st.sampled_from([(), (Skip(first=4, count=3),), (Skip(first=0, count=1), Skip(first=9, count=2))])
)
def test_neither_worlds_nor_splits_change_the_order(walk: list[tuple[int, int, int]], skips: tuple[Skip, ...]) -> None:
    steps = sum(steps for steps, _, _ in walk)
    assert order_digest(walk, skips) == order_digest([(steps, 8, 1)], skips)
