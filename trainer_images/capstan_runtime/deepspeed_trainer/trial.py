"""How much memory the passes of a step take, tried before the first step, without a trace."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capstan_runtime.deepspeed_trainer.fragments import Fragment
from capstan_runtime.deepspeed_trainer.world import translated_errors
from capstan_runtime.errors import GpuOutOfMemory


@contextlib.contextmanager
def stand_ins(module: nn.Module, keeps_gradients: bool) -> Iterator[None]:
    """Inside, parameters of the same values in the same memory stand in for those of `module`. So DeepSpeed, which
    hangs on to its own, sees no backward pass, no rank waits for another, and gradients go as they came. Not
    `keeps_gradients`: each goes as soon as it is complete, as those that are reduced at once do."""
    own = [(part, name, value) for part in module.modules() for name, value in part._parameters.items()]
    others: dict[int, nn.Parameter] = {}
    try:
        for part, name, value in own:
            if value is not None:
                other = others.setdefault(id(value), nn.Parameter(value.detach(), value.requires_grad))
                part._parameters[name] = other
        if not keeps_gradients:
            for other in others.values():
                if other.requires_grad:
                    other.register_post_accumulate_grad_hook(_drop)
        yield
    finally:
        for part, name, value in own:
            part._parameters[name] = value


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def peak_of(passes: Callable[[], None], device: torch.device, kept: Iterable[Tensor], limit: int) -> int | None:
    """Bytes that are in use at most during `passes`; None: more than there are. `kept` is all that lives on the device
    before, and `limit` the bytes that there are: for CPUs, where nobody else counts."""
    try:
        with translated_errors():
            if device.type != "cuda":
                with _Tally(kept, limit) as tally:
                    passes()
                return tally.peak
            torch.cuda.reset_peak_memory_stats(device)
            passes()
            return torch.cuda.max_memory_allocated(device)
    except GpuOutOfMemory:
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # whose pieces are cut as the trial wanted them


def memory_of_reduction(engine: Any, fragments: Sequence[Fragment]) -> int:
    """Bytes that `engine`, a DeepSpeedEngine below stage 3, keeps beside the passes: a bucket for gradients and, at
    stage 2, its part of their sum, as long as that is not in the host's memory."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return 0
    elements = int(engine.optimizer.reduce_bucket_size)
    if stage == 2 and not engine.optimizer.cpu_offload:
        elements += sum(fragment.tensors[None].numel() for fragment in fragments)
    return elements * torch.float32.itemsize


class _Tally(TorchDispatchMode):
    """Of the sizes of all that tensors are kept in, while they are."""

    def __init__(self, kept: Iterable[Tensor], limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in kept:
            self._take_in(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._take_in(each)
        return made

    def _take_in(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        weakref.finalize(storage, self._let_go, size)
        self._now += size
        self.peak = max(self.peak, self._now)
        if self._now > self._limit:
            raise torch.OutOfMemoryError(f"{self._now:,} bytes are in use, and there are {self._limit:,}")

    def _let_go(self, size: int) -> None:
        self._now -= size
