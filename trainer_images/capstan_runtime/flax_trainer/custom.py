"""A user's own NNX module in the loop: made alike on every rank, and called as its author would.

Chance in it, such as dropout, comes from its own `nnx.Rngs`, whose keys are set for each micro-step from those of its
samples: so it is the same for any number of workers, and after a resume.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from capstan_runtime.contract.custom_model import Custom
from capstan_runtime.custom_model import (
    TRIAL_SAMPLES,
    changes_as_it_is_called,
    constant_spec,
    make_module,
    parameter_spec,
    require_logits,
    require_parameters,
    require_same_start,
    trial_failed,
)
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import Failure
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.leaves import Leaf, dotted
from capstan_runtime.model_spec import ParameterSpec, read_tensor


@dataclass(frozen=True, slots=True)
class CustomLeaf(Leaf):
    """One parameter of the module, or a variable that is none."""

    first: np.ndarray
    """What its factory has made of the run's seed."""

    def initial_value(self, seed: int) -> np.ndarray:
        return self.first

    def read(self, source: TensorSource, kind: str | None) -> np.ndarray:
        found = read_tensor(source, self.parameters[0].tensor_name(kind), self.shape)
        return found.astype(self.first.dtype, copy=False)


class CustomStructure:
    """As `leaves.Structure`, of a module that is not ours. Its factory has run, so JAX has looked at its devices."""

    def __init__(self, custom: Custom, data: DataSpec, seed: int) -> None:
        """Raises ConfigError for what cannot be trained here."""
        self._data = data
        # Outside of any compiled function, where NNX would take arrays that are no variables for static attributes.
        module = make_module(custom, data, nnx.Module, rngs=nnx.Rngs(seed))
        self._graphs = {}
        for is_training in (True, False):
            (module.train if is_training else module.eval)()
            split: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
            graph, parameters, chances, constants = split
            self._graphs[is_training] = graph
        paths, self._tree = jax.tree_util.tree_flatten_with_path(parameters)
        first = [
            _leaf(parameter_spec(dotted(path), value.shape), np.asarray(value, np.float32)) for path, value in paths
        ]
        paths, self._constants_tree = jax.tree_util.tree_flatten_with_path(constants)
        held = [(dotted(path), np.asarray(value)) for path, value in paths]
        constant = [_leaf(constant_spec(name, value.dtype.name, value.shape), value) for name, value in held]
        self._first = [leaf.first for leaf in (*first, *constant)]
        self.leaves: list[Leaf] = [*first]
        self.buffers: list[Leaf] = [*constant]
        """What is no parameter, which does not change."""
        require_parameters([leaf.parameters[0] for leaf in self.everything])
        self._chances = chances
        self._try()

    @property
    def everything(self) -> list[Leaf]:
        """The parameters, then the constants."""
        return [*self.leaves, *self.buffers]

    def assemble(self, values: Sequence[jax.Array]) -> Callable[[jax.Array, Pass], jax.Array]:
        """The model whose arrays are `values`, in the order of `everything`."""

        def call(inputs: jax.Array, here: Pass) -> jax.Array:
            return self._module(values, here)(_perturbed(inputs, here))

        return call

    def require_same_weights(self, exchange: Callable[[bytes], Sequence[bytes]]) -> None:
        """Raises ConfigError unless all ranks have made the same, constants too. Collective."""
        require_same_start(zip((leaf.name for leaf in self.everything), self._first, strict=True), exchange)

    def _module(self, values: Sequence[jax.Array], here: Pass) -> Any:
        parameters = jax.tree_util.tree_unflatten(self._tree, values[: len(self.leaves)])
        constants = jax.tree_util.tree_unflatten(self._constants_tree, values[len(self.leaves) :])
        base = jax.random.key(0 if here.keys_B is None else here.keys_B[0])
        chances = self._chances_from(base)
        return nnx.merge(self._graphs[here.is_training], parameters, chances, constants)

    def _chances_from(self, base: jax.Array) -> Any:
        """The state of the module's generators: keys that follow from `base`, and counts of 0."""
        leaves, tree = jax.tree.flatten(self._chances)
        fresh = [
            jax.random.split(jax.random.fold_in(base, number), leaf.shape)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for number, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(tree, fresh)

    def _try(self) -> None:
        """Traces the module as training will call it. Raises ConfigError."""
        dtype = jnp.int32 if self._data.kind == "tokens" else jnp.float32
        inputs = jax.ShapeDtypeStruct((TRIAL_SAMPLES, *self._data.input_shape), dtype)
        keys = jax.ShapeDtypeStruct((TRIAL_SAMPLES,), jnp.uint32)
        changed: list[str] = []

        def call(values: Sequence[jax.Array], inputs: jax.Array, keys_B: jax.Array) -> Any:
            module = self._module(values, Pass(jnp.dtype(jnp.float32), keys_B))
            before = _arrays_of(module)
            answer = module(inputs)
            changed.extend(name for name, value in _arrays_of(module).items() if before.get(name) is not value)
            return answer

        try:
            found = jax.eval_shape(call, self._first, inputs, keys)
        except Failure:
            raise
        except Exception as error:
            raise trial_failed(error, self._data) from error
        require_logits(found, self._data)
        if changed:
            raise changes_as_it_is_called(changed[0])


def _leaf(spec: ParameterSpec, first: np.ndarray) -> CustomLeaf:
    return CustomLeaf((spec,), first.shape, spec.name, first)


def _perturbed(inputs: jax.Array, here: Pass) -> jax.Array:
    return inputs if here.perturbation is None else inputs + here.perturbation


def _arrays_of(module: nnx.Module) -> dict[str, Any]:
    """What the module holds beside the state of its generators."""
    others = nnx.state(module, nnx.Not(nnx.RngState))
    return {dotted(path): value for path, value in jax.tree_util.tree_flatten_with_path(others)[0]}
