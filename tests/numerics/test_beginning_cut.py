"""At stage 3 of ZeRO no rank ever has the whole model, not even while it begins: models may be larger than a rank."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capstan_runtime.deepspeed_trainer.library import load_deepspeed
from capstan_runtime.deepspeed_trainer.part import part_of
from capstan_runtime.deepspeed_trainer.settings import settings_of
from capstan_runtime.deepspeed_trainer.world import World
from capstan_runtime.model_spec import initial_parameter
from tests.support.engines import context_of, deepspeed
from tests.support.ranks import run_ranks

WIDTH, LAYERS = 1536, 24
DEEP: dict[str, Any] = {"mlp": {"hidden": [WIDTH] * LAYERS}}
CPU = torch.device("cpu")


def memory(name: str) -> int:
    """Bytes of this process: VmRSS is now, VmHWM the most since it was reset."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def cut_up(rank: int, world: int, coordinator: str) -> tuple[int, int, bool]:
    """Bytes of the model, those that this rank's memory grew by at most while it got its part of it, and whether that
    part has the values it should have."""
    deepspeed_package = load_deepspeed(CPU)
    context = context_of(deepspeed(3), DEEP, rank, world, coordinator)
    for mebibytes in range(1, 31):  # as reading data does: from now on the C library keeps what is freed
        np.ones(mebibytes << 20, np.uint8)
    joined = World(context.membership, context.deadlines, CPU)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    part = part_of(context)
    part.cut_up(deepspeed_package, settings_of(context, CPU), None, CPU)
    most = memory("VmHWM") - before
    slices = {name: parameter.ds_tensor.numpy() for name, parameter in part.module.named_parameters()}
    joined.leave()
    is_right = True
    for spec in part.trained:
        size = slices[spec.name].size
        wanted = initial_parameter(spec, context.run.training.seed).ravel()[rank * size :][:size]
        is_right &= np.array_equal(slices[spec.name][: wanted.size], wanted)  # the rest is padding
    return 4 * part.parameters, most, is_right


def test_a_rank_of_four_never_has_half_of_the_model() -> None:
    for whole, most, is_right in run_ranks(cut_up, 4):
        assert is_right
        assert most < 0.5 * whole, f"{most / whole:.0%} of the model"
