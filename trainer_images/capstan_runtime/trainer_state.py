"""All of a run's state that is not a tensor."""

from capstan_runtime.checkpoint.manifest import TrainerState
from capstan_runtime.context import TrainContext
from capstan_runtime.data.plan import PLAN_VERSION, skips_before


def trainer_state(context: TrainContext, step: int, loss: float) -> TrainerState:
    """The state after `step` steps, of which the last had `loss`. The data's position and the learning rate follow."""
    training = context.run.training
    assert training.virtual_ranks is not None
    return TrainerState(
        step=step,
        seed=training.seed,
        global_batch_size=training.global_batch_size,
        virtual_ranks=training.virtual_ranks,
        plan_version=PLAN_VERSION,
        data_fingerprint=context.data.fingerprint,
        learning_rate_step=step,
        loss=loss,
        skips=skips_before(step, context.membership.skips),
    )
