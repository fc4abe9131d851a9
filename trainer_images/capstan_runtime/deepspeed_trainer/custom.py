"""A user's own torch module in the loop: made alike on every rank, and called as its author would.

Its weights stay fp32, as those of all models here; with `precision: bf16` it is called under torch.autocast. Chance in
it, such as dropout, comes from torch's own generators, which are seeded for each micro-step from the keys of its
samples: so it is the same for any number of workers, and after a resume.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.errors import ConfigError, Failure
from capstan_runtime.model_spec import ParameterSpec


def build_custom(custom: Custom, data: DataSpec, seed: int) -> nn.Module:
    """The module in fp32 on the CPU, as its factory initialises it with all generators seeded by `seed`. It has been
    called once. Raises ConfigError for what cannot be trained here."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    module: nn.Module = make_module(custom, data, nn.Module).float()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            raise ConfigError(
                f"spec.model.custom: parameter {name} needs no gradient; register it as a buffer, or let it be trained"
            )
    for buffer in module.buffers():
        buffer.data = buffer.data.contiguous()  # each element once, where a checkpoint can be read into it
    require_parameters(table_of(module))
    _try(module, data)
    return module


def table_of(module: nn.Module) -> tuple[ParameterSpec, ...]:
    """The module's parameters, in its order, and the buffers of its state dict; what is tied is there once."""
    parameters = [parameter_spec(name, parameter.shape) for name, parameter in module.named_parameters()]
    saved = module.state_dict(keep_vars=True).keys()
    buffers = [(name, buffer) for name, buffer in module.named_buffers() if name in saved]
    dtypes = [str(buffer.dtype).removeprefix("torch.") for _, buffer in buffers]
    constants = [
        constant_spec(name, dtype, buffer.shape) for (name, buffer), dtype in zip(buffers, dtypes, strict=True)
    ]
    return (*parameters, *constants)


def _try(module: nn.Module, data: DataSpec) -> None:
    """Calls the module once, as training will. Raises ConfigError."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    dtype = torch.int32 if data.kind == "tokens" else torch.float32
    inputs = as_users_expect(torch.zeros((TRIAL_SAMPLES, *data.input_shape), dtype=dtype))
    module.train()
    try:
        with torch.no_grad():
            found = module(inputs)
    except Failure:
        raise
    except Exception as error:
        raise trial_failed(error, data) from error
    require_logits(found, data)
    for name, buffer in module.named_buffers():
        if name not in before or not torch.equal(buffer, before[name]):
            raise changes_as_it_is_called(name)


class Constants:
    """The buffers of a module, which stay what they are: a module could change them after its trial, say in its
    hundredth call, and each rank would have others then."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.note()

    def note(self) -> None:
        """They are what they should be now."""
        # torch counts what is written to a tensor; to look costs nothing on the device.
        self._known = {name: (id(buffer), buffer._version) for name, buffer in self._module.named_buffers()}

    def require_unchanged(self) -> None:
        """Raises ConfigError unless they are as they were noted."""
        for name, buffer in self._module.named_buffers():
            if self._known.get(name) != (id(buffer), buffer._version):
                raise changes_as_it_is_called(name)


def require_same_weights(module: nn.Module, exchange: Callable[[bytes], Sequence[bytes]]) -> None:
    """Raises ConfigError unless all ranks have made the same, buffers too. Collective."""
    held = (*module.named_parameters(), *module.named_buffers())
    # Its bytes: NumPy has no bf16, which a buffer may be.
    on_host = (
        (name, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()) for name, tensor in held
    )
    require_same_start(on_host, exchange)


def as_users_expect(inputs: Tensor) -> Tensor:
    """Images as [B, C, H, W], in channels_last and without a copy; tokens as int64; all else as it is."""
    if inputs.dtype == torch.int32:
        return inputs.long()
    return inputs.permute(0, 3, 1, 2) if inputs.ndim == 4 else inputs


def call_custom(engine: Callable[[Tensor], Tensor], inputs: Tensor, here: Pass) -> Tensor:
    """The logits of the user's module that is in `engine`."""
    if here.seed is not None:
        torch.manual_seed(here.seed)
    if here.perturbation is not None:
        inputs = inputs + here.perturbation
    with torch.autocast(inputs.device.type, here.dtype, enabled=here.dtype != torch.float32):
        return engine(as_users_expect(inputs))


def model_call(engine: Any, is_custom: bool) -> Callable[[Tensor, Pass], Tensor]:
    """How a model in a DeepSpeedEngine is called."""
    if is_custom:
        return lambda inputs, here: call_custom(engine, inputs, here)
    call: Callable[[Tensor, Pass], Tensor] = engine
    return call
