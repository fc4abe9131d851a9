"""Where ZeRO keeps the fp32 master weights and the state of each parameter on this rank.

Stage 0 keeps everything everywhere. Stages 1 and 2 flatten each parameter group, cut it into equal parts, and give
each rank one: a parameter may begin on one rank and end on the next. Stage 3 cuts every parameter into equal parts.
Weights and state are cut alike, so one address serves both.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capstan_runtime.deepspeed_trainer.disk import Keep, as_it_is
from capstan_runtime.deepspeed_trainer.optimizers.state import make_state
from capstan_runtime.deepspeed_trainer.parallel.shards import Shard
from capstan_runtime.engine import Array, LocalTensor, TensorSource
from capstan_runtime.model_spec import STEP_NAME, ParameterSpec, read_tensor, tensor_name
from capstan_runtime.parallel.ahead import begun_ahead
from capstan_runtime.parallel.tiling import tile_evenly
from capstan_runtime.updates import EMA, StateKind

_FETCHED_AHEAD = 2
"""Tensors on their way to the host while one is being saved: enough to keep the device's link busy."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """Elements [start, start + n) of one parameter and of its state, as views of what the optimizer works on."""

    spec: ParameterSpec
    start: int
    tensors: Mapping[StateKind | None, Tensor]
    """By kind of state, None for the weights themselves; [n], fp32. What there is one of per parameter is [1], with the
    parameter's first element."""

    @property
    def size(self) -> int:
        """n."""
        return self.tensors[None].numel()

    def of_weights(self) -> "Fragment":
        """Without state."""
        return Fragment(self.spec, self.start, {None: self.tensors[None]})

    def narrowed(self, start: int, stop: int) -> "Fragment":
        """Elements [start, stop) of this fragment."""
        tensors = {
            kind: tensor if kind is not None and kind.per_parameter else tensor[start:stop]
            for kind, tensor in self.tensors.items()
        }
        return Fragment(self.spec, self.start + start, tensors)


def buffers_of(engine: Any, table: Sequence[ParameterSpec], kinds: tuple[StateKind, ...]) -> list[Fragment]:
    """The buffers of `table`, which every rank has whole at every stage. Of `kinds` they have their average alone, made
    here."""
    buffers = dict(engine.module.named_buffers())
    average = [kind for kind in kinds if kind.name == EMA]
    found = []
    for spec in table:
        if not spec.is_trained:
            own = buffers[spec.name].view(-1)
            found.append(Fragment(spec, 0, {None: own, **{k: own.clone() for k in average if spec.is_averaged}}))
    return found


def fragments_of(
    engine: Any, table: Sequence[ParameterSpec], kinds: tuple[StateKind, ...], step: int, keep: Keep = as_it_is
) -> list[Fragment]:
    """All that this rank keeps of the parameters in `table`, in its order; the optimizer's state is made where there is
    none yet. Master weights and state become what `keep` makes of them.

    `engine` is a DeepSpeedEngine; `step` the number of optimizer steps done.
    """
    parameters = dict(engine.module.named_parameters())
    locate = {0: _locate_replicated, 1: _locate_flattened, 2: _locate_flattened, 3: _locate_partitioned}
    torch_optimizer = engine.basic_optimizer
    state_of: dict[int, dict[StateKind, Tensor]] = {}
    found = []
    for spec in table:
        address = locate[engine.zero_optimization_stage()](engine, parameters[spec.name])
        if address is None:
            continue
        flat_parameter, offset, start, size = address
        if id(flat_parameter) not in state_of:
            flat_parameter.data = keep(flat_parameter.data)
            state_of[id(flat_parameter)] = make_state(torch_optimizer, flat_parameter, kinds, step, keep)
        views: dict[StateKind | None, Tensor] = {None: flat_parameter.detach().view(-1)[offset : offset + size]}
        for kind, tensor in state_of[id(flat_parameter)].items():
            views[kind] = tensor.view(1) if kind.per_parameter else tensor.view(-1)[offset : offset + size]
        found.append(Fragment(spec, start, views))
    return found


_Address = tuple[Tensor, int, int, int]
"""The tensor the optimizer works on, the offset in it, the offset in the parameter, and the number of elements."""


def _locate_replicated(engine: Any, parameter: nn.Parameter) -> _Address | None:
    return parameter, 0, 0, parameter.numel()


def _locate_flattened(engine: Any, parameter: Any) -> _Address | None:
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it is on other ranks
        return None
    master = engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return master, here.start, there.start, here.numel


