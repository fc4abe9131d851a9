"""Faults that are injected on purpose: what a rank is told to suffer, and what it reports before it does."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Record


class Fault(StrEnum):
    """What is broken. The trainer executes the faults of ranks itself, at the end of the step that is named."""

    KILL = "Kill"
    """SIGKILL to the rank's trainer."""
    SEGFAULT = "Segfault"
    """SIGSEGV to the rank's trainer."""
    HANG = "Hang"
    """SIGSTOP to the rank's trainer."""
    SLOW_RANK = "SlowRank"
    """The rank computes more slowly for a while."""
    GPU_OUT_OF_MEMORY = "GpuOutOfMemory"
    """An allocation on the device fails."""
    SLOW_NETWORK = "SlowNetwork"
    """Every collective of the rank is late for a while."""
    DATA_STALL = "DataStall"
    """The rank's next batch is late."""
    NAN = "NaN"
    """The rank's next loss and gradient are not finite."""
    CORRUPT_CHECKPOINT = "CorruptCheckpoint"
    """One bit of the newest committed checkpoint is flipped in the store, and the rank is killed."""
    DELETE_POD = "DeletePod"
    """The operator deletes the rank's pod."""
    LOSE_NODE = "LoseNode"
    """The pod goes dark: its trainer dies, its supervisor answers nobody any more."""


class Injection(Record):
    """One fault that this rank is to suffer."""

    name: str
    """Unique in the job."""
    fault: Fault
    step: Annotated[int, Field(ge=1)] | None = None
    """After this optimizer step. None: `seconds` decides."""
    seconds: Annotated[float, Field(ge=0.0)] | None = None
    """After so many seconds from the first step of the attempt. None: `step` decides."""
    duration_seconds: Annotated[float, Field(gt=0.0)] = 10.0
    """Of SlowRank, SlowNetwork and DataStall."""


class Injected(Record):
    """One fault that was executed, reported just before it was."""

    name: str
    fault: Fault
    rank: int
    step: int
    """Optimizer steps done then."""
    at: float
    """Seconds since 1970."""
