"""A state in torch's tensors, and what torch.distributed.checkpoint takes to save and restore it."""

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from capstan_runtime.bench.checkpoints import Saved, State
from capstan_runtime.engine import Array

_DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def hold(state: State) -> Mapping[str, Tensor]:
    """On a CPU the same memory."""
    return {name: torch.from_numpy(array).to(_DEVICE) for name, array in state.items()}


def fetch(held: Tensor) -> Array:
    return held.cpu().numpy()


class TorchDCP:
    """With its defaults: it syncs its files, and compares no digests. `save` tells how long it takes until complete,
    `async_save` how long training is blocked."""

    name = "TorchDCP"

    def __init__(self, state: State, deadline_seconds: float) -> None:
        if not dist.is_initialized():  # async_save insists on a process group for the CPU
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self._state = hold(state)
        self._deadline_seconds = deadline_seconds
        self._restored: dict[str, Tensor] = {}

    def save(self, place: str) -> Saved:
        asynchronous = f"{place}-async"
        started = time.perf_counter()
        saving = cast("Future[Any]", dcp.async_save(dict(self._state), checkpoint_id=asynchronous))
        blocked = time.perf_counter() - started
        saving.result(self._deadline_seconds)
        shutil.rmtree(asynchronous)
        started = time.perf_counter()
        dcp.save(dict(self._state), checkpoint_id=place)
        return Saved(blocked, time.perf_counter() - started)

    def restore(self, place: str) -> float:
        self._restored = {}
        started = time.perf_counter()
        restored = {name: torch.empty_like(tensor) for name, tensor in self._state.items()}
        dcp.load(restored, checkpoint_id=place)
        seconds = time.perf_counter() - started
        self._restored = restored
        return seconds

    def restored(self) -> State:
        restored, self._restored = self._restored, {}
        return {name: fetch(tensor) for name, tensor in restored.items()}


library = TorchDCP
