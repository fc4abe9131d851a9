"""Parts of the status of a TrainingJob that tell its story: faults injected, recoveries made, time spent."""

from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.base import Record

NonNegative = Annotated[float, Field(ge=0)]


class InjectedStatus(Record):
    """A fault of spec.chaos that was injected. It is never injected again."""

    name: Annotated[str, Field(description="Its name in spec.chaos.")]
    fault: Annotated[str, Field(description="What was broken.")]
    fence: Annotated[int, Field(description="Number of the attempt in which it was.")]
    rank: Annotated[int, Field(description="The rank that suffered it.")]
    pod: Annotated[str | None, Field(description="Its pod.")] = None
    step: Annotated[int, Field(description="Optimizer steps done then.")]
    at: Annotated[str, Field(description="When (RFC 3339).")]


class NoteStatus(Record):
    """One line that a rank found worth telling, such as a spike that was ignored."""

    fence: Annotated[int, Field(description="Number of its attempt.")]
    rank: Annotated[int | None, Field(description="The rank that said it.")] = None
    message: Annotated[str, Field(description="The line.")]


class RecoverySeconds(Record):
    """Where the time of one recovery went. A part that took no time, or was not reached, is left out."""

    detect: Annotated[NonNegative | None, Field(description="From the end until the operator knew of it.")] = None
    decide: Annotated[
        NonNegative | None, Field(description="From then until the operator acted, pauses between restarts included.")
    ] = None
    schedule: Annotated[
        NonNegative | None, Field(description="From then until all pods of the next attempt were ready.")
    ] = None
    drain: Annotated[
        NonNegative | None,
        Field(description="From then until the last supervisor had taken its place in that attempt."),
    ] = None
    form: Annotated[NonNegative | None, Field(description="From then until the processes ran and had joined.")] = None
    restore: Annotated[
        NonNegative | None, Field(description="From then until the state was in place, less verify.")
    ] = None
    verify: Annotated[NonNegative | None, Field(description="Of the restore, spent hashing what was read.")] = None
    evaluate: Annotated[
        NonNegative | None, Field(description="Of the time from then until the first step, spent on an evaluation.")
    ] = None
    compile: Annotated[
        NonNegative | None, Field(description="The rest of the time until the first step, less firstStep.")
    ] = None
    first_step: Annotated[NonNegative | None, Field(description="The first step itself, at the speed of its kind.")] = (
        None
    )
    total: Annotated[NonNegative, Field(description="The sum: from the end to the first new step.")] = 0.0


class RecoveryStatus(Record):
    """How one attempt came to follow another."""

    fence: Annotated[int, Field(description="Number of the attempt that followed; after Halt: of the one that would.")]
    at: Annotated[str, Field(description="When the attempt before it ended (RFC 3339).")]
    recovered_at: Annotated[
        str | None, Field(description="When the first new step was done (RFC 3339); absent: not yet, or never.")
    ] = None
    cause: Annotated[
        str, Field(description="Class of the failure, or Preempted, Grow, SpecChanged, MembersChanged or Resumed.")
    ]
    sentence: Annotated[str, Field(description="The cause in one sentence.")]
    rank: Annotated[int | None, Field(description="Rank that failed first.")] = None
    pod: Annotated[str | None, Field(description="Its pod.")] = None
    node: Annotated[str | None, Field(description="Its node.")] = None
    action: Annotated[
        str | None,
        Field(description="RestartInPlace, ReplacePod, ReplaceNode, RollBack, Shrink, Grow, Resume or Halt."),
    ] = None
    world_before: Annotated[int | None, Field(description="Processes before; absent: no attempt was on.")] = None
    world_after: Annotated[int | None, Field(description="Processes of the attempt that followed.")] = None
    step_before: Annotated[int | None, Field(description="Last step that was reported before.")] = None
    step: Annotated[int | None, Field(description="Step the attempt continued from; 0: it started over.")] = None
    root: Annotated[str | None, Field(description="Checkpoint it continued from; absent: none.")] = None
    verified: Annotated[bool | None, Field(description="Every byte of it was hashed and matched.")] = None
    source: Annotated[Literal["Store", "Memory"] | None, Field(description="Where it was read from.")] = None
    steps_lost: Annotated[
        int | None,
        Field(
            description="Steps up to stepBefore that had to be done again; steps made after that were not told. Absent:"
            " not known, because fewer steps were told than saved."
        ),
    ] = None
    step_seconds: Annotated[float | None, Field(description="Seconds one step took before.")] = None
    seconds_lost: Annotated[float | None, Field(description="stepsLost x stepSeconds: training that was in vain.")] = (
        None
    )
    chaos: Annotated[str | None, Field(description="Name of the injection that caused it; absent: none did.")] = None
    seconds: Annotated[RecoverySeconds, Field(description="Where the time went.")] = RecoverySeconds()


class GoodputSeconds(Record):
    """Every second since the job was created, in exactly one class."""

    queued: Annotated[NonNegative, Field(description="Waiting for pods to be placed and to start.")] = 0.0
    starting: Annotated[NonNegative, Field(description="Processes start and join.")] = 0.0
    restoring: Annotated[NonNegative, Field(description="Reading and verifying a checkpoint.")] = 0.0
    compiling: Annotated[NonNegative, Field(description="Up to the end of an attempt's first step.")] = 0.0
    training: Annotated[NonNegative, Field(description="Making steps that stay.")] = 0.0
    evaluating: Annotated[NonNegative, Field(description="Measuring on the validation data.")] = 0.0
    saving: Annotated[NonNegative, Field(description="Held up by a save.")] = 0.0
    rework: Annotated[NonNegative, Field(description="Making steps that had to be done again after a resume.")] = 0.0
    recovering: Annotated[
        NonNegative, Field(description="From a failure until the processes of the next attempt begin.")
    ] = 0.0
    suspended: Annotated[NonNegative, Field(description="spec.suspend was true.")] = 0.0
    idle: Annotated[NonNegative, Field(description="Anything else, such as waiting for a spec to be mended.")] = 0.0


class GoodputStatus(Record):
    """What the job's time was spent on, as of the newest write of this status."""

    ratio: Annotated[float, Field(description="Share of training in all time but suspended, 0 to 1.")] = 0.0
    percent: Annotated[str | None, Field(description="The same for the table.")] = None
    seconds: Annotated[GoodputSeconds, Field(description="By class; they add up to the job's age.")] = GoodputSeconds()
    fence: Annotated[int, Field(description="The attempt that `attempt` is about.")] = 0
    attempt: Annotated[
        dict[str, float],
        Field(description="What of that attempt is in `seconds` already, by the phase its rank 0 was in."),
    ] = {}
