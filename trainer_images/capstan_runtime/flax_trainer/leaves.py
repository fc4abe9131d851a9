"""The model's arrays as a flat list, and how they relate to the canonical parameters.

A leaf is either one parameter, or one parameter of every decoder layer, stacked. Stacked or not, its bytes are those of
its parameters laid end to end, which is all that saving needs to know.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from capstan_runtime.contract.models import Model
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.engine import TensorSource
from capstan_runtime.flax_trainer.forward_pass import Buffer
from capstan_runtime.flax_trainer.models import AnyModel, build_model
from capstan_runtime.low_rank import model_table
from capstan_runtime.model_spec import (
    ParameterSpec,
    initial_parameter,
    read_tensor,
    served_kind,
)
from capstan_runtime.quantization import Weights
from capstan_runtime.updates import StateKind


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of the model."""

    parameters: tuple[ParameterSpec, ...]
    """The canonical parameters it is made of, first layer to last."""
    shape: tuple[int, ...]
    name: str
    """Where it is in the module: that of its parameter or, if it is stacked, what theirs are without the layer."""

    @property
    def decays(self) -> bool:
        return self.parameters[0].decays

    @property
    def is_averaged(self) -> bool:
        """Whether a run with a moving average of its model has one of this leaf."""
        return self.parameters[0].is_averaged

    @property
    def stack(self) -> int:
        """How many of the first dimensions count parameters: 1 where layers are stacked, else 0."""
        return len(self.shape) - len(self.parameters[0].shape)

    @property
    def matrix_stack(self) -> int:
        """How many of the first dimensions number matrices or kernels: of several layers, or in one parameter."""
        return self.stack + self.parameters[0].matrix_dims

    def initial_value(self, seed: int) -> np.ndarray:
        return np.stack([initial_parameter(spec, seed) for spec in self.parameters]).reshape(self.shape)

    def initial_state(self, kind: StateKind, seed: int) -> np.ndarray:
        """State of that kind before the first step."""
        if kind.first is None:
            return self.initial_value(seed)
        return np.full(self.state_shape(kind), kind.first, np.float32)

    def read(self, source: TensorSource, kind: str | None) -> np.ndarray:
        """The parameters out of a checkpoint, or what they have of a kind; raises as `read_tensor` does."""
        one = self.shape[self.stack :]
        parts = [read_tensor(source, spec.tensor_name(kind), one) for spec in self.parameters]
        whole = np.stack(parts) if len(parts) > 1 else parts[0]
        return whole.astype(np.float32, copy=False).reshape(self.shape)

    def state_shape(self, kind: StateKind) -> tuple[int, ...]:
        """Of what there is of that kind."""
        return self.shape[: self.stack] if kind.per_parameter else self.shape


class Structure:
    """A model without its values: what turns a flat list of arrays into a module, inside a compiled function."""

    leaves: list[Leaf]
    """The parameters."""
    buffers: list[Leaf]
    """The state that no gradient moves."""

    def __init__(self, model: Model, data: DataSpec, rank: int | None = None) -> None:
        """`rank`: of products in the place of matrices. Raises as `model_table`."""
        by_name = {spec.name: spec for spec in model_table(model, data, rank)}
        module = nnx.eval_shape(lambda: build_model(model, data, rank))
        for path, buffer in nnx.to_flat_state(nnx.state(module, Buffer)):
            buffer.set_metadata(leaf=".".join(map(str, path)))
        self._graph, *states = nnx.split(module, nnx.Param, Buffer)
        paths, self._trees = zip(*map(jax.tree_util.tree_flatten_with_path, states), strict=True)
        self.leaves, self.buffers = (
            [_leaf(dotted(path), value.shape, by_name) for path, value in kind] for kind in paths
        )

    @property
    def everything(self) -> list[Leaf]:
        """The parameters, then the buffers."""
        return [*self.leaves, *self.buffers]

    def assemble(self, values: Sequence[jax.Array]) -> AnyModel:
        """The module whose arrays are `values`, in the order of `everything`."""
        parts = values[: len(self.leaves)], values[len(self.leaves) :]
        return nnx.merge(self._graph, *map(jax.tree_util.tree_unflatten, self._trees, parts))

    def read_served(self, source: TensorSource) -> list[np.ndarray]:
        """The values of `everything` out of a checkpoint, as they are served: averages, where it has some. Raises as
        `read_tensor` does."""
        kind = served_kind(source)
        return [leaf.read(source, kind) for leaf in self.everything]


def dotted(path: tuple[Any, ...]) -> str:
    """Names and numbers of a path in a module's state, the name of a parameter."""
    keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return ".".join(str(key) for key in keys)


def _leaf(name: str, shape: tuple[int, ...], by_name: dict[str, ParameterSpec]) -> Leaf:
    if name in by_name:
        return Leaf((by_name[name],), shape, name)
    stack, _, rest = name.partition(".")
    return Leaf(tuple(by_name[f"{stack}.{layer}.{rest}"] for layer in range(shape[0])), shape, name)


def whole_weights(leaf: Leaf, array: jax.Array) -> Iterator[Weights]:
    """The parameters of a leaf of which every process has all, to be fetched one by one."""
    here = array.addressable_data(0)
    for index, spec in enumerate(leaf.parameters):
        yield spec, functools.partial(lambda index: np.asarray(here[index] if leaf.stack else here), index)


def replicate(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """`value`, which every process has alike, as `sharding` spreads it. Copies nothing between processes."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
