"""The real supervisor with the numpy trainer as its child."""

import os
import sys

from capstan_runtime.supervisor.__main__ import main

if __name__ == "__main__":
    module = os.environ.get("TRAINER_MODULE", "tests.support.numpy_trainer")
    raise SystemExit(main((sys.executable, "-m", module)))
