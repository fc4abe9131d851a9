"""The libraries that benchmarks/checkpoints.py compares, behind one interface."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import SaveName, new_attempt
from capstan_runtime.checkpoint.manifest import TrainerState
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.checkpoint.saver import Identity, Saver
from capstan_runtime.checkpoint.staging import StagingArea
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.engine import LocalTensor

State = Mapping[str, np.ndarray]
RUN = "benchmark-uid"
DEADLINE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Saved:
    """What one save took."""

    blocked_seconds: float
    """Until the caller could go on."""
    seconds: float
    """Until the checkpoint was complete."""


class Library(Protocol):
    name: str

    def save(self, folder: Path) -> Saved:
        """A complete checkpoint in `folder`, which is new."""
        ...

    @contextmanager
    def saving(self, folder: Path) -> Iterator[None]:
        """Inside, a save that has just been started goes on; afterwards it is complete."""
        ...

    def restore(self, folder: Path) -> float:
        """Seconds until the whole state was in memory."""
        ...

    def check(self) -> None:
        """Raises AssertionError unless the last restore gave back what was saved."""
        ...


def _fail(message: str) -> None:
    raise RuntimeError(message)


def _no_tier(message: str) -> None:
    raise AssertionError(f"there is no memory tier here: {message}")


class Capstan:
    """One rank's saver as the training loop uses it, in a world of one."""

    name = "Capstan"

    def __init__(self, state: State) -> None:
        self._state = state
        self._staging = StagingArea(None, RUN, 0, _no_tier)
        self._restored: dict[str, np.ndarray] = {}

    def save(self, folder: Path) -> Saved:
        started = time.perf_counter()
        saver = self._begin(folder)
        blocked = time.perf_counter() - started
        _require_committed(saver)
        return Saved(blocked, time.perf_counter() - started)

    @contextmanager
    def saving(self, folder: Path) -> Iterator[None]:
        saver = self._begin(folder)
        yield
        _require_committed(saver)

    def _begin(self, folder: Path) -> Saver:
        identity = Identity(
            store=FolderStore(folder),
            job="default/benchmark",
            run=RUN,
            framework="flax",
            fence=1,
            attempt=new_attempt(RUN),
            rank=0,
            world=1,
        )

        def ignore_staged(_: Checkpoint) -> None:
            """There is no memory tier to tell."""

        saver = Saver(identity, None, lambda own: [own], DEADLINE_SECONDS, self._staging, ignore_staged, _fail)
        tensors = (LocalTensor(name, array.shape, 0, array.reshape(-1)) for name, array in self._state.items())
        saver.begin(_trainer_state(), tensors, {})
        return saver

    def restore(self, folder: Path) -> float:
        self._restored = {}
        started = time.perf_counter()
        names = [name for child in folder.iterdir() if (name := SaveName.parse(child.name))]
        tensors = open_checkpoint(FolderStore(folder), names[0]).tensors()
        self._restored = {name: tensors.read(name) for name in tensors.names()}
        return time.perf_counter() - started

    def check(self) -> None:
        _require_equal(self._state, self._restored)
        self._restored = {}


def _require_committed(saver: Saver) -> None:
    outcome = saver.settle()
    if outcome is None or outcome.checkpoint is None:
        raise RuntimeError(f"the save failed: {outcome}")


def _trainer_state() -> TrainerState:
    return TrainerState(
        step=1,
        seed=0,
        global_batch_size=1,
        virtual_ranks=1,
        plan_version=1,
        data_fingerprint="blake3:00",
        learning_rate_step=1,
        loss=1.0,
    )


class DCP:
    """torch.distributed.checkpoint: save and load for the time until complete, async_save for the time blocked."""

    name = "torch DCP"

    def __init__(self, state: State) -> None:
        import torch
        import torch.distributed as distributed
        import torch.distributed.checkpoint as dcp

        self._dcp = dcp
        self._torch = torch
        if not distributed.is_initialized():  # async_save insists on a process group for the CPU
            distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        self._reference = state
        self._state = {name: torch.from_numpy(array) for name, array in state.items()}
        self._restored: dict[str, torch.Tensor] = {}

    def save(self, folder: Path) -> Saved:
        started = time.perf_counter()
        self._dcp.save(dict(self._state), checkpoint_id=folder)
        seconds = time.perf_counter() - started
        another = folder.with_name(f"{folder.name}-async")
        with self._asynchronous(another) as blocked:
            pass
        shutil.rmtree(another)
        return Saved(blocked, seconds)

    @contextmanager
    def saving(self, folder: Path) -> Iterator[None]:
        with self._asynchronous(folder):
            yield

    @contextmanager
    def _asynchronous(self, folder: Path) -> Iterator[float]:
        started = time.perf_counter()
        saving = self._dcp.async_save(dict(self._state), checkpoint_id=folder)
        yield time.perf_counter() - started
        saving.result(DEADLINE_SECONDS)

    def restore(self, folder: Path) -> float:
        self._restored = {}
        started = time.perf_counter()
        restored = {name: self._torch.empty_like(tensor) for name, tensor in self._state.items()}
        self._dcp.load(restored, checkpoint_id=folder)
        seconds = time.perf_counter() - started
        self._restored = restored
        return seconds

    def check(self) -> None:
        _require_equal(self._reference, {name: tensor.numpy() for name, tensor in self._restored.items()})
        self._restored = {}


class Orbax:
    """orbax.checkpoint.StandardCheckpointer, which saves in the background."""

    name = "Orbax"

    def __init__(self, state: State) -> None:
        import jax
        import orbax.checkpoint as ocp

        self._jax = jax
        self._checkpointer = ocp.StandardCheckpointer()
        self._reference = state
        self._state = {name: jax.device_put(array) for name, array in state.items()}
        self._abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, self._state)
        self._restored: dict[str, np.ndarray] = {}

    def save(self, folder: Path) -> Saved:
        started = time.perf_counter()
        self._checkpointer.save(folder, self._state)
        blocked = time.perf_counter() - started
        self._checkpointer.wait_until_finished()
        return Saved(blocked, time.perf_counter() - started)

    @contextmanager
    def saving(self, folder: Path) -> Iterator[None]:
        self._checkpointer.save(folder, self._state)
        yield
        self._checkpointer.wait_until_finished()

    def restore(self, folder: Path) -> float:
        self._restored = {}
        started = time.perf_counter()
        self._restored = self._jax.block_until_ready(self._checkpointer.restore(folder, self._abstract))
        return time.perf_counter() - started

    def check(self) -> None:
        _require_equal(self._reference, {name: np.asarray(array) for name, array in self._restored.items()})
        self._restored = {}


def _require_equal(saved: State, restored: State) -> None:
    if saved.keys() != restored.keys() or not all(np.array_equal(saved[name], restored[name]) for name in saved):
        raise AssertionError("what was restored is not what was saved")
