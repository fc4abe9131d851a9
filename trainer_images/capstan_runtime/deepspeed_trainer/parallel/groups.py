"""The process groups of one rank, by the axes along which their members differ; and what DeepSpeed is told of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from capstan_runtime.contract.parallelism import Parallelism
from capstan_runtime.parallel.layout import Axis, Layout


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that talk to each other, this one among them."""

    ranks: tuple[int, ...]
    position: int
    """Of this rank among them."""
    process_group: Any

    @property
    def size(self) -> int:
        return len(self.ranks)


class Groups:
    """All that this rank is in."""

    def __init__(self, layout: Layout, rank: int, patience: timedelta) -> None:
        """Collective over the world. `patience`: how long anyone waits in a collective of theirs."""
        self.layout, self.rank = layout, rank
        self._patience = patience
        self._made: dict[tuple[tuple[int, ...], ...], Group] = {}
        self.tensor = self.along("tensor")
        self.sequence = self.along("sequence")
        self.copies = self.along("data", "sequence")
        """Those that hold the same parts of parameters, and so add their gradients up: ZeRO cuts state over them."""
        self.stage = self.along("data", "sequence", "tensor")
        """Those that have the same layers."""
        self.replica = self.along("pipeline", "tensor")
        """Those that hold all parts of parameters together."""
        self.experts = self.joined(layout.expert_groups())
        """Those that share the experts of a layer, in the order of the experts."""
        self.expert_copies = self.joined(layout.same_expert_groups())
        """Those that hold the same experts."""

    def along(self, *axes: Axis) -> Group:
        """The ranks whose coordinates are this one's but along `axes`. Collective over the world."""
        return self.joined(self.layout.groups(axes))

    def joined(self, partition: Iterable[Sequence[int]]) -> Group:
        """That of the groups of `partition` in which this rank is. Collective over the world."""
        wanted = tuple(map(tuple, partition))
        if wanted not in self._made:  # axes of one rank all have the same groups, and each takes some time
            made = [dist.new_group(list(ranks), timeout=self._patience) for ranks in wanted]
            self._made[wanted] = next(
                Group(ranks, ranks.index(self.rank), process_group)
                for ranks, process_group in zip(wanted, made, strict=True)
                if self.rank in ranks
            )
        return self._made[wanted]


class DeepSpeedUnit:
    """What DeepSpeed asks of a "model parallel unit", in Megatron's words.

    Nothing is said of sequences: to DeepSpeed, ranks that share one are data parallel, for their losses are means over
    equally many tokens, and it has one way for all gradients then.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def get_data_parallel_group(self) -> Any:
        return self._groups.copies.process_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return list(self._groups.copies.ranks)

    def get_data_parallel_rank(self) -> int:
        return self._groups.copies.position

    def get_data_parallel_world_size(self) -> int:
        return self._groups.copies.size

    def get_model_parallel_group(self) -> Any:
        return self._groups.replica.process_group

    def get_model_parallel_rank(self) -> int:
        return self._groups.replica.position

    def get_model_parallel_world_size(self) -> int:
        return self._groups.replica.size

    def get_tensor_model_parallel_group(self) -> Any:
        return self._groups.tensor.process_group

    def get_tensor_model_parallel_rank(self) -> int:
        return self._groups.tensor.position

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._groups.tensor.size


def layout_of(parallelism: Parallelism | None, world: int) -> Layout | None:
    """How `world` ranks divide up the work; None: each holds and computes a whole model."""
    if parallelism is None or (parallelism.devices == 1 and parallelism.expert == 1):
        return None
    return Layout.of(parallelism, world)
