"""Small runs of the numpy trainer as real processes, with and without a supervisor."""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership, read_job_config
from capstan_runtime.contract.state import Phase, Progress, State

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "the-token-of-this-job"
PATIENCE_SECONDS = 60.0


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Run:
    """One job's files: data, run.json, token, store."""

    folder: Path
    steps: int = 30
    save_every: int = 10
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        chance = np.random.default_rng(3)
        labels = chance.integers(0, 3, 120)
        inputs = (np.eye(3)[labels] @ chance.normal(size=(3, 6)) + chance.normal(size=(120, 6))).astype(np.float32)
        np.savez(self.folder / "data.npz", inputs=inputs, labels=labels)
        document = self.document()
        for name, value in self.overrides.items():
            # Of a choice of one, another one; of anything else, some fields.
            is_choice = name in ("framework", "model", "data", "optimizer", "schedule")
            document[name] = value if is_choice or not isinstance(value, dict) else {**document.get(name, {}), **value}
        read_job_config(json.dumps(document).encode())
        (self.folder / "run.json").write_text(json.dumps(document))
        (self.folder / "token").write_text(TOKEN + "\n")

    def document(self) -> dict[str, Any]:
        """`run.json`, before the overrides."""
        return {
            "job": "default/small",
            "uid": "3f1c-uid",
            "framework": {"flax": {}},
            "model": {"mlp": {"hidden": [4]}},
            "data": {"arrays": {"path": str(self.folder / "data.npz")}},
            "optimizer": {"sgd": {"learningRate": 0.1}},
            "schedule": {"cosine": {"warmupSteps": 3}},
            "training": {
                "steps": self.steps,
                "globalBatchSize": 12,
                "virtualRanks": 2,
                "logEverySteps": 5,
                "evaluation": {"everySteps": 20},
            },
            "checkpoint": {"interval": {"steps": self.save_every}},
            "deadlines": {"form": 20, "firstStep": 20, "hang": 20, "save": 20, "stop": 10},
            "warmSpare": False,
        }

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def environ(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            env.RUN_CONFIG: str(self.folder / "run.json"),
            env.TOKEN_FILE: str(self.folder / "token"),
            env.STORE: str(self.store),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **more,
        }


@dataclass(frozen=True)
class Ended:
    """One trainer process that has ended."""

    code: int
    output: str
    progress: list[Progress]


