"""What a step costs the host, as counts: executables, buffers, waits. Counts do not depend on the machine."""

from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import loop_overhead
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.forward_pass import Pass as FlaxPass
from capstan_runtime.flax_trainer.leaves import Structure
from tests.support.engines import (
    ADAMW,
    CNN,
    FLAX,
    IMAGES,
    MLP,
    SGD,
    TOKENS,
    TRANSFORMER,
    batch_of,
    context_of,
    deepspeed,
    make_engine,
)
from tests.support.ranks import run_ranks

WRAPPED: dict[str, Any] = {"lookahead": {"steps": 2}, "ema": {}, "centralizeGradients": {}}
PLAIN: dict[str, Any] = {"optimizer": ADAMW}
LADEN = {
    "plain": PLAIN,
    "Sophia, wrapped": {
        "optimizer": {"sophia": {"learningRate": 0.01, "hessianEverySteps": 3}},
        "training": {**WRAPPED, "adaptiveClip": {}},
    },
}
"""The least and the most that an update does."""


def flax_counts(rank: int, world: int, coordinator: str, options: dict[str, Any]) -> Any:
    context = context_of(FLAX, MLP, rank, world, coordinator, **options)
    engine: Any = make_engine(context)
    before = list(engine._parameters)
    engine.train_step(batch_of(context, 0), 0.1)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    for step in range(1, 5):
        engine.train_step(batch_of(context, step), 0.1 / step)
    return (
        engine._train_step.__wrapped__._cache_size(),
        [event for event in compiled if "compile" in event],
        [parameter.is_deleted() for parameter in before],
    )


@pytest.mark.parametrize("options", LADEN.values(), ids=LADEN)
def test_a_flax_step_is_one_executable_that_reuses_its_buffers(options: dict[str, Any]) -> None:
    ((executables, compilations, reused),) = run_ranks(flax_counts, 1, options)
    assert executables == 1
    assert compilations == []
    assert all(reused)


def test_the_depth_of_a_decoder_adds_no_arrays() -> None:
    shallow, deep = (
        Structure(context_of(FLAX, {"transformer": {**TRANSFORMER["transformer"], "layers": layers}}).run.model, TOKENS)
        for layers in (1, 12)
    )
    assert len(shallow.leaves) == len(deep.leaves) == 9


def test_modules_assemble_in_both_of_nnx_s_modes() -> None:
    for enabled in (True, False):
        with nnx.set_graph_mode(enabled), nnx.set_graph_updates(enabled):
            for model, data in ((CNN, IMAGES), (TRANSFORMER, TOKENS)):
                context = context_of(FLAX, model)
                structure = Structure(context.run.model, data)
                values = [jax.numpy.asarray(leaf.initial_value(0)) for leaf in structure.everything]
                inputs = batch_of(context, 0).inputs[0]
                logits = jax.jit(lambda v, x, s=structure: s.assemble(v)(x, FlaxPass(jax.numpy.dtype("float32"))))(
                    values, inputs
                )
                assert np.isfinite(logits).all()


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def torch_waits(
    rank: int, world: int, coordinator: str, stage: int, options: dict[str, Any] = PLAIN
) -> tuple[int, int]:
    """Reads of a tensor's value by the host: in one step of ours, and in DeepSpeed's own three calls."""
    context = context_of(deepspeed(stage), MLP, rank, world, coordinator, **options)
    engine: Any = make_engine(context)
    batch = batch_of(context, 1)
    engine.train_step(batch, 0.1)
    with Calls() as ours:
        engine.train_step(batch, 0.1)
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets).long()
    with Calls() as theirs:
        for micro_inputs, micro_targets in zip(inputs, targets, strict=True):
            loss = torch.nn.functional.cross_entropy(engine._engine(micro_inputs, Pass(torch.float32)), micro_targets)
            engine._engine.backward(loss)
        engine._engine.step()
    read = "aten._local_scalar_dense.default"
    assert ours.counts.total() > 20
    return ours.counts[read], theirs.counts[read]


@pytest.mark.parametrize("stage", range(4))
def test_a_deepspeed_step_adds_no_waits_of_its_own(stage: int) -> None:
    # On a GPU each would stop the host until the device has caught up.
    ((ours, theirs),) = run_ranks(torch_waits, 1, stage)
    assert ours == theirs


@pytest.mark.parametrize("framework", loop_overhead.FRAMEWORKS)
def test_a_bare_step_is_there_to_hold_the_loops_against(framework: str) -> None:
    """What `make bench` measures it with knows the engines from within."""
    wall, cpu = loop_overhead.seconds_of(framework, "toy", 2)
    assert wall.shape == cpu.shape == (2, 2)
    assert (wall > 0).all()


UNDER_ZERO = {
    0: {"optimizer": {"novograd": {"learningRate": 0.01}}, "training": {**WRAPPED, "adaptiveClip": {}}},
    1: {"optimizer": {"sophia": {"learningRate": 0.01, "hessianEverySteps": 1}}, "training": WRAPPED},
    3: {"optimizer": {"adan": {"learningRate": 0.01}}, "training": WRAPPED},
}


@pytest.mark.parametrize(("stage", "options"), UNDER_ZERO.items(), ids=[f"zero{stage}" for stage in UNDER_ZERO])
def test_no_optimizer_and_nothing_around_it_waits_for_the_device(stage: int, options: dict[str, Any]) -> None:
    # Beside SGD: on CPUs torch's AdamW reads its own count of steps.
    ((plain, _),) = run_ranks(torch_waits, 1, stage, {"optimizer": SGD})
    ((laden, _),) = run_ranks(torch_waits, 1, stage, options)
    assert laden == plain
