"""What several tests of the runtime compare with."""

import pytest

from tests.support.training_runs import Run, Undisturbed, losses, run_trainers


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    run, log = Run(folder), folder / "steps.log"
    ended = run_trainers(run, world=2, STEP_LOG=str(log))
    assert [each.code for each in ended] == [0, 0], ended[0].output
    return Undisturbed(run, losses(log))
