"""A rank whose data is there waits for those that copy theirs, and for nobody else."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime import data_of_peers
from capstan_runtime.context import TrainContext
from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Phase, State
from capstan_runtime.data_of_peers import await_data_of_peers
from tests.support.engines import FLAX, MLP, context_of
from tests.support.training_runs import FIRST_STEP, TOKEN, Run, StartPod, alone, scripted

COPIES = {"phase": Phase.STARTING, "has_data": False}
IMPORTS = {"phase": Phase.STARTING}
IS_THERE = {"phase": Phase.STARTING, "has_data": True}


def second_of_three(folder: Path, form_seconds: float = 120.0) -> TrainContext:
    (folder / "token").write_text(TOKEN)
    context = context_of(FLAX, MLP, virtual_ranks=3, batch=3, patience_seconds=form_seconds)
    peers = ("zero:1", "one:1", "two:1")
    member = Membership(fence=4, rank=1, world=3, coordinator="zero:2", peers=peers)
    return replace(context, membership=member, environ={env.TOKEN_FILE: str(folder / "token")})


def said(*states: dict[str, Any] | None, fence: int = 4) -> list[State | None]:
    return [
        None if each is None else State.model_validate({"pod": "p", "uid": "u", "fence": fence, **each}, by_name=True)
        for each in states
    ]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_of_peers, "_AGAIN_SECONDS", 0.01)


@pytest.mark.parametrize(
    "two",
    [
        said(COPIES, COPIES, IS_THERE),
        said(IMPORTS, COPIES, {"phase": Phase.EXITED}),
        [*said({"phase": Phase.EXITED}, fence=3), *said(IMPORTS, COPIES, {"phase": Phase.RESTORING})],
        [*said(COPIES), None, *said(IS_THERE)],
        [*said(COPIES), *said(IMPORTS, fence=5)],
    ],
    ids=["it copies", "it fails", "it is told late", "it does not answer once", "a newer attempt has begun"],
)
def test_a_peer_is_asked_until_its_data_is_there(two: list[State | None], tmp_path: Path) -> None:
    answers = {"zero:1": said(IS_THERE), "two:1": list(two)}
    beats: list[None] = []

    def ask(address: str, token: str) -> State | None:
        assert token == TOKEN
        return answers[address].pop(0)

    await_data_of_peers(second_of_three(tmp_path), lambda: beats.append(None), ask)
    assert answers == {"zero:1": [], "two:1": []}
    assert len(beats) == len(two)


def test_of_a_peer_that_says_nothing_no_more_is_expected_than_a_world_may_take_to_form(tmp_path: Path) -> None:
    began = time.monotonic()
    await_data_of_peers(second_of_three(tmp_path, form_seconds=0.3), lambda: None, lambda address, token: None)
    assert 0.3 <= time.monotonic() - began < 5.0


def test_a_supervisor_says_whether_the_data_is_there(tmp_path: Path, start_pod: StartPod) -> None:
    nearer, there = {"enter": ["Data", 0]}, {"enter": ["Exchange", 0]}
    script = (nearer, {"print": "copies"}, {"wait for": 10}, there, {"print": "has it"}, {"wait for": 12}, *FIRST_STEP)
    pod = start_pod(Run(tmp_path), **scripted(*script, {"sleep": 60}))
    pod.put(alone(1, pod))
    address = f"{pod.address}:{env.SUPERVISOR_PORT}"

    def wait_until(has_data: bool) -> State:
        give_up_at = time.monotonic() + 30
        while True:
            state = data_of_peers._state_of(address, TOKEN)
            assert state is not None
            if state.has_data is has_data:
                return state
            assert time.monotonic() < give_up_at, pod.log.read_text()
            time.sleep(0.02)

    copying = wait_until(False)
    assert copying.phase is Phase.STARTING
    assert copying.data_at == pytest.approx(time.time(), abs=30)
    assert data_of_peers._state_of(address, "another token") is None
    os.kill(pod.children()[0], 10)
    wait_until(True)
    os.kill(pod.children()[0], 12)
    training = pod.wait_for(Phase.TRAINING)
    assert (training.has_data, training.data_at) == (None, None)
