"""The real supervisor with the numpy trainer as its child."""

import os
import sys

from capstan_runtime.supervisor import attempt
from capstan_runtime.supervisor.__main__ import main
from capstan_runtime.supervisor.child import Child


def make_unkillable() -> None:
    """A SIGKILL has no effect, as on a process in a wait that nothing interrupts; that is soon noticed."""
    Child.kill_group = lambda self: None  # type: ignore[method-assign]
    attempt._DIE_SECONDS = attempt._LEAVE_SECONDS = 0.5


if __name__ == "__main__":
    if os.environ.get("UNKILLABLE"):
        make_unkillable()
    module = os.environ.get("TRAINER_MODULE", "tests.support.numpy_trainer")
    raise SystemExit(main((sys.executable, "-m", module)))
