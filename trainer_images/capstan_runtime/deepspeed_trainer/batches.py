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


def _to_device(array: Array, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor
