"""A user's own program as ranks of its job: exact resume in any world, and an end that says why."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.contract.chaos import Fault, Injected
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.run_config import ProgramConfig
from capstan_runtime.contract.state import RESERVED_METRICS, Checkpoint, Phase, Restored, Source, State
from capstan_runtime.supervisor.exposition import Facts, render
from tests.support.numpy_program import BATCH, SAMPLES, STEPS, advance
from tests.support.training_runs import Ended, Pod, Run, StartPod, alone, push, run_trainers

PROGRAM = "tests.support.numpy_program"
UID = "3f1c-uid"


class ProgramRun(Run):
    """One program's files."""

    def document(self) -> dict[str, Any]:
        described = super().document()
        for name in ("framework", "model", "data", "optimizer", "schedule"):
            del described[name]
        described["program"] = {"command": [sys.executable, "-m", PROGRAM]}
        described["training"] = {
            "steps": self.steps, "globalBatchSize": BATCH, "virtualRanks": 2, "seed": 3, "logEverySteps": 5
        }  # fmt: skip
        ProgramConfig.parse(described)
        return described


def train(run: Run, world: int, fence: int = 1, floor_step: int = 0, **environ: str) -> list[Ended]:
    return run_trainers(run, world, fence, floor_step, module=PROGRAM, AWAIT_SAVES_IN=str(run.store), **environ)


def newest(store: Path, uid: str = UID) -> dict[str, "np.ndarray[Any, Any]"]:
    """The tensors of the newest checkpoint, the document apart."""
    folder = FolderStore(store)
    tensors = open_checkpoint(folder, list_candidates(folder, uid).candidates[0].name).tensors()
    return {name: tensors.read(name) for name in tensors.names() if name != "program.json"}


def expected_state(steps: int = STEPS) -> dict[str, "np.ndarray[Any, Any]"]:
    """What the program's arithmetic comes to, without Capstan's part in it but for the order of the data."""
    from capstan_runtime.data.plan import SamplePlan

    plan = SamplePlan(3, SAMPLES, BATCH, 2)
    state = {"params": {"w": np.zeros(4, np.float64)}, "moments": [np.ones((2, 2), np.float32)], "rounds": 0}
    for step in range(steps):
        state = advance(state, plan.ids(step))
    return {"params/w": state["params"]["w"], "moments/0": state["moments"][0]}  # type: ignore[index]


def assert_ended_as_undisturbed(store: Path, uid: str = UID) -> None:
    found, expected = newest(store, uid), expected_state()
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_a_killed_program_goes_on_in_other_worlds_with_the_same_samples_and_ends_in_the_same_state(
    tmp_path: Path,
) -> None:
    run, log = ProgramRun(tmp_path), tmp_path / "samples.jsonl"
    killed = train(run, world=2, fence=1, FAULT="raise@14", SAMPLE_LOG=str(log))
    assert [each.code for each in killed] == [1, 1], killed[0].output
    alone_again = train(run, world=1, fence=2, floor_step=10, FAULT="raise@24", SAMPLE_LOG=str(log))
    assert alone_again[0].code == 1
    assert "resumed from step 10" in alone_again[0].output
    ended = train(run, world=2, fence=3, floor_step=20, SAMPLE_LOG=str(log))
    assert [each.code for each in ended] == [0, 0], ended[0].output
    assert [each.progress[-1].phase for each in ended] == [Phase.SUCCEEDED, Phase.SUCCEEDED]
    assert_ended_as_undisturbed(run.store)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    of_step: dict[int, set[tuple[int, ...]]] = {}
    for step in range(STEPS):
        for world in (1, 2):
            parts = {rank: ids for at, rank, of, ids in rows if (at, of) == (step, world)}
            if parts:
                batch = [number for rank in range(world) for row in parts[rank] for number in row]
                of_step.setdefault(step, set()).add(tuple(batch))
    assert all(len(batches) == 1 for batches in of_step.values()), "a step has the same samples in every world"
    assert len(of_step) == STEPS
    lines = [line for line in ended[0].output.splitlines() if line.startswith("step ")]
    assert re.fullmatch(r"step 30/30  loss \d\.\d{4}(  [\d,]+ samples/s)?", lines[-1]), lines
    metrics = [each.metrics for each in ended[0].progress if each.metrics][-1]
    assert metrics.keys() >= {"loss", "rounds", "step_seconds", "samples_per_second", "save_seconds", "save_bytes"}


ENDS: dict[str, tuple[str, int, FailureClass | None, str]] = {
    "an exception": ("raise@4", ExitCode.APPLICATION, FailureClass.APPLICATION, "KeyError: 'label'"),
    "no memory on the device": (
        "out of memory@4",
        ExitCode.GPU_OUT_OF_MEMORY,
        FailureClass.GPU_OUT_OF_MEMORY,
        "step 5, 2 micro-steps of 4 samples: CUDA out of memory. Tried to allocate 2.00 GiB",
    ),
    "an exit code of its own": ("exit 75@4", ExitCode.RETRYABLE, None, ""),
    "leaving too early": ("exit 0@4", ExitCode.OK, None, ""),
}


@pytest.mark.parametrize(("fault", "code", "failure", "message"), ENDS.values(), ids=ENDS)
def test_how_a_program_ends_is_told_by_class_and_exit_code(
    tmp_path: Path, fault: str, code: int, failure: FailureClass | None, message: str
) -> None:
    (ended,) = train(ProgramRun(tmp_path), world=1, FAULT=fault)
    assert ended.code == code, ended.output
    told = [(each.failure, each.message) for each in ended.progress if each.failure is not None]
    assert told == ([(failure, message)] if failure is not None else [])
    assert ended.progress[-1].phase is not Phase.SUCCEEDED


def test_ranks_that_hold_different_tensors_are_told_so_in_one_line(tmp_path: Path) -> None:
    ended = train(ProgramRun(tmp_path, save_every=1), world=2, FAULT="other tensors")
    assert [each.code for each in ended] == [ExitCode.CONFIG, ExitCode.CONFIG], ended[0].output
    assert ended[0].progress[-1].message == (
        "job.save: rank 1 gives tensors of other names, shapes or types than rank 0; every rank must give the same "
        "state, of which each saves a part"
    )


def test_a_program_may_end_its_run_before_all_steps_and_is_not_started_again_for_the_rest(tmp_path: Path) -> None:
    run = ProgramRun(tmp_path)
    (ended,) = train(run, world=1, FAULT="enough@16")
    assert ended.code == 0, ended.output
    assert ended.progress[-1].phase is Phase.SUCCEEDED
    (again,) = train(run, world=1, fence=2, floor_step=17)
    assert (again.code, again.progress[-1].phase, again.progress[-1].step) == (0, Phase.SUCCEEDED, 17)
    assert newest(run.store)["params/w"].tobytes() == expected_state(17)["params/w"].tobytes()