def run_trainers(
    run: Run,
    world: int,
    fence: int = 1,
    floor_step: int = 0,
    prefix: tuple[str, ...] = (),
    more: Callable[[int], dict[str, Any]] = lambda rank: {},
    module: str = "tests.support.numpy_trainer",
    **faults: str,
) -> list[Ended]:
    """All ranks of one attempt, without supervisors, to their end. `prefix` comes before each one's command; `more` is
    what else a rank's membership says."""
    coordinator = f"127.0.0.1:{free_port()}"
    started = []
    for rank in range(world):
        place = {"fence": fence, "rank": rank, "world": world, "coordinator": coordinator, "floor_step": floor_step}
        member = Membership.model_validate({**place, **more(rank)}, by_name=True)
        report = run.folder / f"report-{fence}-{rank}.jsonl"
        with report.open("wb") as pipe:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module],
                env=run.environ(
                    **{env.MEMBERSHIP: member.model_dump_json(by_alias=True), env.REPORT_FD: str(pipe.fileno())},
                    **faults,
                ),
                pass_fds=[pipe.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        started.append((process, report))
    ended = []
    for process, report in started:
        try:
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
        lines = report.read_text().splitlines()
        ended.append(Ended(process.returncode, output, [Progress.model_validate_json(line) for line in lines]))
    return ended


def losses(log: Path) -> list[tuple[int, str]]:
    """(step, loss to the last digit) of every step that rank 0 has done, in order of time."""
    return [(int(step), loss) for step, loss in (line.split() for line in log.read_text().splitlines())]


@dataclass(frozen=True)
class Undisturbed:
    """A run of 30 steps on two ranks that nothing happened to."""

    run: Run
    losses: list[tuple[int, str]]


class Pod:
    """A supervisor process with an address of its own."""

    def __init__(
        self,
        run: Run,
        name: str,
        prefix: tuple[str, ...] = (),
        log_to: str | int | None = None,
        module: str = "tests.support.numpy_supervisor",
        **faults: str,
    ) -> None:
        """`prefix` comes before the command; `log_to` is a file, or subprocess.PIPE, that takes the place of `log`."""
        self.name = name
        self.address = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(2, 254)}"
        self.termination_log = run.folder / f"{name}.termination"
        self.log = run.folder / f"{name}.log"
        with (Path(log_to) if isinstance(log_to, str) else self.log).open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module],
                env=run.environ(
                    **{
                        env.POD_NAME: name,
                        env.POD_IP: self.address,
                        env.TERMINATION_LOG: str(self.termination_log),
                        **faults,
                    }
                ),
                stdout=log_to if isinstance(log_to, int) else output,
                stderr=subprocess.STDOUT,
            )

    def request(
        self, method: str, path: str, body: str | None = None, token: str | None = TOKEN
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self.address, env.SUPERVISOR_PORT, timeout=5)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else {"text": text}
        finally:
            connection.close()

    def state(self) -> State:
        status, document = self.request("GET", "/state")
        assert status == 200, document
        return State.parse(document)

    def put(self, membership: Membership) -> tuple[int, dict[str, Any]]:
        return self.request("PUT", "/membership", membership.model_dump_json(by_alias=True))

    def wait_until_up(self) -> None:
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.request("GET", "/healthz")
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < give_up_at, "the supervisor does not answer"
                time.sleep(0.05)

    def wait_for(self, *phases: Phase, step: int = 0) -> State:
        """The state once it is in one of `phases` and at least at `step`."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            state = self.state()
            if state.phase in phases and state.step >= step:
                return state
            assert time.monotonic() < give_up_at, f"{state}\n{self.log.read_text()}"
            time.sleep(0.02)

    def wait_for_end(self) -> tuple[int, State]:
        """Exit code and last words."""
        code = self.process.wait(PATIENCE_SECONDS)
        return code, State.model_validate_json(self.termination_log.read_bytes())

    def children(self) -> list[int]:
        """The trainer and the warm spare, in the order in which they were started."""
        return children_of(self.process.pid)

    def wait_until_warm(self) -> int:
        """The number of the spare once it could begin at once."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while "capstan_trainer_warm_spare 1" not in self.request("GET", "/metrics")[1]["text"].splitlines():
            assert time.monotonic() < give_up_at, f"no warm spare\n{self.log.read_text()}"
            time.sleep(0.02)
        return self.children()[-1]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """The trainer goes with it: it asked the kernel to."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_SECONDS)


def push(pods: list[Pod], fence: int, floor_step: int = 0) -> None:
    """A new attempt of all `pods`, as the operator starts one."""
    coordinator = f"{pods[0].address}:{env.coordinator_port(fence)}"
    for rank, pod in enumerate(pods):
        status, answer = pod.put(
            Membership(fence=fence, rank=rank, world=len(pods), coordinator=coordinator, floor_step=floor_step)
        )
        assert status == 200, answer


StartPod = Callable[..., Pod]
"""The fixture `start_pod`: a Pod that answers, and that is gone after the test."""


def alone(fence: int, pod: Pod, floor_step: int = 0) -> Membership:
    """A world of `pod`."""
    return Membership(
        fence=fence, rank=0, world=1, coordinator=f"{pod.address}:{free_port(pod.address)}", floor_step=floor_step
    )


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while is_alive(pid):
        assert time.monotonic() < give_up_at, f"process {pid} lives on"
        time.sleep(0.02)


FIRST_STEP = ({"report": {"phase": "Compiling"}}, {"report": {"phase": "Training", "step": 1}})


def scripted(*script: dict[str, Any], spare: tuple[dict[str, Any], ...] = ()) -> dict[str, str]:
    """The environment of a supervisor whose trainer does what `script` says (tests.support.scripted_trainer)."""
    return {
        "TRAINER_MODULE": "tests.support.scripted_trainer",
        "SCRIPT": json.dumps(script),
        "SPARE_SCRIPT": json.dumps(spare),
    }
