"""Whichever architecture a run asks for, as a torch module."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from capstan_runtime.contract.models import Cnn, Mlp, Model, Transformer
from capstan_runtime.contract.signature import Signature
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.decoder_spec import as_served
from capstan_runtime.deepspeed_trainer.cnn import CnnModel
from capstan_runtime.deepspeed_trainer.components.low_rank import factor
from capstan_runtime.deepspeed_trainer.decoder import TransformerModel
from capstan_runtime.deepspeed_trainer.mlp import MlpModel
from capstan_runtime.deepspeed_trainer.parallel.shards import Shard
from capstan_runtime.deepspeed_trainer.parallel.spreading import cut
from capstan_runtime.engine import TensorSource
from capstan_runtime.low_rank import factored_layers, model_table, table_of
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import ParameterSpec, initial_parameter, parameter_table, read_tensor, served_kind
from capstan_runtime.parallel.stages import WHOLE, Stage

AnyModel = MlpModel | CnnModel | TransformerModel
Fill = Callable[[str, Tensor], None]
"""Gives a tensor, by its name in the module, its first value."""


def build_model(model: Model, data: DataSpec, seed: int) -> nn.Module:
    """The module in fp32 on the CPU, with the initial values of `seed`.

    Call it with inputs [B, *sample] and a `Pass`; it returns logits [B, classes] or [B, T, vocabulary].
    Raises as `model_table`.
    """
    module, fill = unfilled_model(model, data, seed)
    fill_all(module, fill)
    return module


def unfilled_model(
    model: Model,
    data: DataSpec,
    seed: int,
    shards: Mapping[str, Shard] | None = None,
    rank: int | None = None,
    stage: Stage = WHOLE,
) -> tuple[nn.Module, Fill]:
    """The module in fp32 on the CPU, in memory that nobody has touched, so that it costs address space alone; and what
    gives its tensors the initial values of `seed`. Of a decoder perhaps a stage alone, and of its parameters `shards`.

    `rank`: of products in the place of matrices. Raises as `model_table`.
    """
    table = {spec.name: spec for spec in of_stage(model_table(model, data, rank), model, stage)}
    module = bare_model(model, data, rank, stage)
    if shards is not None:
        assert isinstance(module, TransformerModel)
        cut(module, shards)
    unspecified = {name for name, _ in _tensors(module)} ^ set(table)
    if unspecified:
        raise AssertionError(f"tensors or specifications without the other: {', '.join(sorted(unspecified))}")

    def fill(name: str, tensor: Tensor) -> None:
        first = initial_parameter(table[name], seed)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(first if shards is None else shards[name].of(first)))

    return module, fill


def fill_all(module: nn.Module, fill: Fill) -> None:
    for name, tensor in _tensors(module):
        fill(name, tensor)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def of_stage(table: Sequence[ParameterSpec], model: Model, stage: Stage) -> tuple[ParameterSpec, ...]:
    """What `stage` has of `table`; only a decoder has stages."""
    decoder = model.transformer
    if decoder is None:
        return tuple(table)
    return tuple(spec for spec in table if stage.has(spec.name, decoder.layers, is_tied=decoder.tied))


def bare_model(model: Model, data: DataSpec, rank: int | None = None, stage: Stage = WHOLE) -> AnyModel:
    """The module with parameters of the right shapes and no meaningful values, on torch's default device."""
    module = _plain_model(model, data, stage)
    factor(module, factored_layers(parameter_table(model, data), rank), rank or 0)
    return module


def _plain_model(model: Model, data: DataSpec, stage: Stage) -> AnyModel:
    match model.value:
        case Mlp() as config:
            return MlpModel(config, math.prod(data.input_shape), data.outputs, data.condition)
        case Cnn() as config:
            return CnnModel(config, data.input_shape[-1], data.outputs, data.condition)
        case Transformer() as config:
            return TransformerModel(config, data.outputs, stage)
        case other:  # pragma: no cover - a new kind of model without a module
            raise TypeError(f"no module for {type(other).__name__}")


def trained_model(signature: Signature, source: TensorSource, device: torch.device) -> AnyModel:
    """The module of `signature` as it is served, with the values in `source`, or their averages if it has some: to be
    asked, not to be trained.

    Raises CorruptCheckpoint from `source`, ConfigError if its tensors are not those of `signature`.
    """
    data = data_spec_of(signature)
    table = table_of(signature)
    with torch.device("meta"):  # shapes without memory: the tensors that were read become the parameters
        module = bare_model(as_served(signature.model), data, signature.low_rank)
    tensors, kind = {}, served_kind(source)
    for spec in table:
        array = read_tensor(source, spec.tensor_name(kind), spec.shape).astype("float32", copy=False)
        tensors[spec.name] = torch.from_numpy(array).to(device)
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)
