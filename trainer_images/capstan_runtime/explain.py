"""Why a trainer ends, told to its log and its supervisor."""

import sys
import traceback

from capstan_runtime.context import JobContext
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.state import Progress
from capstan_runtime.errors import (
    ConfigError,
    Failure,
    GpuOutOfMemory,
    NumericalFailure,
    exit_code_of,
    failure_class_of,
)
from capstan_runtime.report import Reporter

_LONGEST_MESSAGE = 1000


def located(error: GpuOutOfMemory, context: JobContext, step: int, field: str) -> Failure:
    """Says where the device ran out of memory, with `step` steps done, and, when there is nothing left to halve, that
    this is the end; then `field` is what to make smaller."""
    where = f"step {step + 1}"
    samples = context.samples_per_micro_step
    if samples == 1:
        return ConfigError(
            f"{field}: {where}: the device runs out of memory with a single sample in a micro-step: {error}; "
            "choose a smaller model or a larger device"
        )
    return GpuOutOfMemory(f"{where}, {context.micro_steps} micro-steps of {samples} samples: {error}")


def explain(error: BaseException, reporter: Reporter) -> ExitCode:
    """The exit code that stands for `error`, which has been told: one Progress with failure and message, and a log."""
    first_line = next(iter(str(error).splitlines()), "")
    if isinstance(error, Failure):
        message = first_line
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
    else:
        message = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
        traceback.print_exception(error)
    try:
        bad_batch = error.bad_batch if isinstance(error, NumericalFailure) else None
        failure = failure_class_of(error)
        reporter.send(Progress(failure=failure, message=message[:_LONGEST_MESSAGE], bad_batch=bad_batch))
    except BrokenPipeError:
        print("the supervisor is gone", file=sys.stderr)
    return exit_code_of(error)
