"""Makes of a decoder the part of it that one rank computes: its modules know nothing of others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from capstan_runtime.data.spec import DataSpec
from capstan_runtime.deepspeed_trainer.components.experts import Experts
from capstan_runtime.deepspeed_trainer.components.positions import PartOfPositions, Positions
from capstan_runtime.deepspeed_trainer.decoder import Attend, DecoderLayer, FeedForward, TransformerModel
from capstan_runtime.deepspeed_trainer.parallel.collectives import exchanged, summed, with_summed_gradient
from capstan_runtime.deepspeed_trainer.parallel.experts import share
from capstan_runtime.deepspeed_trainer.parallel.groups import Group, Groups
from capstan_runtime.deepspeed_trainer.parallel.shards import Shard
from capstan_runtime.errors import ConfigError


def cut(model: TransformerModel, shards: Mapping[str, Shard]) -> None:
    """Parameters get the shapes of their parts, and no meaningful values."""
    for name, shard in shards.items():
        if not shard.is_whole:
            path, _, attribute = name.rpartition(".")
            parameter: Any = nn.Parameter(torch.empty(shard.part.shape))
            parameter.model_parallel = True  # DeepSpeed, counting norms, takes others for copies
            setattr(model.get_submodule(path), attribute, parameter)


def spread(model: TransformerModel, groups: Groups) -> None:
    """Modules compute with the others of `groups` what they would alone with whole parameters.

    Both branches of a layer are cut alike (1909.08053): its first matrix by outputs, so that each rank has some heads
    or units; its second by inputs, so that what comes out is a sum over the ranks. Of each sequence a rank has a slice,
    but in attention. Experts may be shared with ranks that have other samples.
    """
    tensor, sequence = groups.tensor, groups.sequence
    count = model.config.heads // (tensor.size * sequence.size)
    first = count * (tensor.position * sequence.size + sequence.position)
    heads = slice(first, first + count)
    model.positions = PartOfPositions(model.config, heads, sequence.size, sequence.position)
    for layer in model.layers:
        if not isinstance(layer, DecoderLayer):  # another stage has it
            continue
        if tensor.size > 1:
            _cut_branches(layer, tensor)
        if groups.experts.size > 1:
            assert isinstance(layer.feed_forward, Experts)
            share(layer.feed_forward, groups.experts)
        if sequence.size > 1:
            layer.attention.attend = _across(layer.attention.attend, sequence)


def _cut_branches(layer: DecoderLayer, tensor: Group) -> None:
    attention, feed_forward = layer.attention, layer.feed_forward
    attention.heads //= tensor.size
    attention.kv_heads //= tensor.size
    if isinstance(feed_forward, FeedForward):
        feed_forward.first_unit = feed_forward.units * tensor.position // tensor.size
    for first, second in ((attention.qkv, attention.out), (feed_forward.gate_up, feed_forward.down)):
        _sum_input_gradient(first, tensor)
        _sum_output(second, tensor)


def _across(attend: Attend, group: Group) -> Attend:
    """Attention of whole sequences in some heads each, between ranks that have all heads of a slice each (Ulysses,
    2309.14509). Axes: P ranks, B batch, T time of a slice, S of all, N heads of q, k and v, H head width."""

    def attend_across(q_BTNH: Tensor, k_BTNH: Tensor, v_BTNH: Tensor, where: Positions) -> Tensor:
        # All three in one message.
        parts = [each.unflatten(2, (group.size, -1)) for each in (q_BTNH, k_BTNH, v_BTNH)]
        heads_PBTNH = exchanged(torch.cat(parts, dim=3).movedim(2, 0), group)
        heads_BSNH = heads_PBTNH.movedim(0, 1).flatten(1, 2)
        q_BSNH, k_BSNH, v_BSNH = heads_BSNH.split([part.shape[3] for part in parts], dim=2)
        mixed_BSNH = attend(q_BSNH, k_BSNH, v_BSNH, where)
        mixed_PBTNH = exchanged(mixed_BSNH.unflatten(1, (group.size, -1)).movedim(1, 0), group)
        return mixed_PBTNH.movedim(0, 2).flatten(2, 3)

    return attend_across


def _sum_input_gradient(module: nn.Module, group: Group) -> None:
    def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return with_summed_gradient(arguments[0], group), *arguments[1:]

    module.register_forward_pre_hook(before)


def _sum_output(module: nn.Module, group: Group) -> None:
    def after(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return summed(output, group)

    module.register_forward_hook(after)


def slice_of_sequences(groups: Groups, data: DataSpec) -> slice:
    """Which tokens of each sequence this rank computes. Raises ConfigError if they cannot be shared out evenly."""
    (length,), group = data.input_shape, groups.sequence
    if length % group.size:
        raise ConfigError(
            f"spec.parallelism.sequence: {group.size} does not divide the {length} tokens of a sequence of spec.data; "
            "choose a divisor"
        )
    return slice(length // group.size * group.position, length // group.size * (group.position + 1))
