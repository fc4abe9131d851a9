"""Exit codes of a trainer and the classes of failure they stand for.

Codes follow BSD sysexits where one fits; 93 is the do-not-restart code of NVIDIA's resiliency extension.
"""

import signal
from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    OK = 0
    APPLICATION = 1
    """Python's own code for an exception nobody caught."""
    CORRUPT_CHECKPOINT = 65
    GPU_FAULT = 74
    RETRYABLE = 75
    """A peer went away, a collective failed, a store did not answer: nothing this process did."""
    GPU_OUT_OF_MEMORY = 76
    NUMERICAL = 77
    CONFIG = 78
    HANG = 79
    """Set by the supervisor, which killed a process that made no progress."""
    STOPPED = 80
    """Asked to stop, saved, and left."""
    DO_NOT_RESTART = 93


class FailureClass(StrEnum):
    """Why an attempt ended. Budgets are counted, and actions chosen, per class."""

    CONFIG = "Config"
    APPLICATION = "Application"
    RETRYABLE = "Retryable"
    CRASH = "Crash"
    """Died of a signal it did not handle."""
    GPU_FAULT = "GpuFault"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    GPU_OUT_OF_MEMORY = "GpuOutOfMemory"
    LOST = "Lost"
    """The pod or its node is gone."""
    HANG = "Hang"
    CORRUPT_CHECKPOINT = "CorruptCheckpoint"
    NUMERICAL = "Numerical"
    STOPPED = "Stopped"
    DO_NOT_RESTART = "DoNotRestart"


_CLASS_OF_CODE = {
    ExitCode.APPLICATION: FailureClass.APPLICATION,
    ExitCode.CORRUPT_CHECKPOINT: FailureClass.CORRUPT_CHECKPOINT,
    ExitCode.GPU_FAULT: FailureClass.GPU_FAULT,
    ExitCode.RETRYABLE: FailureClass.RETRYABLE,
    ExitCode.GPU_OUT_OF_MEMORY: FailureClass.GPU_OUT_OF_MEMORY,
    ExitCode.NUMERICAL: FailureClass.NUMERICAL,
    ExitCode.CONFIG: FailureClass.CONFIG,
    ExitCode.HANG: FailureClass.HANG,
    ExitCode.STOPPED: FailureClass.STOPPED,
    ExitCode.DO_NOT_RESTART: FailureClass.DO_NOT_RESTART,
}


def classify_exit(code: int) -> FailureClass:
    """The class of exit status `code` (1-255, 128 + N for signal N) when nothing more is known."""
    if code in _CLASS_OF_CODE:
        return _CLASS_OF_CODE[ExitCode(code)]
    if code == 128 + signal.SIGTERM:
        return FailureClass.STOPPED
    if code > 128:
        return FailureClass.CRASH
    return FailureClass.APPLICATION
