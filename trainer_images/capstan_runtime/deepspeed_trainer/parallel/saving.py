"""From a rank's parts of parameters to what it saves: ranges of whole ones, each element once over all ranks.

Axes: P ranks of the tensor group, R whole rows, W columns of a part.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from capstan_runtime.deepspeed_trainer.fragments import Fragment, even_share
from capstan_runtime.deepspeed_trainer.parallel.groups import Group, Groups
from capstan_runtime.deepspeed_trainer.parallel.shards import Shard
from capstan_runtime.updates import StateKind

Tensors = Mapping[StateKind | None, Tensor]


def saved_by(
    groups: Groups, shards: Mapping[str, Shard], fragments: Sequence[Fragment], stage: int, device: torch.device
) -> Iterator[Fragment]:
    """What this rank saves of `fragments`, which are of its parts, as fragments of whole parameters. Collective within
    the tensor group, whose members have the same fragments of their parts: ZeRO cuts equal shapes alike. `device`:
    where they can talk."""
    cut = [fragment for fragment in fragments if not shards[fragment.spec.name].is_whole]
    whole = [fragment for fragment in fragments if shards[fragment.spec.name].is_whole]
    if stage == 0:
        experts = [fragment for fragment in cut if fragment.spec.matrix_dims]
        others = [fragment for fragment in cut if not fragment.spec.matrix_dims]
        cut = [*_share_of(others, groups.copies), *_share_of(experts, groups.expert_copies)]
        yield from _share_of(whole, groups.stage)
    else:
        yield from _share_of(whole, groups.tensor)
    for fragment in cut:
        shard = shards[fragment.spec.name]
        if shard.is_cut_by_columns:
            yield from _of_columns(shard, fragment, groups.tensor, device)
        else:
            yield from _of_rows(shard, fragment)


def _share_of(fragments: Sequence[Fragment], group: Group) -> list[Fragment]:
    return even_share(fragments, group.position, group.size)


def _of_rows(shard: Shard, fragment: Fragment) -> Iterator[Fragment]:
    for (low, high), place in shard.stretches(fragment.start, fragment.start + fragment.size):
        yield _placed(shard, fragment.narrowed(low - fragment.start, high - fragment.start).tensors, place)


def _of_columns(shard: Shard, fragment: Fragment, group: Group, device: torch.device) -> Iterator[Fragment]:
    """Whole rows, of which each member puts an even share together; and by itself what it has of the rows that its
    fragment begins and ends in."""
    width, columns, offset = shard.width, shard.whole.shape[-1], shard.rows[0][0]
    start, stop = fragment.start, fragment.start + fragment.size
    first, last = -(-start // width), stop // width
    is_ragged = first >= last
    for low, high in [(start, stop)] if is_ragged else [(start, first * width), (last * width, stop)]:
        for begin, end in _by_rows(low, high, width):
            place = (offset + begin // width) * columns + shard.columns[0] + begin % width
            yield _placed(shard, fragment.narrowed(begin - start, end - start).tensors, place)
    if is_ragged:
        return
    cuts = [first + (last - first) * number // group.size for number in range(group.size + 1)]
    rows = fragment.narrowed(first * width - start, last * width - start).tensors
    mine = cuts[group.position]
    # State that is kept in the host's memory cannot be sent from there.
    taken = {kind: _exchanged(tensor.to(device), cuts, width, group) for kind, tensor in rows.items()}
    if cuts[group.position + 1] > mine:
        yield _placed(shard, taken, (offset + mine) * columns)


def _by_rows(low: int, high: int, width: int) -> Iterator[tuple[int, int]]:
    while low < high:
        end = min(high, (low // width + 1) * width)
        yield low, end
        low = end


def _exchanged(own_RW: Tensor, cuts: Sequence[int], width: int, group: Group) -> Tensor:
    """From this rank's columns of all rows between `cuts` to all columns of those that are its share, flattened."""
    counts = [stop - start for start, stop in pairwise(cuts)]
    mine = counts[group.position]
    found = own_RW.new_empty(group.size * mine * width)
    dist.all_to_all_single(
        found,
        own_RW.contiguous(),
        [mine * width] * group.size,
        [count * width for count in counts],
        group=group.process_group,
    )
    return torch.movedim(found.view(group.size, mine, width), 0, 1).reshape(-1)


def _placed(shard: Shard, tensors: Tensors, place: int) -> Fragment:
    return Fragment(shard.whole, place, tensors)
