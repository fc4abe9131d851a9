"""All of a run's state that is not a tensor."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from capstan_runtime.checkpoint.manifest import TrainerState, Value
from capstan_runtime.context import JobContext
from capstan_runtime.data.plan import PLAN_VERSION, skips_before


class Carried(Protocol):
    """Something with a state of its own that a resumed run has to go on with."""

    name: str
    """Of its state in the checkpoint, the same for ever."""

    def state(self) -> Mapping[str, Value]:
        """After the step that was done last; the same on every rank. What made it takes it back when a run resumes."""
        ...


def trainer_state(context: JobContext, step: int, loss: float | None, carried: Iterable[Carried] = ()) -> TrainerState:
    """The state after `step` steps, of which the last had `loss`; None: nobody said. The data's position and the
    learning rate follow."""
    training = context.run.training
    assert training.virtual_ranks is not None
    return TrainerState(
        step=step,
        seed=training.seed,
        global_batch_size=training.global_batch_size,
        virtual_ranks=training.virtual_ranks,
        plan_version=PLAN_VERSION,
        data_fingerprint=context.data_fingerprint,
        learning_rate_step=step,
        loss=loss,
        skips=skips_before(step, context.membership.skips),
        callbacks={each.name: dict(each.state()) for each in carried},
    )
