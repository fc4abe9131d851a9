"""State that is kept on a disk and computed with where it is: files that are mapped into memory.

DeepSpeed's own swapping to NVMe empties the tensors between steps, which a save would have to fill again, and needs a
library of the system's. Here a tensor's memory is a file: DeepSpeed keeps it "in the host's memory", and the kernel,
which pages it, writes what the host has no room for to the disk and reads it ahead again. Saves and restores see
tensors like any other.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capstan_runtime.contract.framework import DeepSpeedOffload
from capstan_runtime.errors import ConfigError
from capstan_runtime.scratch import map_file, scratch_folder

SMALLEST_BYTES = 64 * 1024
"""Of a tensor that is worth a file."""

Keep = Callable[[Tensor], Tensor]
"""A tensor as it is to be kept: itself, or a copy."""


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def move_to_disk(engine: Any, offload: DeepSpeedOffload | None, environ: Mapping[str, str]) -> Keep:
    """Of a DeepSpeedEngine that nothing has used yet, what `offload` says: parameters at once; what it returns does so
    with a tensor of the optimizer's. Raises ConfigError when there is no room, now rather than at a step."""
    to_file = partial(_in_a_file, scratch_folder(environ) or Path(tempfile.gettempdir()))
    if offload is not None and offload.parameters is not None and offload.parameters.nvme is not None:
        _move_parameters(engine, to_file)
    if offload is None or offload.optimizer is None or offload.optimizer.nvme is None:
        return as_it_is
    for parameter in engine.module.parameters():
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:  # nobody asks for it, and it would keep the memory where masters are at first
            mapping.hp_fragment = None
    return to_file


def _move_parameters(engine: Any, keep: Keep) -> None:
    """What stage 3 gathers parameters from."""
    optimizer = engine.optimizer
    parts = [parameter.ds_tensor for parameter in engine.module.parameters()]
    _keep_all([*optimizer.param_groups_fp16_flat_cpu_memory, *optimizer.fp16_partitioned_groups_flat, *parts], keep)


def _keep_all(tensors: Iterable[Tensor], keep: Keep) -> None:
    """Those that shared memory share it again."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage)
            kept[storage.data_ptr()] = whole, keep(whole)  # the old one, too: its address may not be another's yet
        new = kept[storage.data_ptr()][1]
        tensor.data = new.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _in_a_file(folder: Path, tensor: Tensor) -> Tensor:
    """A copy of `tensor` whose memory is a file in `folder`. Raises ConfigError."""
    size = tensor.numel() * tensor.element_size()
    if size < SMALLEST_BYTES or tensor.device.type != "cpu":
        return tensor
    try:
        pages = map_file(folder, size)
    except OSError as error:
        raise ConfigError(
            f"spec.framework.deepspeed.offload: nvme has no room for state: {error.strerror}; give the pod's volume "
            "`scratch` more by workers.podPatch, or choose cpu"
        ) from None
    copy = torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)
