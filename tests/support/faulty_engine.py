"""An engine whose framework is numpy. Faults are injected through FAULT_* variables."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.writer import commit
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.engine import Batch, EvaluationSums, Trained
from capstan_runtime.errors import PeerLost
from tests.support.numpy_engine import Done, NumpyEngine


class FaultyEngine(NumpyEngine):
    """Does what FAULT_KIND says at step FAULT_STEP of the attempt whose fence is FAULT_FENCE."""

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        print("x" * int(os.environ.get("FLOOD", "0")), end="")
        for _ in range(int(os.environ.get("ORPHANS", "0"))):
            subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"], check=True)
        self._fault = os.environ.get("FAULT_KIND")
        self._step = int(os.environ.get("FAULT_STEP", "0"))
        if context.membership.fence != int(os.environ.get("FAULT_FENCE", "1")):
            self._fault = None
        if self._fault and context.membership.rank != int(os.environ.get("FAULT_RANK", "0")):
            self._fault = None
        self._pause_seconds = float(os.environ.get("STEP_SECONDS", "0"))
        self._done = Path(os.environ["STEP_LOG"]) if "STEP_LOG" in os.environ else None
        self._awaits_saves = "AWAIT_SAVES" in os.environ
        self.close = self.leave

    def train_step(self, batch: Batch, learning_rate: float) -> Done:
        result = super().train_step(batch, learning_rate)
        time.sleep(self._pause_seconds)
        step = int(self.state["optimizer/count"])
        if self._awaits_saves:
            await_save()
        if self._done is not None and self.rank == 0:
            with self._done.open("a") as log:
                log.write(f"{step} {result.values['loss']!r}\n")
        if self._fault and step == self._step:
            return self._fail(result)
        return result

    def evaluate(self, batches: Iterable[Batch], trained: Trained | None = None) -> EvaluationSums:
        return super().evaluate(self._disturbed(batches), trained)

    def _disturbed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        is_disturbed = self._fault == "terminate evaluation" and int(self.state["optimizer/count"]) == self._step
        for batch in batches:
            if is_disturbed:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1.5)  # longer than the ranks go without asking each other
            yield batch

    def leave(self) -> None:
        if self._fault == "no goodbye":
            raise PeerLost("the others have gone without a word")
        self._world.close()

    def _fail(self, result: Done) -> Done:
        match self._fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
            case "raise":
                raise RuntimeError("the step went wrong\nand this is detail")
            case "exit":
                sys.stdout.flush()
                os._exit(int(os.environ["FAULT_CODE"]))
            case "leave at checkpoint":
                os.kill(os.getpid(), signal.SIGUSR2)
            case "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            case "leave":
                sys.exit("a library gave up")
            case "nan":
                return Done({**result.values, "loss": float("nan")})
        return result


def await_save() -> None:
    """Steps of a millisecond would be over before the first save of the run is; real ones are not."""
    for thread in threading.enumerate():
        if thread.name.startswith("save "):
            while thread.ident is None:  # it is listed before it has begun, and cannot be joined yet
                time.sleep(0.001)
            thread.join(60.0)


def read_slowly(checkpoint: OpenCheckpoint, level: VerifyLevel, done: Callable[[int], None]) -> None:
    """Stands in for `read_back` of a checkpoint of many gigabytes; touches SLOW_READ when it is done."""
    time.sleep(float(os.environ.get("SLOW_READ_SECONDS", "0.7")))
    Path(os.environ["SLOW_READ"]).touch()


def commit_slowly(*arguments: Any) -> Checkpoint:
    """Stands in for `commit` where other ranks' parts are long in coming: SLOW_COMMIT seconds."""
    time.sleep(float(os.environ["SLOW_COMMIT"]))
    return commit(*arguments)
