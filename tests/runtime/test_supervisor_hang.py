"""What is a hang, and what is said of it; the page on which a trainer shows what it is doing."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capstan_runtime.beat import Beat, Page, Sign
from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Deadlines
from capstan_runtime.contract.state import Phase, Progress, Section
from capstan_runtime.supervisor.hang import (
    Hang,
    can_dump,
    judge_hang,
    judge_unkillable,
    main_thread_frames,
    read_process_state,
    read_stuck_state,
)
from capstan_runtime.supervisor.watch import Overdue, Watch

UNKILLABLE = "the trainer cannot be killed: 10 s after SIGKILL"
SUSPECT = "suspect its node, whose device driver or file system does not answer"
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
        ([(4, Progress(phase=Phase.COMPILING)), (9, Progress(micro_splits=2))], 9 + 100),
        (
            [(4, Progress(phase=Phase.COMPILING)), (9, Progress(micro_splits=2)), (50, Progress(micro_splits=6))],
            50 + 100,
        ),
        (
            [(4, Progress(phase=Phase.COMPILING)), (9, Progress(micro_splits=4)), (50, Progress(micro_splits=7))],
            9 + 100,
        ),
        ([(4, Progress(phase=Phase.TRAINING, step=1)), (9, Progress(micro_splits=2))], 4 + 20),
        ([(4, Progress(phase=Phase.TRAINING, step=1))], 4 + 20),
        ([(4, Progress(phase=Phase.TRAINING, step=1)), (5, Progress(metrics={"loss": 1}))], 4 + 20),
        ([(4, Progress(phase=Phase.TRAINING, step=1)), (14, Progress(step=2))], 14 + 5 * 10),
        ([(4, Progress(phase=Phase.RESTORING, step=7)), (9, Progress(step=8))], 4 + 100),
        ([(4, Progress(phase=Phase.TRAINING, step=1)), (9, Progress(phase=Phase.SAVING))], 9 + 50 + 20),
        ([(4, Progress(phase=Phase.EVALUATING)), (9, Progress(phase=Phase.EVALUATING))], 9 + 100),
        ([(4, Progress(phase=Phase.STOPPING))], 4 + 50 + 20),
        ([(4, Progress(phase=Phase.STOPPING)), (9, Progress(phase=Phase.STOPPING))], 9 + 50 + 20),
        ([(4, Progress(phase=Phase.SAVING)), (9, Progress(metrics={"save_seconds": 1}))], 4 + 50 + 20),
        ([(4, Progress(phase=Phase.SUCCEEDED))], 4 + 30),
    ],
)
def test_each_phase_has_its_own_deadline(events: list[tuple[float, Progress]], hangs_after: float) -> None:
    watched = watch(*events)
    assert watched.overdue(hangs_after) is None
    assert watched.overdue(hangs_after + 0.1) is not None


def test_the_page_counts_as_progress_of_training_and_not_of_starting_up() -> None:
    watched = watch((4, Progress(phase=Phase.RESTORING)))
    watched.glance(8, now=50)
    assert watched.overdue(104) is None
    assert watched.overdue(105) == Overdue(Phase.RESTORING, step=8, waited=101, limit=100)
    watched.note(Progress(phase=Phase.TRAINING, step=9), now=110)
    watched.glance(10, now=116)
    watched.glance(10, now=120)
    assert watched.overdue(116 + 30) is None, "five times the wait of six seconds"
    assert watched.overdue(147) == Overdue(Phase.TRAINING, step=10, waited=31, limit=30)


def test_what_the_page_shows_is_progress_for_as_long_as_a_trainer_starts() -> None:
    watched = watch()
    watched.stir(Section.DATA, at=7)
    watched.stir(Section.DATA, at=8)
    assert (watched.has_data, watched.data_at) == (False, 8)
    assert watched.overdue(18) is None
    assert watched.overdue(19) == Overdue(Phase.STARTING, step=0, waited=11, limit=10)
    watched.note(Progress(phase=Phase.RESTORING), now=20)
    watched.stir(Section.HOST, at=119)
    assert watched.overdue(121) == Overdue(Phase.RESTORING, step=0, waited=101, limit=100)


def test_each_matrix_that_is_made_smaller_is_progress_before_the_first_step_and_nothing_else_is() -> None:
    watched = watch((4, Progress(phase=Phase.RESTORING)), (5, Progress(phase=Phase.COMPILING)))
    watched.stir(Section.FACTORS, at=90)
    watched.stir(Section.EXCHANGE, at=95)
    assert watched.overdue(190) is None
    assert watched.overdue(191) == Overdue(Phase.COMPILING, step=0, waited=101, limit=100)
    watched.note(Progress(phase=Phase.TRAINING, step=1), now=191)
    watched.stir(Section.FACTORS, at=10_000)
    assert watched.overdue(10_000) is not None


def test_only_more_micro_steps_than_the_membership_asks_for_are_news() -> None:
    watched = Watch(DEADLINES, now=0.0, splits=4)
    watched.note(Progress(phase=Phase.COMPILING), now=5)
    watched.note(Progress(micro_splits=4), now=50)
    assert (watched.split_at, watched.overdue(106) is None) == (None, False)
    watched.note(Progress(micro_splits=8), now=60)
    assert (watched.split_at, watched.overdue(160)) == (60, None)


def test_one_slow_step_in_a_hundred_does_not_move_the_limit() -> None:
    watched = watch((0, Progress(phase=Phase.TRAINING, step=1)))
    now = 0.0
    for step in range(2, 152):
        now += 600 if step == 50 else 8
        watched.glance(step, now)
    assert watched.limit() == 5 * 8


@pytest.mark.parametrize(
    ("overdue", "section", "state", "message"),
    [
        (
            Overdue(Phase.TRAINING, 51, 61.2, 60),
            Section.STEP,
            "T",
            "no step for 61 s (limit 60 s) after step 51: stopped by a signal (state T) while computing",
        ),
        (
            Overdue(Phase.STARTING, 0, 121, 120),
            Section.DATA,
            "S",
            "no progress for 121 s (limit 120 s) in phase Starting: asleep (state S) while its data is made ready",
        ),
        (
            Overdue(Phase.TRAINING, 51, 61, 60),
            Section.EXCHANGE,
            "S",
            "no step for 61 s (limit 60 s) after step 51: asleep (state S) waiting for the other ranks' messages",
        ),
        (
            Overdue(Phase.RESTORING, 0, 601, 600),
            None,
            "D",
            "no progress for 601 s (limit 600 s) in phase Restoring: in a wait that nothing interrupts (state D)",
        ),
        (Overdue(Phase.STARTING, 0, 121, 120), None, None, "no progress for 121 s (limit 120 s) in phase Starting"),
    ],
)
def test_a_hang_is_told_with_what_the_process_was_doing(
    overdue: Overdue, section: Section | None, state: str | None, message: str
) -> None:
    sign = Sign(section, step=51, since_ns=0) if section else None
    assert judge_hang(overdue, sign, state, dump=[]) == Hang(message, state, [])


_HANGING = """
import faulthandler, signal, sys, threading, time
faulthandler.register(signal.SIGUSR1, all_threads=True)
def wait_in_thread():
    time.sleep(60)
