"""A program's state on its way through a checkpoint: torch's, JAX's and numpy's arrays, and what is none."""

import collections
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import SaveName
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.checkpoint.saver import Identity, Saver
from capstan_runtime.checkpoint.staging import StagingArea
from capstan_runtime.errors import ConfigError, GpuOutOfMemory, PeerLost
from capstan_runtime.program.foreign import scalar_later, translated
from capstan_runtime.program.state import ProgramState
from capstan_runtime.program.tree import take_apart
from tests.support.checkpoints import trainer_state

Pair = collections.namedtuple("Pair", ["mean", "scale"])


def through_a_checkpoint(folder: Path, state: object) -> tuple[Any, list[str]]:
    """The state as it comes back, and the names of its tensors."""
    store, held = FolderStore(folder), ProgramState(0, 1, lambda payload: [payload])
    held.take(state, isLast=False)
    identity = Identity(store, "default/own", "uid", "program", fence=1, attempt="0" * 12, rank=0, world=1)
    staging = StagingArea(None, "uid", 0, print)
    saver = Saver(identity, None, held.exchange, 20.0, staging, on_staged=print, on_trouble=print)
    saver.save(trainer_state(1), held.export_state())
    tensors = open_checkpoint(store, SaveName(1, 1, "0" * 12)).tensors()
    held.import_state(tensors)
    assert held.restored is not None
    return held.restored["state"], sorted(tensors.names())


def test_a_torch_model_and_its_optimizer_come_back_as_torch_had_them(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    state = {"params": model.state_dict(), "optimizer": optimizer.state_dict()}
    found, names = through_a_checkpoint(tmp_path, state)
    assert names == [
        "optimizer/state/0/exp_avg", "optimizer/state/0/exp_avg_sq", "optimizer/state/0/step",
        "optimizer/state/1/exp_avg", "optimizer/state/1/exp_avg_sq", "optimizer/state/1/step",
        "params/bias", "params/weight", "program.json",
    ]  # fmt: skip
    again = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    again.load_state_dict(found["params"])
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    other = torch.optim.AdamW(again.parameters(), lr=0.5)
    other.load_state_dict(found["optimizer"])
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for mine, theirs in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_arrays_of_jax_and_numpy_and_everything_that_is_none_come_back_as_they_were(tmp_path: Path) -> None:
    state = {
        "params": {"w": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "none": jnp.zeros((0, 3))},
        "counts": (np.int64(7), np.arange(3, dtype=np.uint8)[::-1], np.asarray(True)),
        "nested": [{"text": "ä", 1: None, "1": True}, [1, 2.5, -math.inf], ()],
        "large": 1 << 80,
    }
    found, _ = through_a_checkpoint(tmp_path, state)
    assert isinstance(found["params"]["w"], jax.Array)
    assert found["params"]["w"].dtype == jnp.bfloat16
    assert found["params"]["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["params"]["none"].shape == (0, 3)
    assert [np.asarray(each).tolist() for each in found["counts"]] == [7, [2, 1, 0], True]
    assert isinstance(found["counts"], tuple)
    assert found["nested"] == state["nested"]
    assert found["large"] == 1 << 80


REFUSED = {
    "an object": ({"params": {"w": object()}}, "job.save: params/w is of type object, which cannot be saved, because"),
    "a pytree's node": ([Pair(1, 2)], "job.save: 0 is of type Pair, which cannot be saved"),
    "numbers that safetensors has not": (
        {"w": np.zeros(2, np.complex64)},
        "job.save: w has elements of type complex64",
    ),
    "two of one name": ({"a": {1: np.zeros(2), "1": np.zeros(2)}}, "job.save: two tensors would be called a/1; rename"),
    "a key that is no text": ({("a", 1): 2}, r"job.save: state has the key ('a', 1); keys are text or numbers"),
    "a sparse tensor": ({"w": torch.eye(2).to_sparse()}, "job.save: w is a sharded, sparse or quantised tensor; every"),
}


@pytest.mark.parametrize(("state", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_saved_is_refused_by_its_place(state: object, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        take_apart(state)
    assert str(refused.value).startswith(expected)
    assert "\n" not in str(refused.value)


def test_a_metric_is_the_number_that_it_was_when_it_was_told() -> None:
    on_torch, on_numpy = torch.ones((), requires_grad=True) * 2, np.ones(())
    told = [scalar_later(value) for value in (on_torch, on_numpy, jnp.asarray(3.0), 4)]
    with torch.no_grad():
        on_torch.zero_()
    on_numpy[...] = 0
    assert [each() for each in told] == [2.0, 1.0, 3.0, 4.0]


MEANS = {
    "torch, no memory": (torch.OutOfMemoryError("CUDA out of memory. Tried"), GpuOutOfMemory),
    "torch, the host's": (RuntimeError("[enforce fail at alloc_cpu] can't allocate memory: you tried"), GpuOutOfMemory),
    "JAX, no memory": (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"), GpuOutOfMemory),
    "gloo": (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), PeerLost),
    "torch.distributed": (torch.distributed.DistNetworkError("failed to recv"), PeerLost),
    "JAX, a peer": (jax.errors.JaxRuntimeError("UNAVAILABLE: the coordination service"), PeerLost),
    "the program's own": (ValueError("socket is no shape"), None),
}


@pytest.mark.parametrize(("error", "meaning"), MEANS.values(), ids=MEANS)
def test_errors_of_frameworks_are_taken_for_what_they_mean(error: Exception, meaning: type[Exception] | None) -> None:
    found = translated(error)
    assert (found is error) if meaning is None else (type(found) is meaning and found.__cause__ is error)
