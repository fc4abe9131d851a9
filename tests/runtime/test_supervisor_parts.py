"""The pure parts of the supervisor: what is a hang, what does an end mean, what fits into last words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.run_config import Deadlines
from capstan_runtime.contract.state import Checkpoint, Exit, Phase, Progress, Quarantine, State
from capstan_runtime.supervisor.ending import Evidence, exit_of
from capstan_runtime.supervisor.exposition import render
from capstan_runtime.supervisor.last_words import LIMIT_BYTES, fit
from capstan_runtime.supervisor.memory import oom_kills
from capstan_runtime.supervisor.output import exception_line
from capstan_runtime.supervisor.watch import Watch

DEADLINES = Deadlines(form=10, first_step=100, hang=20, save=50, stop=5)


def watch(*events: tuple[float, Progress]) -> Watch:
    """A watch of a trainer started at 0 that reported `events` (seconds, line)."""
    watched = Watch(DEADLINES, now=0.0)
    for now, progress in events:
        watched.note(progress, now)
    return watched


@pytest.mark.parametrize(
    ("events", "hangs_after"),
    [
        ([], 10),
        ([(4, Progress(phase=Phase.RESTORING))], 4 + 100),
        ([(4, Progress(phase=Phase.RESTORING)), (9, Progress(phase=Phase.COMPILING))], 4 + 100),
        ([(4, Progress(phase=Phase.TRAINING, step=1))], 4 + 20),
        ([(4, Progress(phase=Phase.TRAINING, step=1)), (5, Progress(metrics={"loss": 1}))], 4 + 20),
        ([(4, Progress(phase=Phase.TRAINING, step=1)), (14, Progress(step=2))], 14 + 5 * 10),
        ([(4, Progress(phase=Phase.TRAINING, step=1)), (9, Progress(phase=Phase.SAVING))], 9 + 50 + 20),
        ([(4, Progress(phase=Phase.EVALUATING)), (9, Progress(phase=Phase.EVALUATING))], 9 + 100),
        ([(4, Progress(phase=Phase.STOPPING))], 4 + 50 + 20),
        ([(4, Progress(phase=Phase.SUCCEEDED))], 4 + 30),
    ],
)
def test_each_phase_has_its_own_deadline(events: list[tuple[float, Progress]], hangs_after: float) -> None:
    watched = watch(*events)
    assert watched.overdue(hangs_after) is None
    assert watched.overdue(hangs_after + 0.1) is not None


def test_a_hang_is_told_with_phase_step_and_limit() -> None:
    watched = watch((4, Progress(phase=Phase.TRAINING, step=7)))
    assert watched.overdue(30) == "no progress for 26 s in phase Training after step 7; the limit is 20 s"


SEEN = Evidence(
    fence=3,
    status=1,
    at=5.0,
    has_succeeded=False,
    failure=None,
    message=None,
    hang=None,
    has_spoken=True,
    was_asked_to_stop=False,
    was_out_of_memory=False,
    lines=[],
)


@pytest.mark.parametrize(
    ("changes", "code", "signal", "failure", "message"),
    [
        ({}, 1, None, FailureClass.APPLICATION, "the trainer exited with code 1"),
        (
            {"lines": ["python: No module named x"], "has_spoken": False},
            1,
            None,
            FailureClass.APPLICATION,
            "the trainer exited with code 1 before it began: python: No module named x",
        ),
        ({"lines": ["step 3/30"]}, 1, None, FailureClass.APPLICATION, "the trainer exited with code 1"),
        ({"status": 42}, 42, None, FailureClass.APPLICATION, "the trainer exited with code 42"),
        ({"status": 78}, 78, None, FailureClass.CONFIG, "the trainer exited with code 78"),
        ({"status": -11}, 139, "SIGSEGV", FailureClass.CRASH, "the trainer was killed by SIGSEGV"),
        ({"status": -9}, 137, "SIGKILL", FailureClass.CRASH, "the trainer was killed by SIGKILL"),
        (
            {"status": -9, "was_out_of_memory": True},
            137,
            "SIGKILL",
            FailureClass.HOST_OUT_OF_MEMORY,
            "the kernel killed the trainer: the container's memory limit was reached",
        ),
        (
            {"failure": FailureClass.RETRYABLE, "message": "a peer is gone", "status": -9},
            137,
            "SIGKILL",
            FailureClass.RETRYABLE,
            "a peer is gone",
        ),
        ({"hang": "no progress", "status": -9}, 79, "SIGKILL", FailureClass.HANG, "no progress"),
        ({"was_asked_to_stop": True, "status": 80}, 80, None, FailureClass.STOPPED, "stopped as asked"),
        (
            {"was_asked_to_stop": True, "status": -9},
            137,
            "SIGKILL",
            FailureClass.STOPPED,
            "asked to stop, was killed by SIGKILL",
        ),
        (
            {"lines": ["Traceback (most recent call last):", '  File "x"', "KeyError: 'w'", "bye"]},
            1,
            None,
            FailureClass.APPLICATION,
            "KeyError: 'w'",
        ),
    ],
)
def test_an_end_is_judged_by_the_strongest_evidence(
    changes: dict[str, object], code: int, signal: str | None, failure: FailureClass, message: str
) -> None:
    seen = replace(SEEN, **changes)
    assert exit_of(seen) == Exit(
        fence=3, code=code, signal=signal, failure=failure, message=message, last_lines=seen.lines, at=5.0
    )


@pytest.mark.parametrize("changes", [{"status": 0}, {"has_succeeded": True, "status": -11}])
def test_a_trainer_that_committed_its_last_step_has_succeeded(changes: dict[str, object]) -> None:
    assert exit_of(replace(SEEN, **changes)) is None


def test_only_ten_lines_of_two_hundred_characters_are_kept() -> None:
    end = exit_of(replace(SEEN, lines=[f"{number} " + "x" * 300 for number in range(20)]))
    assert end is not None
    assert [(line[:2], len(line)) for line in end.last_lines] == [(f"{number}", 200) for number in range(10, 20)]


def test_the_exception_of_the_last_traceback_counts() -> None:
    head = "Traceback (most recent call last):"
    lines = [
        head,
        "  File a",
        "ValueError: first",
        "",
        "During handling",
        head,
        "  File b",
        "    x",
        "OSError: last",
        "!",
    ]
    assert exception_line(lines) == "OSError: last"
    assert exception_line(["no trace"]) is None
    assert exception_line([head, "  File a"]) is None


def full_state(lines: int, quarantined: int) -> State:
    return State(
        pod="p" * 60,
        uid="u" * 36,
        fence=7,
        rank=1,
        world=2,
        phase=Phase.EXITED,
        step=120,
        metrics={f"metric_{number}": 0.1 + number for number in range(20)},
        checkpoint=Checkpoint(step=100, root="blake3:" + "a" * 64, at=1.0),
        quarantined=[Quarantine(step=n, root="blake3:" + "b" * 64, reason="r" * 300) for n in range(quarantined)],
        exit=Exit(
            fence=7,
            code=1,
            failure=FailureClass.APPLICATION,
            message="m" * 500,
            last_lines=["é" * 200 for _ in range(lines)],
            at=2.0,
        ),
    )


@pytest.mark.parametrize(("lines", "quarantined"), [(0, 0), (10, 0), (0, 20), (10, 20)])
def test_last_words_fit_and_keep_what_matters(lines: int, quarantined: int) -> None:
    state = full_state(lines, quarantined)
    words = fit(state)
    assert len(words) <= LIMIT_BYTES
    found = State.parse(json.loads(words))
    assert found.exit is not None
    assert (found.fence, found.step, found.checkpoint) == (7, 120, state.checkpoint)
    assert (found.exit.failure, found.exit.message) == (FailureClass.APPLICATION, "m" * 500)
    if len(state.model_dump_json(by_alias=True, exclude_none=True)) <= LIMIT_BYTES and not lines:
        assert found == state


def test_the_kernel_s_count_of_memory_kills_is_read(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    assert oom_kills(events) == 0
    events.write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert oom_kills(events) == 2


def test_metrics_are_prometheus_text() -> None:
    state = State(pod="p", uid="u", phase=Phase.TRAINING, step=5, metrics={"loss": 0.25, "samples_per_second": 10.0})
    text = render(state, restarts=2)
    assert (
        "# HELP capstan_trainer_loss Newest loss.\n# TYPE capstan_trainer_loss gauge\ncapstan_trainer_loss 0.25\n"
        in text
    )
    assert "capstan_trainer_step 5\n" in text
    assert "capstan_trainer_restarts_total 2\n" in text
    assert 'capstan_trainer_phase{phase="Training"} 1\n' in text
    assert "capstan_trainer_steps" not in text, "what is not known yet is absent"
