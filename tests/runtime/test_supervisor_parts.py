"""The pure parts of the supervisor: what an end means, what a report changes, what fits into last words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from capstan_runtime.beat import Sign
from capstan_runtime.contract.chaos import Fault, Injected, Injection
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.state import (
    Checkpoint,
    Exit,
    Phase,
    Progress,
    Quarantine,
    Restored,
    Section,
    Source,
    State,
)
from capstan_runtime.supervisor.ending import Evidence, exit_of
from capstan_runtime.supervisor.exposition import Facts, render
from capstan_runtime.supervisor.hang import Hang
from capstan_runtime.supervisor.last_words import LIMIT_BYTES, fit
from capstan_runtime.supervisor.ledger import Ledger
from capstan_runtime.supervisor.memory import oom_kills
from capstan_runtime.supervisor.news import is_news, is_under_chaos, taken_in
from capstan_runtime.supervisor.output import exception_line

HEAD = "Traceback (most recent call last):"
KILLED = "the trainer was killed by SIGKILL"

SEEN = Evidence(
    fence=3,
    status=1,
    at=5.0,
    has_succeeded=False,
    failure=None,
    message=None,
    bad_batch=None,
    hang=None,
    step=12,
    sign=None,
    has_spoken=True,
    is_program=False,
    was_asked_to_stop=False,
    was_asked_to_leave=False,
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
        (
            {"status": 0, "lines": [HEAD, "KeyError: 1", "that was caught"]},
            0,
            None,
            FailureClass.APPLICATION,
            "the trainer exited with code 0 without having said that it is done",
        ),
        (
            {"status": 0, "is_program": True},
            0,
            None,
            FailureClass.APPLICATION,
            "the program exited with code 0 before its last step was committed; call job.save() after every step, with "
            "is_last=True to end early",
        ),
        (
            {"status": 0, "is_program": True, "has_spoken": False},
            0,
            None,
            FailureClass.APPLICATION,
            "the program exited with code 0 without having attached; call capstan_runtime.attach() in the process of "
            "program.command",
        ),
        (
            {"status": 0, "failure": FailureClass.CONFIG, "message": "no such file"},
            0,
            None,
            FailureClass.CONFIG,
            "no such file",
        ),
        ({"status": 42}, 42, None, FailureClass.APPLICATION, "the trainer exited with code 42"),
        ({"status": 78}, 78, None, FailureClass.CONFIG, "the trainer exited with code 78"),
        ({"status": -11}, 139, "SIGSEGV", FailureClass.CRASH, "the trainer was killed by SIGSEGV"),
        ({"status": -9}, 137, "SIGKILL", FailureClass.CRASH, KILLED),
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
        ({"was_asked_to_stop": True, "status": 80}, 80, None, FailureClass.STOPPED, "stopped as asked"),
        (
            {"was_asked_to_leave": True, "status": 80},
            80,
            None,
            FailureClass.STOPPED,
            "left after the checkpoint of step 12, as asked",
        ),
        ({"was_asked_to_leave": True, "status": -9}, 137, "SIGKILL", FailureClass.CRASH, KILLED),
        ({"status": 80}, 80, None, FailureClass.STOPPED, "stopped with the other ranks after step 12"),
        ({"status": -9, "lines": ["step 3/30"], "has_spoken": False}, 137, "SIGKILL", FailureClass.CRASH, KILLED),
        ({"status": -9, "lines": [HEAD, "  File x", "KeyError: 1"]}, 137, "SIGKILL", FailureClass.CRASH, KILLED),
        (
            {"was_asked_to_stop": True, "status": -9},
            137,
            "SIGKILL",
            FailureClass.STOPPED,
            "asked to stop, was killed by SIGKILL",
        ),
        (
            {"lines": [HEAD, '  File "x"', "KeyError: 'w'", "bye"]},
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
        fence=3,
        code=code,
        signal=signal,
        failure=failure,
        message=message,
        last_lines=seen.lines,
        step=12,
        asked=seen.was_asked_to_stop,
        at=5.0,
    )


def test_a_hang_leaves_its_evidence() -> None:
    seen = replace(
        SEEN, status=-9, hang=Hang("no step", "T", ["a.py:3 f"]), sign=Sign(Section.DATA, step=13, since_ns=0), step=13
    )
    assert exit_of(seen) == Exit(
        fence=3,
        code=79,
        signal="SIGKILL",
        failure=FailureClass.HANG,
        message="no step",
        step=13,
        section=Section.DATA,
        process_state="T",
        stack=["a.py:3 f"],
        at=5.0,
    )


def test_the_batch_to_leave_out_goes_with_the_failure() -> None:
    end = exit_of(replace(SEEN, failure=FailureClass.NUMERICAL, message="NaN", bad_batch=41, status=77))
    assert end is not None
    assert (end.failure, end.bad_batch) == (FailureClass.NUMERICAL, 41)


@pytest.mark.parametrize("status", [0, -11])
def test_a_trainer_that_committed_its_last_step_has_succeeded(status: int) -> None:
    assert exit_of(replace(SEEN, has_succeeded=True, status=status)) is None


def test_only_ten_lines_of_two_hundred_characters_are_kept() -> None:
    end = exit_of(replace(SEEN, lines=[f"{number} " + "x" * 300 for number in range(20)]))
    assert end is not None
    assert [(line[:2], len(line)) for line in end.last_lines] == [(f"{number}", 200) for number in range(10, 20)]


def test_the_exception_of_the_last_traceback_counts() -> None:
    lines = [
        HEAD,
        "  File a",
        "ValueError: first",
        "",
        "During handling",
        HEAD,
        "  File b",
        "    x",
        "OSError: last",
        "!",
    ]
    assert exception_line(lines) == "OSError: last"
    assert exception_line(["no trace"]) is None
    assert exception_line([HEAD, "  File a"]) is None


def full_state(entries: int) -> State:
    """A State with `entries` in each of its lists, all texts as long as they get."""
    checkpoint = Checkpoint(
        step=100, root="blake3:" + "a" * 64, at=1.0, verified_at=1700000000.25, logical="blake3:" + "c" * 64
    )
    return State(
        pod="p" * 253,
        uid="u" * 36,
        fence=7,
        rank=1,
        world=2,
        phase=Phase.EXITED,
        step=120,
        metrics={f"metric_{number}": 0.1 + number for number in range(5 * entries)},
        checkpoint=checkpoint,
        resumed_from=checkpoint,
        staged=checkpoint,
        restored=Restored(source=Source.MEMORY, bytes=2**40, seconds=0.123456789, verify_seconds=0.123456789),
        timeline=dict.fromkeys(Phase, 1700000000.123456),
        seconds=dict.fromkeys(Phase, 12345.123456),
        injected=[
            Injected(name=f"chaos-{number}", fault=Fault.GPU_OUT_OF_MEMORY, rank=3, step=number, at=1700000000.5)
            for number in range(entries)
        ],
        notes=["n" * 300 for _ in range(min(5, entries))],
        quarantined=[Quarantine(step=n, root="blake3:" + "b" * 64, reason="r" * 300) for n in range(entries)],
        exit=Exit(
            fence=7,
            code=1,
            failure=FailureClass.HANG,
            message="é" * 500,
            last_lines=["é" * 200 for _ in range(min(10, entries))],
            step=120,
            section=Section.EXCHANGE,
            process_state="S",
            stack=[f"{number}" + "s" * 199 for number in range(min(12, entries))],
            at=2.0,
        ),
    )


@pytest.mark.parametrize("entries", [0, 1, 3, 8, 20, 60])
def test_last_words_fit_and_keep_what_matters(entries: int) -> None:
    state = full_state(entries)
    words = fit(state)
    assert len(words) <= LIMIT_BYTES
    found = State.parse(json.loads(words))
    assert found.exit is not None
    assert (found.fence, found.step, found.checkpoint, found.staged) == (7, 120, state.checkpoint, state.staged)
    assert (found.exit.failure, found.exit.step, found.exit.section) == (FailureClass.HANG, 120, Section.EXCHANGE)
    assert found.exit.message == "é" * 500
    if len(state.model_dump_json(by_alias=True, exclude_none=True).encode()) <= LIMIT_BYTES:
        assert found == state


def test_in_last_words_the_innermost_frames_and_the_newest_entries_stay_longest() -> None:
    state = State(
        pod="p",
        uid="u",
        exit=Exit(
            fence=1,
            code=79,
            failure=FailureClass.HANG,
            message="m",
            last_lines=[f"line {number} " + "x" * 180 for number in range(10)],
            stack=[f"frame {number} " + "x" * 180 for number in range(12)],
            at=1.0,
        ),
    )
    found = State.parse(json.loads(fit(state))).exit
    assert found is not None
    assert [line[:6] for line in found.last_lines] == [f"line {number}" for number in range(3, 10)]
    assert len(found.stack) == 12
    found = State.parse(json.loads(fit(state, 1400))).exit
    assert found is not None
    assert [line[:6] for line in found.last_lines] == ["line 9"]
    assert [frame[:7] for frame in found.stack] == [f"frame {number}" for number in range(4)]


def test_the_kernel_s_count_of_memory_kills_is_read(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    assert oom_kills(events) == 0
    events.write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert oom_kills(events) == 2


NOTHING = Facts(restarts=0, has_warm_spare=False, is_under_chaos=False)


def test_metrics_are_prometheus_text() -> None:
    state = State(pod="p", uid="u", phase=Phase.TRAINING, step=5, metrics={"loss": 0.25, "busy_seconds": 10.0})
    text = render(state, replace(NOTHING, restarts=2))
    assert (
        "# HELP capstan_trainer_loss Newest loss.\n# TYPE capstan_trainer_loss gauge\ncapstan_trainer_loss 0.25\n"
        in text
    )
    assert "capstan_trainer_step 5\n" in text
    assert "# TYPE capstan_trainer_restarts_total counter\ncapstan_trainer_restarts_total 2\n" in text
    assert 'capstan_trainer_phase{phase="Training"} 1\n' in text
    assert "capstan_trainer_busy_seconds 10.0\n" in text
    for unknown in ("capstan_trainer_steps ", "phase_seconds", "restore", "injected_faults"):
        assert unknown not in text, "what is not known yet is absent"


def test_metrics_tell_the_recovery_and_mark_what_chaos_did() -> None:
    killed = Injected(name="k", fault=Fault.KILL, rank=0, step=3, at=1.0)
    state = State(
        pod="p",
        uid="u",
        seconds={Phase.STARTING: 1.5, Phase.TRAINING: 8.0},
        restored=Restored(source=Source.MEMORY, bytes=2048, seconds=0.5, verify_seconds=0.25),
        injected=[killed, killed.model_copy(update={"name": "l"})],
    )
    lines = render(state, replace(NOTHING, has_warm_spare=True, is_under_chaos=True)).splitlines()
    for line in (
        'capstan_trainer_phase_seconds{phase="Starting"} 1.5',
        'capstan_trainer_phase_seconds{phase="Training"} 8.0',
        'capstan_trainer_restored_bytes{source="Memory"} 2048',
        'capstan_trainer_restore_seconds{source="Memory"} 0.5',
        'capstan_trainer_restore_verify_seconds{source="Memory"} 0.25',
        "capstan_trainer_warm_spare 1",
        'capstan_trainer_chaos_active{tag="CHAOS"} 1',
        'capstan_trainer_injected_faults{fault="Kill",tag="CHAOS"} 2',
    ):
        assert line in lines


def test_seconds_by_phase_sum_to_the_time_of_the_attempt() -> None:
    ledger = Ledger(started_at=1000.0, started=50.0)
    for phase, now in (
        (Phase.RESTORING, 51.0),
        (Phase.COMPILING, 53.5),
        (Phase.TRAINING, 60.0),
        (Phase.TRAINING, 61.0),
        (Phase.SAVING, 64.0),
        (Phase.TRAINING, 64.25),
        (Phase.EXITED, 70.25),
    ):
        ledger.enter(phase, now)
    assert ledger.seconds == {
        Phase.STARTING: 1.0,
        Phase.RESTORING: 2.5,
        Phase.COMPILING: 6.5,
        Phase.TRAINING: 10.0,
        Phase.SAVING: 0.25,
    }
    assert sum(ledger.seconds.values()) == 70.25 - 50.0
    assert ledger.timeline == {
        Phase.STARTING: 1000.0,
        Phase.RESTORING: 1001.0,
        Phase.COMPILING: 1003.5,
        Phase.TRAINING: 1010.0,
        Phase.SAVING: 1014.0,
        Phase.EXITED: 1020.25,
    }


def test_a_report_changes_what_it_names_and_lists_stay_short() -> None:
    state = State(pod="p", uid="u", step=3, metrics={"loss": 1.0})
    assert taken_in(state, Progress()) == {}
    staged = Checkpoint(step=4, root="blake3:" + "a" * 64, at=1.0)
    assert taken_in(state, Progress(step=4, staged=staged, metrics={"loss": 0.5})) == {
        "step": 4,
        "staged": staged,
        "metrics": {"loss": 0.5},
    }
    fault = Injected(name="k", fault=Fault.KILL, rank=0, step=3, at=1.0)
    quarantine = Quarantine(step=1, root="blake3:", reason="r" * 5000)
    for _ in range(30):
        state = state.model_copy(
            update=taken_in(state, Progress(note="n" * 5000, injected=fault, quarantined=quarantine))
        )
    assert state.notes == ["n" * 300] * 5
    assert state.injected == [fault] * 20
    assert state.quarantined == [quarantine.model_copy(update={"reason": "r" * 300})] * 20
    assert is_news(Progress(note="n"))
    assert is_news(Progress(injected=fault))
    assert not is_news(Progress(step=4, staged=staged))


@pytest.mark.parametrize(
    ("fault", "trains_since", "now", "active"),
    [
        (Fault.KILL, None, 101, True),
        (Fault.KILL, 90, 101, True),
        (Fault.KILL, 110, 111, False),
        (Fault.SLOW_RANK, 90, 119, True),
        (Fault.SLOW_RANK, 90, 121, False),
    ],
)
def test_chaos_is_active_until_its_effect_is_over(
    fault: Fault, trains_since: float | None, now: float, active: bool
) -> None:
    state = State(
        pod="p",
        uid="u",
        injected=[Injected(name="a", fault=fault, rank=0, step=3, at=100.0)],
        timeline={Phase.TRAINING: trains_since} if trains_since else {},
    )
    assert is_under_chaos(state, [Injection(name="a", fault=fault, duration_seconds=20.0)], now) is active
