"""A warm spare that is given its membership before it is ready, and one that then comes to nothing."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from capstan_runtime.beat import Page
from capstan_runtime.contract import env
from capstan_runtime.contract.state import Phase, Section
from tests.support.training_runs import FIRST_STEP, Run, StartPod, alone, scripted

STAND_BY = """
import os, sys, time
import capstan_runtime.preparing as preparing
from capstan_runtime import entry
from capstan_runtime.contract import env

def prepare(environ, alive):
    alive()
    return "prepared"

preparing.prepare = prepare

def load():
    time.sleep(0.5)
    return "engine"

print(entry._stand_by(load, int(sys.argv[1])), os.environ[env.MEMBERSHIP])
"""


def test_a_spare_begins_though_nobody_waits_to_hear_that_it_is_ready() -> None:
    ours, its = socket.socketpair()
    page = Page()
    with its:
        spare = subprocess.Popen(
            [sys.executable, "-c", STAND_BY, str(its.fileno())],
            env={**os.environ, env.PAGE: str(page.descriptor)},
            pass_fds=[its.fileno(), page.descriptor],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ours.sendall(b'{"fence": 2}\n')
    ours.close()
    out, errors = spare.communicate(timeout=60)
    assert (spare.returncode, out) == (0, "('engine', 'prepared') {\"fence\": 2}\n\n"), errors
    sign = page.read()
    assert (sign and sign.section, sign and sign.step) == (Section.DATA, 0), "that its data came nearer, it has shown"
    page.close()


def test_a_spare_whose_data_takes_longer_than_forming_a_world_may_is_no_hang_while_it_comes_nearer(
    tmp_path: Path, start_pod: StartPod
) -> None:
    run = Run(tmp_path, overrides={"deadlines": {"form": 5}})
    nearer = {"enter": ["Data", 0]}
    spare = (nearer, {"print": "its data is on its way"}, *(nearer, {"sleep": 2.5}) * 3)
    pod = start_pod(run, **scripted(*FIRST_STEP, {"sleep": 60}, spare=spare))
    give_up_at = time.monotonic() + 30
    while "its data is on its way" not in pod.log.read_text():
        assert time.monotonic() < give_up_at, pod.log.read_text()
        time.sleep(0.02)
    pod.put(alone(1, pod))
    state = pod.wait_for(Phase.TRAINING, Phase.EXITED)
    assert (state.phase, state.exit) == (Phase.TRAINING, None), pod.log.read_text()
    log = pod.log.read_text()
    assert "the warm spare is the trainer of fence 1, still importing" in log
    assert "no progress" not in log, "nor does another trainer start cold in its place"


def test_a_trainer_that_starts_cold_in_the_place_of_a_spare_knows_that_it_is_to_leave(
    tmp_path: Path, start_pod: StartPod
) -> None:
    spare = ({"print": "cannot import"}, {"sleep": 1.0}, {"exit": 1})
    script = scripted(*FIRST_STEP, {"sleep": 60}, spare=spare)
    pod = start_pod(Run(tmp_path, overrides={"warmSpare": True}), **script)
    pod.put(alone(1, pod))
    pod.wait_for(Phase.TRAINING)
    member = alone(2, pod)
    pod.put(member)
    give_up_at = time.monotonic() + 10
    while "the warm spare is the trainer of fence 2, still importing" not in pod.log.read_text():
        assert time.monotonic() < give_up_at, pod.log.read_text()
        time.sleep(0.02)
    pod.put(member.model_copy(update={"leave_at_checkpoint": True}))
    assert pod.wait_for(Phase.TRAINING).fence == 2
    assert pod.log.read_text().rstrip().endswith("of no use; the trainer starts cold")
    environ = Path(f"/proc/{pod.children()[0]}/environ").read_text()
    assert '"leaveAtCheckpoint":true' in environ