def test_by_hand_the_same_program_is_alone_with_a_folder_and_goes_on_where_it_was(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CAPSTAN_")}
    command = [sys.executable, "-m", PROGRAM]
    environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), environ.get("PYTHONPATH", "")])
    first = subprocess.run(
        command,
        cwd=tmp_path,
        env=environ | {"FAULT": "raise@14", "AWAIT_SAVES_IN": "capstan-checkpoints"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert first.returncode == 1
    assert "KeyError: 'label'" in first.stderr
    second = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert second.returncode == 0, second.stderr
    assert second.stdout.startswith("no supervisor: one process, checkpoints in capstan-checkpoints\n")
    assert "resumed from step 10" in second.stdout
    assert_ended_as_undisturbed(tmp_path / "capstan-checkpoints", "by-hand")


def test_without_a_supervisor_and_without_a_word_about_it_attach_says_what_is_missing(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CAPSTAN_")}
    code = "import capstan_runtime; capstan_runtime.attach()"
    ended = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert "was not started by a Capstan supervisor" in ended.stderr.splitlines()[-1]


def test_attaching_imports_no_framework() -> None:
    code = "import sys, capstan_runtime; capstan_runtime.attach; print(*{'torch', 'jax', 'flax'} & sys.modules.keys())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "\n"


def test_no_metric_of_a_program_hides_what_its_supervisor_exposes() -> None:
    checkpoint = Checkpoint(step=1, root="blake3:0", at=0.0)
    state = State(
        pod="p",
        uid="u",
        rank=0,
        world=1,
        steps=1,
        checkpoint=checkpoint,
        staged=checkpoint,
        restored=Restored(source=Source.STORE, bytes=1, seconds=1.0, verify_seconds=1.0),
        seconds={Phase.TRAINING: 1.0},
        injected=[Injected(name="a", fault=Fault.KILL, rank=0, step=1, at=0.0)],
    )
    lines = render(state, Facts(restarts=0, has_warm_spare=False, is_under_chaos=False)).splitlines()
    exposed = {line.split()[2].removeprefix("capstan_trainer_") for line in lines if line.startswith("# TYPE")}
    assert exposed == RESERVED_METRICS


@pytest.fixture
def start_program(start_pod: StartPod) -> Callable[..., Pod]:
    def start(run: Run, name: str = "small-0", **environ: str) -> Pod:
        return start_pod(run, name, module="capstan_runtime.supervisor", **environ)

    return start


def test_a_program_under_supervisors_saves_when_its_pod_is_deleted_and_ends_where_it_would_have(
    tmp_path: Path, start_program: Callable[..., Pod]
) -> None:
    run = ProgramRun(tmp_path, steps=100_000, save_every=1_000)
    pods = [start_program(run, f"small-{number}") for number in range(2)]
    push(pods, fence=1)
    for pod in pods:
        pod.wait_for(Phase.TRAINING, step=3)
    pods[1].terminate()
    code, last = pods[1].wait_for_end()
    assert (code, last.exit and last.exit.failure) == (ExitCode.STOPPED, FailureClass.STOPPED)
    other = pods[0].wait_for(Phase.EXITED)
    assert other.exit is not None
    assert (other.exit.code, other.exit.failure, other.exit.asked) == (ExitCode.STOPPED, FailureClass.STOPPED, False)
    assert other.checkpoint is not None
    assert other.checkpoint.step == other.step, "not a step is lost"


def test_a_killed_program_is_replaced_by_its_warm_spare_which_has_waited_in_attach(
    tmp_path: Path, start_program: Callable[..., Pod]
) -> None:
    run = ProgramRun(tmp_path, steps=100_000, save_every=10, overrides={"warmSpare": True})
    pod = start_program(run)
    pod.put(alone(1, pod))
    pod.wait_for(Phase.TRAINING, step=30)
    spare = pod.wait_until_warm()
    os.kill(pod.children()[0], signal.SIGKILL)
    killed = pod.wait_for(Phase.EXITED)
    assert killed.exit is not None
    assert (killed.exit.signal, killed.exit.failure) == ("SIGKILL", FailureClass.CRASH)
    assert killed.checkpoint is not None
    pod.put(alone(2, pod, floor_step=killed.checkpoint.step))
    resumed = pod.wait_for(Phase.TRAINING, step=killed.checkpoint.step + 1)
    assert pod.children()[0] == spare
    assert resumed.resumed_from is not None
    assert resumed.resumed_from.step >= killed.checkpoint.step


def test_what_fails_after_the_last_checkpoint_is_a_failure_of_the_program(
    tmp_path: Path, start_program: Callable[..., Pod]
) -> None:
    pod = start_program(ProgramRun(tmp_path), FAULT="exit 3 at the end")
    pod.put(alone(1, pod))
    state = pod.wait_for(Phase.EXITED)
    assert state.exit is not None
    assert (state.exit.code, state.exit.failure) == (3, FailureClass.APPLICATION)
    assert state.checkpoint is not None
    assert state.checkpoint.step == STEPS


def test_a_program_that_does_not_attach_is_told_what_is_missing(
    tmp_path: Path, start_program: Callable[..., Pod]
) -> None:
    run = ProgramRun(
        tmp_path, overrides={"deadlines": {"form": 1}, "program": {"command": ["sleep", "60"]}, "warmSpare": False}
    )
    pod = start_program(run)
    pod.put(alone(1, pod))
    state = pod.wait_for(Phase.EXITED)
    assert state.exit is not None
    assert state.exit.failure is FailureClass.HANG
    assert state.exit.message.endswith(
        "; the program has not called capstan_runtime.attach(): call it first, after the imports"
    )
