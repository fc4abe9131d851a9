"""What is known of a trainer that makes no progress: where it is, and what the kernel says of it."""

import re
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.beat import Sign
from capstan_runtime.contract.state import Phase, Section
from capstan_runtime.supervisor.watch import Overdue

_FRAMES = 12
_FRAME_LENGTH = 200
_STOPPED = frozenset("Tt")

_STATES = {
    "R": "running",
    "S": "asleep",
    "D": "in a wait that nothing interrupts",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}
_SECTIONS = {
    Section.HOST: "on the host, between two steps",
    Section.DATA: "waiting for the next batch",
    Section.FACTORS: "while making a matrix a product of two",
    Section.STEP: "while computing",
    Section.EXCHANGE: "waiting for the other ranks' messages",
    Section.SAVE: "while saving",
}

_HEAD = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+.* \(most recent call first\):$")
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$')


@dataclass(frozen=True, slots=True)
class Hang:
    """Why a trainer is killed for making no progress, and the evidence."""

    message: str
    """One line."""
    process_state: str | None
    """The kernel's letter for it; None: it is not known."""
    stack: list[str]
    """The main thread's frames, `file:line function`, innermost first, at most 12."""


def judge_hang(overdue: Overdue, sign: Sign | None, process_state: str | None, dump: list[str]) -> Hang:
    """The verdict on a hang. `dump` is what faulthandler wrote, line by line; empty when it did not."""
    words = []
    if process_state is not None:
        words.append(f"{_STATES.get(process_state, 'in an odd state')} (state {process_state})")
    if sign is not None:
        is_fetching = overdue.phase is Phase.STARTING and sign.section is Section.DATA
        words.append("while its data is made ready" if is_fetching else _SECTIONS[sign.section])
    evidence = f": {' '.join(words)}" if words else ""
    return Hang(f"{overdue}{evidence}", process_state, main_thread_frames(dump))


def judge_unkillable(hang: Hang | None, process_state: str | None, seconds: float) -> Hang:
    """The verdict on a trainer that SIGKILL has not ended within `seconds`. `hang`: why it was killed; None: for
    another reason than that it hung."""
    state = f"{_STATES.get(process_state, 'in an odd state')} (state {process_state})" if process_state else "there"
    message = (
        f"the trainer cannot be killed: {seconds:g} s after SIGKILL it is still {state}; "
        "suspect its node, whose device driver or file system does not answer"
    )
    stack = hang.stack if hang is not None else []
    return Hang(f"{hang.message}; {message}" if hang is not None else message, process_state, stack)


def can_dump(process_state: str | None) -> bool:
    """Whether a process in this state can still handle a signal."""
    return process_state not in _STOPPED


def read_process_state(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The kernel's letter for what `pid` is doing; None when it is gone."""
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[0]


def read_stuck_state(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The same of a process that does not die. It is held by any one of its threads that nothing interrupts, while the
    main thread may be gone."""
    states = {read_process_state(int(task.name), proc) for task in (proc / str(pid) / "task").glob("*")}
    return "D" if "D" in states else read_process_state(pid, proc)


def main_thread_frames(dump: list[str]) -> list[str]:
    """The frames of the main thread, innermost first: of the one that handled the signal, which Linux gives to the main
    thread when it can, else of the last one in the dump, which is the oldest."""
    heads = [(number, head[1]) for number, line in enumerate(dump) if (head := _HEAD.match(line))]
    if not heads:
        return []
    current = [number for number, kind in heads if kind == "Current thread"]
    frames = []
    for line in dump[(current or [number for number, _ in heads])[-1] + 1 :]:
        frame = _FRAME.match(line)
        if frame is None:
            break
        frames.append(f"{frame['file']}:{frame['line']} {frame['function']}"[-_FRAME_LENGTH:])
    return frames[:_FRAMES]
