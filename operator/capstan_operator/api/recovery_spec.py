"""What of a TrainingJob's spec is about things that break: budgets, deadlines, and faults on purpose."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from capstan_runtime.contract.base import Positive, Record, cel
from capstan_runtime.contract.chaos import Fault
from capstan_runtime.contract.numerical import Numerical

Budget = Annotated[int, Field(ge=0, le=1000, description="Restarts allowed for this cause over the job's life.")]
Seconds = Annotated[int, Field(ge=1, le=86400)]


class Budgets(Record):
    """How many restarts each cause may cost before the job is failed. One cause never uses up another's."""

    application: Budget = 1
    retryable: Budget = 10
    crash: Budget = 3
    gpu_fault: Budget = 3
    host_out_of_memory: Budget = 1
    gpu_out_of_memory: Budget = 3
    lost: Budget = 20
    hang: Budget = 3
    corrupt_checkpoint: Budget = 1
    numerical: Budget = 3


class RecoveryDeadlines(Record):
    """Seconds after which a wait counts as a failure."""

    form: Annotated[Seconds, Field(description="From the first process of an attempt to the last having joined.")] = 120
    first_step: Annotated[
        Seconds,
        Field(description="From having joined to the first step: restore and compile; anew for smaller micro-batches."),
    ] = 600
    hang: Annotated[
        Seconds,
        Field(description="Least time without a step that counts as a hang; 5 x the slowest recent step if longer."),
    ] = 60
    save: Annotated[Seconds, Field(description="From the first shard written to the commit.")] = 120
    stop: Annotated[Seconds, Field(description="From asking a trainer to stop to killing it.")] = 20


class Recovery(Record):
    """What happens when something breaks."""

    budgets: Annotated[Budgets, Field(description="Restarts allowed per cause, counted over the job's whole life.")] = (
        Budgets()
    )
    deadlines: Annotated[RecoveryDeadlines, Field(description="How long each wait may take, in seconds.")] = (
        RecoveryDeadlines()
    )
    numerical: Annotated[Numerical, Field(description="What to do when the arithmetic goes wrong.")] = Numerical()
    no_progress_attempts: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="Failed attempts in a row without a newer checkpoint after which the job is failed.",
        ),
    ] = 3
    warm_spare: Annotated[
        bool,
        Field(
            description="Keep a second process with its imports done in every pod, so that a restart takes seconds. It "
            "costs memory, about 0.5 GB per pod."
        ),
    ] = True
    memory_tier: Annotated[
        bool,
        Field(
            description="Keep each pod's part of the newest two saves in its memory (a volume of medium Memory), so "
            "that a restart need not read the store. It costs that much memory per pod, and a memory limit in "
            "workers.resources counts it: leave room for it there."
        ),
    ] = True


def _fault_of_word(word: Any) -> Any:
    """JSON has no enums, so a strict reading must be told that a fault is written as a word."""
    if isinstance(word, str) and word not in list(Fault):
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": ", ".join(Fault)})
    return Fault(word) if isinstance(word, str) else word


class Chaos(Record):
    """One fault, injected on purpose and at most once. Nothing happens unless the operator runs with --allow-chaos and
    the namespace carries the label capstan.dev/chaos=allowed."""

    model_config = cel(("has(self.step) != has(self.seconds)", "'set exactly one of step, seconds'"))

    name: Annotated[
        str,
        Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63, description="Unique in the job."),
    ]
    fault: Annotated[Fault, BeforeValidator(_fault_of_word), Field(description="What breaks.")]
    step: Annotated[Positive | None, Field(description="After this optimizer step. Set this or seconds.")] = None
    seconds: Annotated[
        int | None, Field(ge=0, description="So many seconds after the first step of the job. Set this or step.")
    ] = None
    rank: Annotated[
        int | None, Field(ge=0, description="Which rank suffers it. Left out: one chosen at random by seed.")
    ] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Of the choice of the rank.")] = 0
    duration_seconds: Annotated[int, Field(ge=1, le=86400, description="Of SlowRank, SlowNetwork and DataStall.")] = 10

    @model_validator(mode="after")
    def _one_time(self) -> Self:
        if (self.step is None) == (self.seconds is None):
            raise ValueError("set exactly one of step, seconds")
        return self
