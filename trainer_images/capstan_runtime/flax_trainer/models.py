"""Whichever architecture a run asks for, as an NNX module."""

import math

from capstan_runtime.contract.models import Cnn, Mlp, Model, Transformer
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.flax_trainer.cnn import CnnModel
from capstan_runtime.flax_trainer.components.low_rank import factor
from capstan_runtime.flax_trainer.decoder import TransformerModel
from capstan_runtime.flax_trainer.mlp import MlpModel
from capstan_runtime.low_rank import factored_layers
from capstan_runtime.model_spec import parameter_table

AnyModel = MlpModel | CnnModel | TransformerModel


def build_model(model: Model, data: DataSpec, rank: int | None = None) -> AnyModel:
    """The module, with parameters of the right shapes and no meaningful values. `rank`: of the products in the place of
    matrices; None: matrices are whole.

    Call it with inputs [B, *sample] and a `Pass`; it returns logits [B, classes] or [B, T, vocabulary].
    """
    module = _whole_model(model, data)
    factor(module, factored_layers(parameter_table(model, data), rank), rank or 0)
    return module


def _whole_model(model: Model, data: DataSpec) -> AnyModel:
    match model.value:
        case Mlp() as config:
            return MlpModel(config, math.prod(data.input_shape), data.outputs, data.condition)
        case Cnn() as config:
            return CnnModel(config, data.input_shape[-1], data.outputs, data.condition)
        case Transformer() as config:
            return TransformerModel(config, data.outputs)
        case other:  # pragma: no cover - a new kind of model without a module
            raise TypeError(f"no module for {type(other).__name__}")
