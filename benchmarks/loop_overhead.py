"""What the training loop costs: steps of the whole loop against the bare compiled step of the same model, in one
process and in turns.

    loop bare bare loop   loop bare bare loop   ...

The loop is the product's own: `run_attempt` with data, agreement, log, reports to a supervisor and beats. Only its
engine is wrapped: before some steps, bare ones are made on the same weights, which the loop does not notice. Bare is,
with Flax, the donated `jax.jit` step with a batch that is on the device already; with DeepSpeed, forward, `backward`
and `step` of its engine. What is told is the ratio of the two, turn by turn, so that a machine that others use too may
be measured on; there processor time is the steadier of the two, and counts what the loop does beside a step as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Figure
from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership, RunConfig

STEPS = 20
"""Of one block: the loop logs every 10, and agrees about every second."""
WARM_UP_BLOCKS = 2
TOY_FACTOR = 10
"""Steps of a toy are so short that many more fit in."""
SIZES: dict[str, dict[str, Any]] = {
    "real": {"model": {"cnn": {"channels": [64, 128], "groups": 8}}, "batch": 128},
    "toy": {"model": {"mlp": {"hidden": [32]}}, "batch": 32},
}
"""A CNN whose step takes 50 ms or more on two cores of 2025, and the least that can be called a model."""
FRAMEWORKS: dict[str, dict[str, Any]] = {"flax": {"flax": {}}, "deepspeed": {"deepspeed": {"zeroStage": 1}}}
PATIENCE_SECONDS = 1800.0
DEFAULTS = {"JAX_PLATFORMS": "cpu", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
"""Of the environment. Threads of OpenMP that wait for each other would count as work, so there is one."""

Run = Callable[[int], None]
"""Makes so many bare steps, and waits for them."""


def measure(turns: int) -> list[Figure]:
    """`turns` of loop, bare, bare, loop for each framework with a real step; more with a toy step."""
    figures = []
    command = "python -m benchmarks loop_overhead"
    for framework in FRAMEWORKS:
        wall, cpu = seconds_of(framework, "real", turns)
        added, low, high = _middle(100 * (wall[:, 0] / wall[:, 1] - 1))
        worked, low_cpu, high_cpu = _middle(100 * (cpu[:, 0] / cpu[:, 1] - 1))
        figures += [
            Figure(f"{framework}: a bare step", 1000 * float(np.median(wall[:, 1])) / STEPS, "ms", command),
            Figure(f"{framework}: the loop adds to it, 95 % interval {low:+.2f} to {high:+.2f}", added, "%", command),
            Figure(
                f"{framework}: the same in processor time of all threads, {low_cpu:+.2f} to {high_cpu:+.2f}",
                worked,
                "%",
                command,
            ),
        ]
        wall, cpu = seconds_of(framework, "toy", TOY_FACTOR * turns)
        added, low, high = _middle(1e6 * (wall[:, 0] - wall[:, 1]) / STEPS)
        figures += [
            Figure(f"{framework}: a bare step of a toy", 1e6 * float(np.median(wall[:, 1])) / STEPS, "us", command),
            Figure(f"{framework}: the loop adds to it, 95 % interval {low:.0f} to {high:.0f}", added, "us", command),
        ]
    return figures


def _middle(values: np.ndarray, resamples: int = 10_000) -> tuple[float, float, float]:
    """Median, and the ends of its bootstrap interval."""
    chance = np.random.default_rng(0)
    medians = np.median(chance.choice(values, (resamples, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def seconds_of(framework: str, size: str, turns: int) -> tuple[np.ndarray, np.ndarray]:
    """Wall and processor seconds, [turns, 2] each: of a block of the loop and of a bare one, means of the two in each
    turn."""
    command = [sys.executable, "-m", "benchmarks.loop_overhead", framework, size, str(turns)]
    with tempfile.TemporaryDirectory(prefix="capstan-loop-overhead-") as folder:
        result = Path(folder) / "seconds.json"
        done = subprocess.run(
            [*command, folder, str(result)],
            env={**DEFAULTS, **os.environ},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
        blocks = np.array(json.loads(result.read_text())).reshape(turns, 4, 2)
    pairs = np.stack([blocks[:, [0, 3]].mean(axis=1), blocks[:, [1, 2]].mean(axis=1)], axis=1)
    return pairs[..., 0], pairs[..., 1]


class Watch:
    """Started when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """Wall and processor time since then."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


class Turns:
    """The engine of a loop that is measured."""

    def __init__(self, engine: Any, make_bare: Callable[[Any, Any], Run]) -> None:
        """`make_bare(engine, batch)` prepares bare steps on `engine`'s own weights."""
        self._engine = engine
        self._make_bare = make_bare
        self._bare: Run | None = None
        self._step = 0
        self._result: Any = None
        self._watch = Watch()
        self.seconds: list[tuple[float, float]] = []
        """Wall and processor seconds of every block after the warm-up, in order."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def train_step(self, batch: Any, learning_rate: float) -> Any:
        if self._step and self._step % STEPS == 0:
            self._end_block(self._step // STEPS, batch)
        self._step += 1
        self._result = self._engine.train_step(batch, learning_rate)
        return self._result

    def _end_block(self, blocks: int, batch: Any) -> None:
        """`blocks` of the loop are done: its last step is waited for, as bare ones are."""
        self._result.fetch()
        taken = self._watch.seconds()
        number = blocks - WARM_UP_BLOCKS
        if number > 0:
            self.seconds.append(taken)
        if self._bare is None:
            self._bare = self._make_bare(self._engine, batch)
            self._bare(STEPS)
        if number > 0 and number % 2:
            for _ in range(2):
                watch = Watch()
                self._bare(STEPS)
                self.seconds.append(watch.seconds())
        self._watch = Watch()


def bare_flax(engine: Any, batch: Any) -> Run:
    import jax

    compiled = engine._train_step.__wrapped__
    spread = jax.block_until_ready(engine._spread(batch._replace(weights=None)))
    numbers = engine._update.numbers(1e-3, 1, 1.0)

    def run(steps: int) -> None:
        kept = engine._parameters, engine._state, engine._buffers, engine._scale
        for _ in range(steps):
            *kept, values = compiled(*kept, spread, numbers, engine._taught_by)
        values.block_until_ready()
        engine._parameters, engine._state, engine._buffers, engine._scale = kept

    return run


def bare_deepspeed(engine: Any, batch: Any) -> Run:
    import torch

    from capstan_runtime.deepspeed_trainer.forward_pass import Pass

    (micro_batch,) = engine._micro_steps(batch._replace(weights=None))
    inputs, targets = micro_batch.inputs, micro_batch.targets.long()
    deepspeed, here = engine._engine, Pass(torch.float32)

    def run(steps: int) -> None:
        for _ in range(steps):
            deepspeed.backward(torch.nn.functional.cross_entropy(deepspeed(inputs, here), targets))
            deepspeed.step()

    return run


def _run(framework: str, size: str, turns: int, folder: Path) -> list[tuple[float, float]]:
    """Seconds of all blocks, one attempt of a job long."""
    from capstan_runtime.contract.exit_codes import ExitCode
    from capstan_runtime.loop import run_attempt
    from capstan_runtime.preparing import prepare
    from capstan_runtime.report import Reporter
    from capstan_runtime.stop_signal import StopSignal

    if framework == "flax":
        from capstan_runtime.flax_trainer.engine import FlaxEngine as Made

        make_bare = bare_flax
    else:
        from capstan_runtime.deepspeed_trainer.engine import DeepSpeedEngine as Made

        make_bare = bare_deepspeed
    made: list[Turns] = []

    def make_engine(context: Any) -> Any:
        made.append(Turns(Made(context), make_bare))
        return made[0]

    with Path(os.devnull).open("w") as nobody:
        environ = _environ(framework, size, turns, folder, nobody.fileno())
        sys.stdout = nobody  # the loop's lines are written, and not seen
        code = run_attempt(make_engine, environ, Reporter.from_environ(environ), StopSignal(), prepare(environ))
    sys.stdout = sys.__stdout__
    assert code == ExitCode.OK
    return made[0].seconds


def _environ(framework: str, size: str, turns: int, folder: Path, supervisor: int) -> dict[str, str]:
    """What a supervisor gives its trainer. `supervisor`: the descriptor on which it would listen."""
    chosen = SIZES[size]
    run = RunConfig.parse(
        {
            "job": "default/loop-overhead",
            "uid": "loop-overhead",
            "framework": FRAMEWORKS[framework],
            "model": chosen["model"],
            "data": {"digits": {}},
            "optimizer": {"adamw": {"learningRate": 1e-3}},
            "schedule": {"constant": {}},
            "training": {
                "steps": STEPS * (WARM_UP_BLOCKS + 2 * turns) + 1,
                "globalBatchSize": chosen["batch"],
                "virtualRanks": 1,
            },
            "checkpoint": {"interval": {"seconds": 86400}},
        }
    )
    (folder / "run.json").write_text(run.model_dump_json(by_alias=True))
    port = 29000 + os.getpid() % 1000
    member = Membership(fence=1, rank=0, world=1, coordinator=f"127.0.0.1:{port}")
    return {
        **os.environ,
        env.RUN_CONFIG: str(folder / "run.json"),
        env.MEMBERSHIP: member.model_dump_json(by_alias=True),
        env.STORE: str(folder / "store"),
        env.REPORT_FD: str(supervisor),
    }


def main(framework: str, size: str, turns: str, folder: str, result: str) -> None:
    Path(result).write_text(json.dumps(_run(framework, size, int(turns), Path(folder))))
    os._exit(0)  # exit handlers of frameworks have nothing more to say


if __name__ == "__main__":
    main(*sys.argv[1:])
