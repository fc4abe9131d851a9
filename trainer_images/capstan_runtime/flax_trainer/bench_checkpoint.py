"""A state in JAX's arrays, and what Orbax takes to save and restore it."""

# JAX and Orbax leave these parts of their interfaces untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from capstan_runtime.bench.checkpoints import Saved, State
from capstan_runtime.engine import Array


def hold(state: State) -> Mapping[str, jax.Array]:
    return jax.block_until_ready({name: jax.device_put(array) for name, array in state.items()})


def fetch(held: jax.Array) -> Array:
    return np.asarray(held)


class Orbax:
    """StandardCheckpointer with its defaults: it saves in the background, and compares no digests."""

    name = "Orbax"

    def __init__(self, state: State, deadline_seconds: float) -> None:
        """It waits as long as it takes; a trial's own deadline bounds that."""
        self._checkpointer = ocp.StandardCheckpointer()
        self._state = hold(state)
        self._abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, self._state)
        self._restored: Mapping[str, jax.Array] = {}

    def save(self, place: str) -> Saved:
        started = time.perf_counter()
        self._checkpointer.save(Path(place), self._state)
        blocked = time.perf_counter() - started
        self._checkpointer.wait_until_finished()
        return Saved(blocked, time.perf_counter() - started)

    def restore(self, place: str) -> float:
        self._restored = {}
        started = time.perf_counter()
        self._restored = jax.block_until_ready(self._checkpointer.restore(Path(place), self._abstract))
        return time.perf_counter() - started

    def restored(self) -> State:
        restored, self._restored = self._restored, {}
        return {name: fetch(array) for name, array in restored.items()}


library = Orbax
