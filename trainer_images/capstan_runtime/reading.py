"""A rank's batches, as the run has them: which samples, how they are changed, what is made of two."""

from capstan_runtime.context import TrainContext
from capstan_runtime.data.batches import training_batch, with_changes
from capstan_runtime.data.mixing import mix_batch, mixes
from capstan_runtime.data.plan import SamplePlan, batch_index
from capstan_runtime.data.spec import Dataset
from capstan_runtime.engine import Batch
from capstan_runtime.randomness import sample_keys


def largest_batch(context: TrainContext, dataset: Dataset, plan: SamplePlan, step: int) -> Batch:
    """The batch of step `step`, with inputs as large as those of any step."""
    number = batch_index(step, plan.skips)
    return read_batch(context, dataset, plan, step, dataset.augment.largest(number) if dataset.augment else number)


def read_batch(
    context: TrainContext, dataset: Dataset, plan: SamplePlan, step: int, changed_as: int | None = None
) -> Batch:
    """This rank's batch of step `step`, changed as batch number `changed_as` of the data order is; None: as its own."""
    ids = plan.ids_for_rank(step, context.data_rank, context.data_world)
    ids = ids.reshape(context.micro_steps, context.samples_per_micro_step)
    number = batch_index(step, plan.skips)
    batch = training_batch(dataset.train, ids, sample_keys(plan.seed, number, ids))
    batch = with_changes(batch, dataset.augment, number if changed_as is None else changed_as)
    regularization = context.run.regularization
    if regularization is None or not mixes(regularization):
        return batch
    return mix_batch(batch, plan.samples_per_slice, regularization)
