"""From sample numbers to the arrays an engine takes."""

from collections.abc import Iterator

import numpy as np

from capstan_runtime.data.spec import Changes, Ids, Samples
from capstan_runtime.engine import Batch
from capstan_runtime.randomness import Keys


def training_batch(samples: Samples, ids: Ids, keys: Keys) -> Batch:
    """The samples `ids` [M, b] as one rank's batch of one optimizer step, with a key for each."""
    return _batch(samples, ids, None, keys)


def with_changes(batch: Batch, changes: Changes | None, number: int) -> Batch:
    """Training batch `number` of the data order with its inputs changed; None: as they are."""
    if changes is None:
        return batch
    assert batch.keys is not None
    micro_steps_and_samples, sample = batch.keys.shape, batch.inputs.shape[batch.keys.ndim :]
    changed = changes.training(batch.inputs.reshape(-1, *sample), batch.keys.ravel(), number)
    return batch._replace(inputs=changed.reshape(*micro_steps_and_samples, *changed.shape[1:]))


def validation_batches(
    samples: Samples, rank: int, world: int, micro_steps: int, samples_per_micro_step: int
) -> Iterator[Batch]:
    """All of `samples` over all ranks, each exactly once with weight 1, in batches of [M, b].

    Every rank gets equally many batches of the same shape, because evaluating may be collective and a new shape would
    be compiled anew; what is missing at the end is filled with sample 0 of weight 0.
    """
    per_rank = micro_steps * samples_per_micro_step
    for start in range(0, len(samples), per_rank * world):
        first = start + rank * per_rank
        ids = np.arange(first, first + per_rank, dtype=np.int64).reshape(micro_steps, samples_per_micro_step)
        counts = ids < len(samples)
        yield _batch(samples, np.where(counts, ids, 0), counts.astype(np.float32))


def _batch(samples: Samples, ids: Ids, weights: np.ndarray | None, keys: Keys | None = None) -> Batch:
    inputs, targets, *conditions = samples.fetch(ids.ravel())
    return Batch(
        inputs=inputs.reshape(*ids.shape, *inputs.shape[1:]),
        targets=targets.reshape(*ids.shape, *targets.shape[1:]),
        weights=weights,
        keys=keys,
        conditions=conditions[0].reshape(*ids.shape, -1) if conditions else None,
    )
