"""Predictors of both frameworks over a state in memory, and the trainers' own forward pass over the same state."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch

from capstan_runtime.contract.models import Model
from capstan_runtime.contract.signature import Signature
from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer import predict as torch_predict
from capstan_runtime.deepspeed_trainer.models import build_model
from capstan_runtime.engine import TensorSource
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer import predict as flax_predict
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import initial_parameter, parameter_table, tensor_name
from tests.support.engines import Saved

Framework = Literal["flax", "torch"]
FRAMEWORKS: tuple[Framework, ...] = ("flax", "torch")
Array = np.ndarray


def signature_of(model: dict[str, Any], input_shape: tuple[int, ...] = (8, 8, 1), outputs: int = 10) -> Signature:
    kind: Any = "tokens" if "transformer" in model else "image"
    return Signature(model=Model.parse(model), kind=kind, input_shape=input_shape, outputs=outputs)


def state_of(signature: Signature) -> dict[str, Array]:
    """As after some training: no gain is 1 any more, and no bias 0."""
    random = np.random.default_rng(11)
    table = parameter_table(signature.model, data_spec_of(signature))
    return {
        tensor_name(spec.name): initial_parameter(spec, 7) + random.normal(0, 0.1, spec.shape).astype(np.float32)
        for spec in table
    }


def build(framework: Framework, signature: Signature, source: TensorSource, slots: int = 1) -> Any:
    build = flax_predict.build if framework == "flax" else torch_predict.build
    return build(signature, source, slots)


def trainer_forward(framework: Framework, signature: Signature, state: dict[str, Array]) -> Callable[[Array], Array]:
    """What the trainer computes of a batch when it evaluates."""
    data = data_spec_of(signature)
    if framework == "flax":
        structure = Structure(signature.model, data)
        values = [jnp.asarray(leaf.read(Saved(state), None)) for leaf in structure.everything]
        forward = jax.jit(
            lambda values, inputs: structure.assemble(values)(inputs, flax_pass.Pass(jnp.dtype("float32")))
        )
        return lambda inputs: np.asarray(forward(values, inputs))
    module = build_model(signature.model, data, 0)
    module.load_state_dict({name.removeprefix("params/"): torch.from_numpy(value) for name, value in state.items()})

    def compute(inputs: Array) -> Array:
        with torch.no_grad():
            return module.eval()(torch.tensor(inputs), torch_pass.Pass(torch.float32)).numpy()

    return compute


class Compilations:
    """Counts what JAX compiles from now on."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"
