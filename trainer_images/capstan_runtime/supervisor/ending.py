"""From how a trainer ended to what the operator is told. Pure."""

import signal
from dataclasses import dataclass

from capstan_runtime.beat import Sign
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass, classify_exit
from capstan_runtime.contract.state import Exit
from capstan_runtime.supervisor.hang import Hang
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
    bad_batch: int | None
    """As it said, with the failure."""
    hang: Hang | None
    """Why it was killed as hung; None: it was not."""
    step: int | None
    """Optimizer steps done; None: it had not begun."""
    sign: Sign | None
    """What its page says it was doing; None: nothing."""
    has_spoken: bool
    """It reported anything at all: its interpreter and its imports worked."""
    is_program: bool
    """The user's own, rather than one of Capstan's trainers."""
    was_asked_to_stop: bool
    was_asked_to_leave: bool
    """At its next checkpoint."""
    was_out_of_memory: bool
    """The kernel killed something for memory meanwhile."""
    lines: list[str]
    """Of output, oldest first."""


def exit_of(seen: Evidence) -> Exit | None:
    """How the trainer failed; None when it succeeded.

    A trainer that has committed its last step, and said so, has succeeded, even if its interpreter crashes on the way
    out. An exit code of 0 alone says nothing: a library that calls `_exit(0)` ends the process with it at any step.
    """
    if seen.has_succeeded:
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
        step=seen.step,
        asked=seen.was_asked_to_stop,
        section=seen.sign.section if seen.sign is not None else None,
        process_state=seen.hang.process_state if seen.hang is not None else None,
        stack=seen.hang.stack if seen.hang is not None else [],
        bad_batch=seen.bad_batch,
        at=seen.at,
    )


def _judge(seen: Evidence) -> tuple[FailureClass, str]:
    """Class and one line, from the strongest evidence to the weakest."""
    if seen.hang is not None:
        return FailureClass.HANG, seen.hang.message
    if seen.failure is not None:
        return seen.failure, seen.message or f"the trainer failed: {seen.failure}"
    by_signal = -seen.status if seen.status < 0 else None
    if by_signal == signal.SIGKILL and seen.was_out_of_memory:
        return (
            FailureClass.HOST_OUT_OF_MEMORY,
            "the kernel killed the trainer: the container's memory limit was reached",
        )
    if seen.status == ExitCode.STOPPED:
        return FailureClass.STOPPED, _stopped(seen)
    if seen.was_asked_to_stop:
        return FailureClass.STOPPED, f"asked to stop, {_ended(seen.status)}"
    if by_signal is not None:
        # What it printed last need not have to do with it: somebody else may have sent the signal.
        return classify_exit(128 + by_signal), f"the trainer {_ended(seen.status)}"
    if seen.status == 0:
        return FailureClass.APPLICATION, _unfinished(seen)
    return classify_exit(seen.status), _last_word(seen)


def _unfinished(seen: Evidence) -> str:
    if not seen.is_program:
        return "the trainer exited with code 0 without having said that it is done"
    if not seen.has_spoken:
        return (
            "the program exited with code 0 without having attached; call capstan_runtime.attach() in the process of "
            "program.command"
        )
    return (
        "the program exited with code 0 before its last step was committed; call job.save() after every step, with "
        "is_last=True to end early"
    )


def _stopped(seen: Evidence) -> str:
    if seen.was_asked_to_stop:
        return "stopped as asked"
    if seen.was_asked_to_leave:
        return f"left after the checkpoint of step {seen.step}, as asked"
    return f"stopped with the other ranks after step {seen.step}"


def _last_word(seen: Evidence) -> str:
    """Of a trainer that exited by itself and did not say why."""
    named = exception_line(seen.lines)
    if named is not None:
        return named
    ended = f"the trainer {_ended(seen.status)}"
    if not seen.has_spoken and seen.lines:
        ended += f" before it began: {seen.lines[-1]}"
    return ended


def _ended(status: int) -> str:
    return f"was killed by {_signal_name(-status)}" if status < 0 else f"exited with code {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