def innermost():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
def outer():
    innermost()
threading.Thread(target=wait_in_thread, daemon=True).start()
outer()
"""


def test_the_main_thread_s_frames_are_found_in_a_real_dump(tmp_path: Path) -> None:
    script = tmp_path / "hanging.py"
    script.write_text(_HANGING)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(10)
        dump = []
        while not dump or "<module>" not in dump[-1]:
            dump.append(process.stderr.readline().rstrip("\n"))
        process.kill()
    assert sum("most recent call first" in line for line in dump) == 2
    innermost, *outer = main_thread_frames(["step 1/30", *dump, "step 2/30"])
    assert re.fullmatch(rf"{re.escape(str(script))}:[789] innermost", innermost), "before, in or after the sleep"
    assert outer == [f"{script}:11 outer", f"{script}:13 <module>"]


def test_without_a_current_thread_the_oldest_one_is_taken() -> None:
    assert main_thread_frames([]) == []
    assert main_thread_frames(
        [
            "Thread 0x00007f11 (most recent call first):",
            '  File "/a/pool.py", line 3 in work',
            "",
            "Thread 0x00007f00 (most recent call first):",
            '  File "/a/main.py", line ??? in wait',
            '  File "/a/main.py", line 9 in <module>',
        ]
    ) == ["/a/main.py:??? wait", "/a/main.py:9 <module>"]


@pytest.mark.parametrize(
    ("hang", "state", "verdict"),
    [
        (
            None,
            "D",
            Hang(f"{UNKILLABLE} it is still in a wait that nothing interrupts (state D); {SUSPECT}", "D", []),
        ),
        (
            Hang("no step for 61 s (limit 60 s) after step 51", "S", ["a.py:3 f"]),
            "Z",
            Hang(
                f"no step for 61 s (limit 60 s) after step 51; {UNKILLABLE} it is still in an odd state (state Z); "
                f"{SUSPECT}",
                "Z",
                ["a.py:3 f"],
            ),
        ),
        (None, None, Hang(f"{UNKILLABLE} it is still there; {SUSPECT}", None, [])),
    ],
)
def test_what_cannot_be_killed_is_told_with_the_reason_for_killing_it(
    hang: Hang | None, state: str | None, verdict: Hang
) -> None:
    assert judge_unkillable(hang, state, 10.0) == verdict


def test_one_thread_that_nothing_interrupts_holds_the_whole_process(tmp_path: Path) -> None:
    for pid, state in ((7, "Z"), (8, "S"), (9, "D")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (python (x)) {state} 1 7")
    (tmp_path / "7" / "task" / "7").mkdir(parents=True)
    (tmp_path / "7" / "task" / "8").mkdir()
    assert read_stuck_state(7, tmp_path) == "Z"
    (tmp_path / "7" / "task" / "9").mkdir()
    assert read_stuck_state(7, tmp_path) == "D"
    assert read_stuck_state(5, tmp_path) is None


def test_the_kernel_says_what_a_process_does() -> None:
    assert read_process_state(os.getpid()) == "R"
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(19)
        give_up_at = time.monotonic() + 10
        while read_process_state(process.pid) != "T":
            assert time.monotonic() < give_up_at
        process.kill()
    assert read_process_state(process.pid) is None
    assert not can_dump("T")
    assert can_dump("S")


def test_a_page_shows_what_its_trainer_entered_last() -> None:
    page = Page()
    assert page.read() is None
    beat = Beat.from_environ({env.PAGE: str(page.descriptor)})
    before = time.monotonic_ns()
    for section in Section:
        beat.enter(section, step=2**40)
        sign = page.read()
        assert sign is not None
        assert (sign.section, sign.step) == (section, 2**40)
        assert before <= sign.since_ns <= time.monotonic_ns()
    page.close()
    Beat.from_environ({}).enter(Section.HOST, step=0)


def test_a_page_that_makes_no_sense_says_nothing() -> None:
    page = Page()
    os.pwrite(page.descriptor, b"\xff" * 64, 0)
    assert page.read() is None
    page.close()


def test_a_page_is_read_whole_while_it_is_written() -> None:
    """A child writes pairs that belong together; no reading mixes two of them."""
    page = Page()
    writer = (
        "import sys; from capstan_runtime.beat import Beat; from capstan_runtime.contract.state import Section\n"
        "beat = Beat(int(sys.argv[1]))\n"
        "while True:\n"
        "    beat.enter(Section.EXCHANGE, 2**62 - 1); beat.enter(Section.DATA, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", writer, str(page.descriptor)], pass_fds=[page.descriptor]) as process:
        while page.read() is None:
            time.sleep(0.01)
        seen = {(sign.section, sign.step) for _ in range(20_000) if (sign := page.read()) is not None}
        process.kill()
    page.close()
    assert seen == {(Section.EXCHANGE, 2**62 - 1), (Section.DATA, 0)}
