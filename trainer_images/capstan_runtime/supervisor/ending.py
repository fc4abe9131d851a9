"""From how a trainer ended to what the operator is told. Pure."""

import signal
from dataclasses import dataclass

from capstan_runtime.contract.exit_codes import ExitCode, FailureClass, classify_exit
from capstan_runtime.contract.state import Exit
from capstan_runtime.supervisor.output import exception_line

_LINES = 10
_LINE_LENGTH = 200
_MESSAGE_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was seen of one trainer's end."""

    fence: int
    status: int
    """0-255, or -N after signal N."""
    at: float
    """Seconds since 1970."""
    has_succeeded: bool
    """It said that all steps are done and committed."""
    failure: FailureClass | None
    """The class it gave itself before it ended; None: it said nothing."""
    message: str | None
    hang: str | None
    """Why it was killed as hung; None: it was not."""
    has_spoken: bool
    """It reported anything at all: its interpreter and its imports worked."""
    was_asked_to_stop: bool
    was_out_of_memory: bool
    """The kernel killed something for memory meanwhile."""
    lines: list[str]
    """Of output, oldest first."""


def exit_of(seen: Evidence) -> Exit | None:
    """How the trainer failed; None when it succeeded.

    A trainer that has committed its last step has succeeded, even if its interpreter crashes on the way out.
    """
    if seen.has_succeeded or (seen.status == 0 and seen.hang is None):
        return None
    failure, message = _judge(seen)
    code = seen.status if seen.status >= 0 else 128 - seen.status
    return Exit(
        fence=seen.fence,
        code=ExitCode.HANG if failure is FailureClass.HANG else code,
        signal=_signal_name(-seen.status) if seen.status < 0 else None,
        failure=failure,
        message=message[:_MESSAGE_LENGTH],
        last_lines=[line[:_LINE_LENGTH] for line in seen.lines[-_LINES:]],
        at=seen.at,
    )


def _judge(seen: Evidence) -> tuple[FailureClass, str]:
    """Class and one line, from the strongest evidence to the weakest."""
    if seen.hang is not None:
        return FailureClass.HANG, seen.hang
    if seen.failure is not None:
        return seen.failure, seen.message or f"the trainer failed: {seen.failure}"
    by_signal = -seen.status if seen.status < 0 else None
    if by_signal == signal.SIGKILL and seen.was_out_of_memory:
        return (
            FailureClass.HOST_OUT_OF_MEMORY,
            "the kernel killed the trainer: the container's memory limit was reached",
        )
    if seen.was_asked_to_stop:
        saved = seen.status == ExitCode.STOPPED
        return FailureClass.STOPPED, "stopped as asked" if saved else f"asked to stop, {_ended(seen.status)}"
    named = exception_line(seen.lines)
    if by_signal is None and named is not None:
        return classify_exit(seen.status), named
    code = 128 + by_signal if by_signal is not None else seen.status
    ended = f"the trainer {_ended(seen.status)}"
    if not seen.has_spoken and seen.lines:
        ended += f" before it began: {seen.lines[-1]}"
    return classify_exit(code), ended


def _ended(status: int) -> str:
    return f"was killed by {_signal_name(-status)}" if status < 0 else f"exited with code {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
