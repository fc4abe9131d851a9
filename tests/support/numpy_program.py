"""A user's own program in numpy: the state after a step follows from the one before and the step's global batch.

Run by hand, as ranks and under supervisors. What it is to do wrong, and where it is to note which samples it has had,
stands in its environment.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import capstan_runtime
from capstan_runtime.data.plan import SamplePlan

STEPS, BATCH, SAMPLES, SAVE_EVERY = 30, 8, 50, 10


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


def fail(kind: str) -> None:
    match kind:
        case "raise":
            raise KeyError("label")
        case "out of memory":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        case "exit 75":
            sys.exit(75)
        case "exit 0":
            sys.exit(0)


def main() -> None:
    job = capstan_runtime.attach(capstan_runtime.ByHand(STEPS, BATCH, seed=3, save_every_steps=SAVE_EVERY))
    first, state = job.restore()
    if state is None:
        state = {"params": {"w": np.zeros(4, np.float64)}, "moments": [np.ones((2, 2), np.float32)], "rounds": 0}
    fault, _, at = os.environ.get("FAULT", "").partition("@")
    log = os.environ.get("SAMPLE_LOG")
    for step in range(first, job.steps):
        if fault and at and step == int(at):
            fail(fault)
        ids = job.data_slice(step, SAMPLES)
        if log is not None:
            line = json.dumps([step, job.rank, job.world, ids.tolist()]) + "\n"
            with Path(log).open("a") as file:
                file.write(line)
        # What all ranks together would have summed up: no framework here could add it up over the ranks.
        batch = SamplePlan(job.seed, SAMPLES, BATCH, 2).ids(step)
        state = advance(state, batch)
        job.report(step, loss=float(np.abs(state["params"]["w"]).mean()), rounds=state["rounds"])
        if fault == "other tensors" and job.rank == 1:
            state["params"]["w"] = np.zeros(3)
        job.save(step, state, is_last=fault == "enough" and step == int(at))
        if (step + 1) % SAVE_EVERY == 0:
            wait_for_commit(step + 1)
        if job.should_stop():
            break
    if fault == "exit 3 at the end":
        sys.exit(3)


def wait_for_commit(done: int) -> None:
    """These steps take no time: what a fault leaves is known only if saves are waited for, where that was asked."""
    store = os.environ.get("AWAIT_SAVES_IN")
    give_up_at = time.monotonic() + 20
    while store is not None and not list(Path(store).glob(f"{done:012d}.*/COMMIT")):
        assert time.monotonic() < give_up_at, f"step {done} is not committed"
        time.sleep(0.01)


def advance(state: dict[str, Any], batch: "np.ndarray[Any, Any]") -> dict[str, Any]:
    w = state["params"]["w"] * 0.9 + batch.reshape(4, -1).mean(axis=1) / SAMPLES
    moment = (state["moments"][0] * np.float32(0.5) + np.float32(batch[0])).astype(np.float32)
    return {"params": {"w": w}, "moments": [moment], "rounds": state["rounds"] + 1}


if __name__ == "__main__":
    main()
