"""What a supervisor says is served reaches the retention of the trainer that runs, and nothing else happens to it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract import env
from capstan_runtime.contract.state import Phase
from capstan_runtime.notices import Notices, read_keep_list
from tests.support.training_runs import PATIENCE_SECONDS, Run, StartPod, alone, wait_until_gone

roots = st.frozensets(st.text(max_size=8), max_size=4)


@given(st.lists(roots, max_size=5), st.binary(max_size=20).filter(lambda some: b"\n" not in some))
def test_the_last_whole_line_counts(told: list[frozenset[str]], half_a_line: bytes) -> None:
    notices = Notices()
    try:
        for each in told:
            notices.write(each)
        os.write(notices.descriptor, half_a_line)
        found = read_keep_list({env.NOTICES: str(notices.descriptor)})
    finally:
        notices.close()
    assert found == (told[-1] if told else frozenset())


def test_without_a_supervisor_nobody_asks_to_keep_anything() -> None:
    assert read_keep_list({}) == frozenset()


def until(holds: Callable[[], bool], log: Path) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < give_up_at, log.read_text()
        time.sleep(0.05)


def test_what_is_served_outlives_attempts_and_goes_when_it_is_not_served_any_more(
    tmp_path: Path, start_pod: StartPod
) -> None:
    run = Run(tmp_path, steps=100_000, save_every=10, overrides={"checkpoint": {"retention": {"last": 2}}})

    def steps() -> list[int]:
        """In the store, newest first."""
        return [each.name.step for each in list_candidates(FolderStore(run.store), "3f1c-uid").candidates]

    pod = start_pod(run, STEP_SECONDS="0.005")
    member = alone(1, pod)
    assert pod.put(member)[0] == 200
    until(lambda: pod.state().checkpoint is not None, pod.log)
    (trainer,) = pod.children()
    os.kill(trainer, signal.SIGSTOP)  # what is there now stays until it goes on
    newest = list_candidates(FolderStore(run.store), "3f1c-uid").candidates[0]
    assert newest.root is not None
    served = newest.name.step
    answer = pod.put(member.model_copy(update={"keep_roots": (newest.root,)}))
    assert (answer[0], answer[1]["keepRoots"]) == (200, [newest.root])
    os.kill(trainer, signal.SIGCONT)
    until(lambda: steps()[0] >= served + 50 and len(steps()) <= 4, pod.log)
    assert (pod.children(), served in steps()) == ([trainer], True), "the same trainer, and it kept it"

    assert pod.put(member)[1]["keepRoots"] == [newest.root], "an operator that does not know takes nothing back"
    os.kill(trainer, signal.SIGKILL)
    wait_until_gone(trainer)
    pod.wait_for(Phase.EXITED)
    again = alone(2, pod, floor_step=10)
    assert pod.put(again)[1]["keepRoots"] == [newest.root]
    before = steps()[0]
    until(lambda: steps()[0] >= before + 50 and len(steps()) <= 4, pod.log)
    (trainer,) = pod.children()
    assert served in steps()

    assert pod.put(again.model_copy(update={"keep_roots": ()}))[1]["keepRoots"] == []
    until(lambda: served not in steps(), pod.log)
    assert pod.children() == [trainer]
