"""Whichever architecture a run asks for, as a torch module."""

import math

import torch
from torch import nn

from capstan_runtime.contract.models import Cnn, Mlp, Model, Transformer
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.deepspeed_trainer.cnn import CnnModel
from capstan_runtime.deepspeed_trainer.decoder import TransformerModel
from capstan_runtime.deepspeed_trainer.mlp import MlpModel
from capstan_runtime.model_spec import initial_parameter, parameter_table

AnyModel = MlpModel | CnnModel | TransformerModel


def build_model(model: Model, data: DataSpec, seed: int) -> nn.Module:
    """The module in fp32 on the CPU, with the initial values of `seed`.

    Call it with inputs [B, *sample] and a `Pass`; it returns logits [B, classes] or [B, T, vocabulary].
    Raises ConfigError if the model cannot take such data.
    """
    table = parameter_table(model, data)
    module = bare_model(model, data)
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    with torch.no_grad():
        for spec in table:
            tensors.pop(spec.name).copy_(torch.from_numpy(initial_parameter(spec, seed)))
    if tensors:
        raise AssertionError(f"tensors without a specification: {', '.join(tensors)}")
    return module


def bare_model(model: Model, data: DataSpec) -> AnyModel:
    """The module with parameters of the right shapes and no meaningful values, on torch's default device."""
    match model.value:
        case Mlp() as config:
            return MlpModel(config, math.prod(data.input_shape), data.outputs, data.condition)
        case Cnn() as config:
            return CnnModel(config, data.input_shape[-1], data.outputs, data.condition)
        case Transformer() as config:
            return TransformerModel(config, data.outputs)
        case other:  # pragma: no cover - a new kind of model without a module
            raise TypeError(f"no module for {type(other).__name__}")
