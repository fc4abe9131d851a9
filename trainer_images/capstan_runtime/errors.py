"""Why a trainer may end: exceptions that stand for a failure class, and the exit code of any exception."""

from capstan_runtime.contract.exit_codes import ExitCode, FailureClass, classify_exit


class Failure(Exception):
    """An end of the trainer that has a class of its own. The message is one line for the user."""

    exit_code: ExitCode


class ConfigError(Failure):
    """The run as asked for cannot work. One line naming field, value, rule and fix."""

    exit_code = ExitCode.CONFIG


class CorruptCheckpoint(Failure):
    """Bytes of a checkpoint are not what was committed; or none of the committed checkpoints verifies."""

    exit_code = ExitCode.CORRUPT_CHECKPOINT


class PeerLost(Failure):
    """Another rank went away, or a collective failed: nothing this process did."""

    exit_code = ExitCode.RETRYABLE


class StoreUnavailable(Failure):
    """The checkpoint store does not answer as it should; it may when asked again later."""

    exit_code = ExitCode.RETRYABLE


class GpuOutOfMemory(Failure):
    """The device has too little memory for the step. The message says how much was asked for, if known."""

    exit_code = ExitCode.GPU_OUT_OF_MEMORY


class GpuFault(Failure):
    """The device itself failed: an ECC error, a lost link, a driver that gave up."""

    exit_code = ExitCode.GPU_FAULT


class NumericalFailure(Failure):
    """A loss or gradient is not a finite number, or far above what it was."""

    exit_code = ExitCode.NUMERICAL

    def __init__(self, message: str, bad_batch: int | None = None) -> None:
        """`bad_batch` is the index in the data order of the batch to leave out when the run goes back to its last
        checkpoint; None: it ends."""
        super().__init__(message)
        self.bad_batch = bad_batch


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that stands for `error`; APPLICATION when nothing more is known."""
    if isinstance(error, Failure):
        return error.exit_code
    if isinstance(error, MemoryError):
        return ExitCode.GPU_OUT_OF_MEMORY
    return ExitCode.APPLICATION


def failure_class_of(error: BaseException) -> FailureClass:
    """The class that stands for `error`. It says more than the exit code: there is no code for host memory, because
    there the kernel usually kills without asking."""
    if isinstance(error, MemoryError):
        return FailureClass.HOST_OUT_OF_MEMORY
    return classify_exit(exit_code_of(error))
