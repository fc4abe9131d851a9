"""What one rank has of a model: which parameters, which part of each, and in what memory.

Below stage 3 of ZeRO a rank needs its part whole, on its device. At stage 3 it keeps a slice of each parameter, and has
no more than one of them whole while it begins: a model for which the ranks' memory is enough together need not fit into
that of one, nor of its host.
"""

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from capstan_runtime.context import TrainContext
from capstan_runtime.deepspeed_trainer.custom import build_custom, table_of
from capstan_runtime.deepspeed_trainer.models import Fill, fill_all, of_stage, unfilled_model
from capstan_runtime.deepspeed_trainer.parallel.groups import layout_of
from capstan_runtime.deepspeed_trainer.parallel.shards import Shard, shards_of
from capstan_runtime.low_rank import model_table
from capstan_runtime.model_signature import rank_of
from capstan_runtime.model_spec import ParameterSpec
from capstan_runtime.parallel.layout import Layout
from capstan_runtime.parallel.stages import WHOLE, Stage

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Gives free memory back to the system; None: this C library does so by itself."""


@dataclass(frozen=True, slots=True)
class Part:
    """Of a model, what one rank computes."""

    module: nn.Module
    """fp32 on the CPU, in memory that nobody has touched unless it is of the user's own code."""
    table: tuple[ParameterSpec, ...]
    """Of the whole model."""
    shards: Mapping[str, Shard]
    """By name, of what this rank has some of, in the order of `table`."""
    layout: Layout | None
    """None: the rank computes the whole model."""
    stage: Stage
    fill: Fill | None
    """Gives a tensor of `module` its first value; None: it has it."""

    @property
    def trained(self) -> list[ParameterSpec]:
        """What this rank has of parameters."""
        return [shard.part for shard in self.shards.values() if shard.whole.is_trained]

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(spec.size for spec in self.table if spec.is_trained)

    def move_to(self, device: torch.device) -> None:
        """All of it, filled."""
        if self.fill is not None:
            fill_all(self.module, self.fill)
        self.module.to(device)

    def cut_up(self, deepspeed: Any, settings: dict[str, Any], unit: Any | None, device: torch.device) -> None:
        """As stage 3 keeps it, filled: parameters one after the other, buffers whole. Collective.

        `unit` is what DeepSpeed is told of the ranks that share the model; None: nobody does.
        """
        if self.fill is None:
            self.module.to(device)  # which a user's module may have a mind of its own about, and is whole anyway
        else:
            for name, buffer in self.module.named_buffers():
                self.fill(name, buffer)
                buffer.data = buffer.data.to(device)
        deepspeed.zero.Init(
            module=_FilledInTurn(self.module, self.fill),
            data_parallel_group=None if unit is None else unit.get_data_parallel_group(),
            dtype=torch.float32,
            config_dict_or_path=settings,
            mpu=unit,
        )


class _FilledInTurn(nn.Module):
    """Parameters that have no value until they are asked for; DeepSpeed has cut up one before it asks for the next."""

    def __init__(self, module: nn.Module, fill: Fill | None) -> None:
        super().__init__()
        self._named = list(module.named_parameters())
        self._fill = fill

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        for name, parameter in self._named:
            if self._fill is not None:
                self._fill(name, parameter)
            yield parameter
            # glibc keeps what is freed for what comes next, and memory of up to 32 MiB with it.
            if _malloc_trim is not None:
                _malloc_trim(0)


def part_of(context: TrainContext) -> Part:
    """This rank's. Raises ConfigError if model, data and ranks do not fit."""
    run, membership = context.run, context.membership
    layout = layout_of(run.parallelism, membership.world)
    stage = WHOLE if layout is None else Stage.of(layout, membership.rank)
    if run.model.custom is not None:
        module = build_custom(run.model.custom, context.data, run.training.seed)
        table = table_of(module)
        return Part(module, table, {spec.name: Shard.all_of(spec) for spec in table}, layout, stage, None)
    rank = rank_of(run)
    table = model_table(run.model, context.data, rank)
    own = of_stage(table, run.model, stage)
    shards = None if layout is None else shards_of(run.model, own, layout, membership.rank)
    module, fill = unfilled_model(run.model, context.data, run.training.seed, shards, rank, stage)
    return Part(module, table, shards or {spec.name: Shard.all_of(spec) for spec in own}, layout, stage, fill)