def _locate_partitioned(engine: Any, parameter: Any) -> _Address | None:
    optimizer = engine.optimizer
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = size * dist.get_rank(optimizer.dp_process_group)
    # The last parts are padded, or padding altogether.
    size = min(size, parameter.ds_numel - start)
    return (optimizer.fp32_partitioned_groups_flat[group], offset, start, size) if size > 0 else None


def export_fragments(saved: Iterable[Fragment], step: int | None) -> Iterator[LocalTensor]:
    """Fragments of whole parameters, and the step, if it is given."""
    stored = ((fragment, kind) for fragment in saved for kind in fragment.tensors)
    for fragment, kind, fetch in begun_ahead(stored, _begin_fetch, _FETCHED_AHEAD):
        if kind is None or not kind.per_parameter:
            name = tensor_name(fragment.spec.name, kind.name if kind is not None else None)
            yield LocalTensor(name, fragment.spec.shape, fragment.start, fetch.data())
        elif fragment.start == 0:
            yield LocalTensor(tensor_name(fragment.spec.name, kind.name), (), 0, fetch.data())
    if step is not None:
        yield LocalTensor(STEP_NAME, (), 0, torch.tensor([step], dtype=torch.int64).numpy())


def _begin_fetch(stored: tuple[Fragment, StateKind | None]) -> tuple[Fragment, StateKind | None, "_Fetch"]:
    fragment, kind = stored
    return fragment, kind, _Fetch(fragment.tensors[kind])


class _Fetch:
    """A tensor on its way to the host; one that is there already stays where it is."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            # Only page-locked memory is filled while the host goes on, and several times as fast.
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def data(self) -> Array:
        """Waits for it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()


def even_share(fragments: Sequence[Fragment], rank: int, world: int) -> list[Fragment]:
    """Of what `world` ranks have in common, what one of them saves."""
    sizes = [fragment.size for fragment in fragments]
    return [fragments[part.tensor].narrowed(part.start, part.stop) for part in tile_evenly(sizes, rank, world)]


def import_buffers(buffers: Sequence[Fragment], source: TensorSource) -> None:
    """Fills the buffers and their averages. Raises as `read_tensor` does."""
    for buffer in buffers:
        for kind in buffer.tensors:
            _fill(buffer, kind, Shard.all_of(buffer.spec), source)


def import_fragments(
    engine: Any, fragments: Sequence[Fragment], shards: Mapping[str, Shard], source: TensorSource
) -> None:
    """Fills the fragments, and the weights that the forward pass reads. Of masters and state only this rank's part is
    read; of weights that are whole here, all. Raises as `read_tensor` does. `shards`: this rank's part of each
    parameter, of which the fragments are."""
    here = {fragment.spec.name: fragment for fragment in fragments}
    parameters = dict(engine.module.named_parameters())
    for name, shard in shards.items():
        fragment, parameter = here.get(name), parameters[name]
        if _is_whole(parameter):
            weights = _tensor(shard.read(source, tensor_name(name)))
            parameter.data.copy_(weights)
            if fragment is not None:
                master = fragment.tensors[None]
                master.copy_(weights.view(-1)[fragment.start : fragment.start + master.numel()])
        elif fragment is not None:
            _fill(fragment, None, shard, source)
        if fragment is not None:
            for kind in fragment.tensors:
                if kind is not None:
                    _fill(fragment, kind, shard, source)
            _spread_master(fragment, parameter)


def _fill(fragment: Fragment, kind: StateKind | None, shard: Shard, source: TensorSource) -> None:
    tensor = fragment.tensors[kind]
    name = tensor_name(fragment.spec.name, kind.name if kind is not None else None)
    if kind is not None and kind.per_parameter:
        tensor.copy_(_tensor(read_tensor(source, name, ())))
    else:
        tensor.copy_(_tensor(shard.read_range(source, name, fragment.start, fragment.start + tensor.numel())))


def _spread_master(fragment: Fragment, parameter: Any) -> None:
    """At stage 3, fills what whole parameters are gathered from; it is padded at the end."""
    if hasattr(parameter, "ds_tensor"):
        master = fragment.tensors[None]
        parameter.ds_tensor.data.view(-1)[: master.numel()].copy_(master)


def _is_whole(parameter: Any) -> bool:
    """Whether all of the forward pass's copy of a parameter is here now: always, but at stage 3 only of small ones."""
    status = getattr(parameter, "ds_status", None)
    return status is None or status.name == "AVAILABLE"


def _tensor(array: Array) -> Tensor:
    """Numbers with a fraction as fp32, counts and truths as they are."""
    return torch.from_numpy(array if array.dtype.kind in "iub" else array.astype("float32", copy=False))
