"""What several tests of the runtime compare with."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.training_runs import Pod, Run, StartPod, Undisturbed, losses, run_trainers


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    run, log = Run(folder), folder / "steps.log"
    ended = run_trainers(run, world=2, STEP_LOG=str(log))
    assert [each.code for each in ended] == [0, 0], ended[0].output
    return Undisturbed(run, losses(log))


@pytest.fixture
def start_pod() -> Iterator[StartPod]:
    pods: list[Pod] = []

    def start(run: Run, name: str = "small-0", **details: Any) -> Pod:
        pods.append(Pod(run, name, **details))
        pods[-1].wait_until_up()
        return pods[-1]

    yield start
    for pod in pods:
        pod.kill()
