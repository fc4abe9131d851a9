"""Experts that are shared out over ranks which have other samples each (GShard, 2006.16668; DeepSpeed-MoE, 2201.05596).

Axes: P ranks, B batch, E experts of all, X of one rank, C capacity, D width.
"""

from typing import Any

from torch import Tensor, nn

from capstan_runtime.deepspeed_trainer.components.experts import Experts
from capstan_runtime.deepspeed_trainer.parallel.collectives import exchanged
from capstan_runtime.deepspeed_trainer.parallel.groups import Group, Groups

SHARED = "experts"
"""What DeepSpeed calls the groups of parameters that only some ranks hold, and the ranks that do."""


def is_shared(parameter: nn.Parameter) -> bool:
    """Whether others of its data parallel ranks hold other experts in its place."""
    return not getattr(parameter, "allreduce", True)


def share(experts: Experts, group: Group) -> None:
    """`experts` takes its tokens to those of `group` that hold the experts which they choose, and back."""
    for linear in (experts.gate_up, experts.down):
        weight: Any = linear.weight
        # How DeepSpeed knows them (`deepspeed.moe.utils.is_moe_param`).
        weight.allreduce, weight.group_name = False, SHARED

    def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        taken_PBXCD = arguments[0].unflatten(1, (group.size, -1)).movedim(1, 0)
        return exchanged(taken_PBXCD, group).flatten(0, 1), *arguments[1:]

    def after(module: nn.Module, arguments: tuple[Tensor, ...], made: Tensor) -> Tensor:
        made_PBXCD = exchanged(made.unflatten(0, (group.size, -1)), group)
        return made_PBXCD.movedim(0, 1).flatten(1, 2)

    experts.gate_up.register_forward_pre_hook(before)
    experts.down.register_forward_hook(after)


def tell_deepspeed(model: nn.Module, groups: Groups) -> None:
    """DeepSpeed treats the gradients of experts as its own ones', which it knows by the type of a module in `model`."""
    from deepspeed.moe.layer import MoE
    from deepspeed.utils import groups as known

    class SharedExperts(MoE):
        """Of theirs it has nothing but the type."""

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.num_experts = groups.experts.size

        def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
            known._EXPERT_PARALLEL_GROUP[SHARED] = groups.experts.process_group
            known._EXPERT_DATA_PARALLEL_GROUP[SHARED] = groups.expert_copies.process_group

    model.add_module("shared_experts", SharedExperts())
