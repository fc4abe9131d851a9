"""A batch of the host as micro-steps on the device."""

import numpy as np
import torch
from torch import Tensor

from capstan_runtime.engine import Array, Batch


def micro_steps(batch: Batch[Array], device: torch.device, tokens: slice) -> list[Batch[Tensor]]:
    """The micro-steps of a batch, on the device: of sequences `tokens`, which is what this rank has. Keys are int64
    there (`random.py`)."""
    if batch.keys is not None:
        batch = batch._replace(keys=batch.keys.astype(np.int64))
    if tokens != slice(None):
        batch = batch._replace(inputs=batch.inputs[..., tokens], targets=batch.targets[..., tokens])
    tensors = [None if array is None else _to_device(array, device) for array in batch]
    cut = (tuple(None if each is None else each[number] for each in tensors) for number in range(len(batch.inputs)))
    return [Batch._make(arrays) for arrays in cut]


class Pace:
    """Keeps the host one batch ahead of the device and no more: what it tells of its progress is true then, and what it
    is asked meanwhile is heard."""

    def __init__(self, device: torch.device) -> None:
        self._is_queued = device.type == "cuda"
        self._before: torch.cuda.Event | None = None

    def queued(self) -> None:
        """All of a batch is."""
        if not self._is_queued:
            return
        event = torch.cuda.Event()
        event.record()
        if self._before is not None:
            self._before.synchronize()
        self._before = event


def _to_device(array: Array, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor
