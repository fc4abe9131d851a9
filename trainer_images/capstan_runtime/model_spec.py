"""The tensors of a run: canonical names, shapes and first values, shared by the frameworks.

Layouts are PyTorch's: a linear layer is [outputs, inputs], a convolution [outputs, inputs, height, width]. Both
frameworks compute with them as they are, so a checkpoint of one is a checkpoint of the other.
"""

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.classifier_components import AdaIn, AdaLnZero, SqueezeExcitation
from capstan_runtime.contract.models import Cnn, Mlp, Model, Transformer
from capstan_runtime.contract.normalisation import AnyNorm, MixedNorm, RmsNorm, RunningStatistics
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError
from capstan_runtime.integers import has_integers_of, read_weights
from capstan_runtime.updates import EMA

_TRANSFORMER_STD = 0.02
"""Of every matrix of a decoder, as in GPT-2; those that write into the residual stream get 1 / sqrt(2 layers) of it."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Every element is `value`."""

    value: float


@dataclass(frozen=True, slots=True)
class Normal:
    """Elements are drawn from a normal distribution of mean 0."""

    std: float


@dataclass(frozen=True, slots=True)
class Given:
    """The module of a user's own has it."""


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    name: str
    shape: tuple[int, ...]
    init: Constant | Normal | Given
    decays: bool
    """Whether weight decay pulls it to 0: matrices and kernels, not gains and biases."""
    is_trained: bool = True
    """False: a buffer. It is state of the model, saved and served like a parameter, but no gradient moves it: its next
    value is the mean of what the micro-steps of all ranks propose (`Pass.propose`), or what it was if none does."""

    is_constant: bool = False
    """A buffer that keeps its first value."""

    unit_dims: int = 1
    """How many of the first dimensions of a matrix or kernel number its units, each of which gives one output: more
    than 1 where several matrices are one parameter."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def matrix_dims(self) -> int:
        """How many of the first dimensions number matrices or kernels: 0 unless several are one parameter."""
        return self.unit_dims - 1

    @property
    def dims_within_units(self) -> tuple[int, ...]:
        """The dimensions of one unit; a gain or bias is a unit as a whole."""
        return tuple(range(self.unit_dims if len(self.shape) > self.unit_dims else 0, len(self.shape)))

    @property
    def is_averaged(self) -> bool:
        """Whether a run with a moving average of its model has one of this: of all but constants."""
        return not self.is_constant

    def tensor_name(self, kind: str | None = None) -> str:
        """What a checkpoint calls it, or what there is of a kind for it. Of a buffer there is its average alone, of a
        constant nothing but itself."""
        has_kind = self.is_trained or (kind == EMA and self.is_averaged)
        return tensor_name(self.name, kind if has_kind else None)


def parameter_table(model: Model, data: DataSpec) -> tuple[ParameterSpec, ...]:
    """Every parameter and every buffer of `model` for `data`, in the order of the forward pass.

    Raises ConfigError if the model cannot take such data.
    """
    match model.value:
        case Mlp() as mlp if data.kind in ("image", "vector"):
            return tuple(_mlp(mlp, math.prod(data.input_shape), data.outputs, data.condition))
        case Cnn() as cnn if data.kind == "image":
            return tuple(_cnn(cnn, data.input_shape[-1], data.outputs, data.condition))
        case Transformer() as transformer if data.kind == "tokens":
            return tuple(_transformer(transformer, data.outputs))
    suitable = {"image": "mlp or cnn", "vector": "mlp", "tokens": "transformer"}[data.kind]
    raise ConfigError(f"spec.model: {model.kind} cannot take the {data} of spec.data; choose {suitable}")


def initial_parameter(spec: ParameterSpec, seed: int) -> npt.NDArray[np.float32]:
    """The first value of a parameter, float32 of its shape: a pure function of (seed, name, shape).

    So both frameworks, and every rank, start from the same bits without telling each other.
    """
    match spec.init:
        case Constant(value):
            return np.full(spec.shape, value, np.float32)
        case Normal(std):
            name_key = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:8], "little")
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name_key])))
            return generator.standard_normal(spec.shape, np.float32) * np.float32(std)
        case Given():
            raise AssertionError(f"{spec.name} is initialised by its own module")


def feed_forward_width(config: Transformer) -> int:
    """Width of the SwiGLU layer: as set, or 8/3 of the model's, rounded up to a multiple of 32."""
    if config.hidden_dim is not None:
        return config.hidden_dim
    return math.ceil(8 * config.dim / 3 / 32) * 32


def kv_heads(config: Transformer) -> int:
    return config.heads if config.kv_heads is None else config.kv_heads


def _weight(name: str, *shape: int, std: float, unit_dims: int = 1) -> ParameterSpec:
    return ParameterSpec(f"{name}.weight", shape, Normal(std), decays=True, unit_dims=unit_dims)


def _bias(name: str, size: int) -> ParameterSpec:
    return ParameterSpec(f"{name}.bias", (size,), Constant(0.0), decays=False)


def _gain(name: str, size: int, initial: float = 1.0) -> ParameterSpec:
    return ParameterSpec(f"{name}.weight", (size,), Constant(initial), decays=False)


def _mlp(config: Mlp, inputs: int, outputs: int, condition: int) -> Iterator[ParameterSpec]:
    if config.fourier_features is not None:
        count = config.fourier_features.count
        waves = Normal(config.fourier_features.scale)
        yield ParameterSpec("fourier.weight", (count, inputs), waves, decays=False, is_trained=False, is_constant=True)
        inputs = 2 * count
    widths = [inputs, *config.hidden]
    for layer, (width_in, width_out) in enumerate(zip(widths, config.hidden, strict=False)):
        # He et al., 2015 (1502.01852): keeps the variance through layers that drop half of it.
        yield _weight(f"layers.{layer}", width_out, width_in, std=math.sqrt(2.0 / width_in))
        yield _bias(f"layers.{layer}", width_out)
        if config.norm is not None:
            yield from _norm(f"norms.{layer}", config.norm.value, width_out, has_positions=False)
        if config.conditional_scaling is not None:
            yield from _modulation(f"films.{layer}", condition, 2 * width_out)
    yield _weight("head", outputs, widths[-1], std=math.sqrt(1.0 / widths[-1]))
    yield _bias("head", outputs)


def _cnn(config: Cnn, image_channels: int, outputs: int, condition: int) -> Iterator[ParameterSpec]:
    convolution = functools.partial(_convolution, config.normalisation)
    yield from convolution("stem", image_channels, config.channels[0], kernel=3)
    for block, (channels_in, channels, stride) in enumerate(config.blocks):
        name = f"blocks.{block}"
        yield from convolution(f"{name}.first", channels_in, channels, kernel=3)
        yield from convolution(f"{name}.second", channels, channels, kernel=3)
        if config.squeeze_excitation is not None:
            yield from _gate(f"{name}.squeeze", channels, squeezed(config.squeeze_excitation, channels))
        if config.layer_scale is not None:
            yield _gain(f"{name}.layer_scale", channels, config.layer_scale.initial)
        match None if config.adaptive_norm is None else config.adaptive_norm.value:
            case AdaLnZero():
                yield from _modulation(f"{name}.ada_ln_zero", condition, 2 * channels_in + channels)
            case AdaIn():
                yield from _modulation(f"{name}.ada_in", condition, 2 * channels)
        if config.conditional_scaling is not None:
            yield from _modulation(f"{name}.film", condition, 2 * channels)
        if has_projection(channels_in, channels, stride):
            yield from convolution(f"{name}.shortcut", channels_in, channels, kernel=1)
    yield _weight("head", outputs, config.channels[-1], std=math.sqrt(1.0 / config.channels[-1]))
    yield _bias("head", outputs)


def has_projection(channels_in: int, channels: int, stride: int) -> bool:
    """Whether a residual block's shortcut needs a 1x1 convolution: it halves the image, or changes the channels."""
    return stride > 1 or channels_in != channels


def squeezed(config: SqueezeExcitation, channels: int) -> int:
    """Hidden units of the gate over `channels`."""
    return max(1, channels // config.reduction)


def _modulation(name: str, condition: int, outputs: int) -> Iterator[ParameterSpec]:
    """Zeros at first: features begin as they are without a condition."""
    yield ParameterSpec(f"{name}.modulation.made.weight", (outputs, condition), Constant(0.0), decays=True)
    yield _bias(f"{name}.modulation.made", outputs)


def _gate(name: str, channels: int, hidden: int) -> Iterator[ParameterSpec]:
    yield _weight(f"{name}.reduce", hidden, channels, std=math.sqrt(2.0 / channels))
    yield _bias(f"{name}.reduce", hidden)
    yield _weight(f"{name}.expand", channels, hidden, std=math.sqrt(1.0 / hidden))
    yield _bias(f"{name}.expand", channels)


def _convolution(norm: AnyNorm, name: str, channels_in: int, channels_out: int, kernel: int) -> Iterator[ParameterSpec]:
    """A convolution without bias, and the normalisation after it."""
    std = math.sqrt(2.0 / (channels_in * kernel * kernel))
    yield _weight(f"{name}.conv", channels_out, channels_in, kernel, kernel, std=std)
    yield from _norm(f"{name}.norm", norm, channels_out, has_positions=True)


def _norm(name: str, config: AnyNorm, channels: int, *, has_positions: bool) -> Iterator[ParameterSpec]:
    yield _gain(name, channels)
    if not isinstance(config, RmsNorm):
        yield _bias(name, channels)
    if isinstance(config, MixedNorm):  # in equal parts at first, as the paper's own code
        mixed = (3 if has_positions else 2,)
        yield ParameterSpec(f"{name}.mean_weight", mixed, Constant(1.0), decays=False)
        yield ParameterSpec(f"{name}.var_weight", mixed, Constant(1.0), decays=False)
    if isinstance(config, RunningStatistics):
        yield ParameterSpec(f"{name}.running_mean", (channels,), Constant(0.0), decays=False, is_trained=False)
        yield ParameterSpec(f"{name}.running_var", (channels,), Constant(1.0), decays=False, is_trained=False)


def _transformer(config: Transformer, vocabulary: int) -> Iterator[ParameterSpec]:
    dim, hidden = config.dim, feed_forward_width(config)
    head_dim = dim // config.heads
    residual_std = _TRANSFORMER_STD / math.sqrt(2.0 * config.layers)
    yield _weight("embed", vocabulary, dim, std=_TRANSFORMER_STD)
    for layer in range(config.layers):
        # Queries, keys and values are one matrix, gate and up another: fewer, larger products, and fewer tensors to
        # launch work for.
        projections = (config.heads + 2 * kv_heads(config)) * head_dim
        yield _gain(f"layers.{layer}.attention_norm", dim)
        yield _weight(f"layers.{layer}.attention.qkv", projections, dim, std=_TRANSFORMER_STD)
        yield _weight(f"layers.{layer}.attention.out", dim, dim, std=residual_std)
        if config.layer_scale is not None:
            yield _gain(f"layers.{layer}.attention_scale", dim, config.layer_scale.initial)
        yield _gain(f"layers.{layer}.feed_forward_norm", dim)
        experts = () if config.experts is None else (config.experts.count,)
        if experts:
            yield _weight(f"layers.{layer}.feed_forward.router", *experts, dim, std=_TRANSFORMER_STD)
        units = 1 + len(experts)
        gate_up, down = (*experts, 2 * hidden, dim), (*experts, dim, hidden)
        yield _weight(f"layers.{layer}.feed_forward.gate_up", *gate_up, std=_TRANSFORMER_STD, unit_dims=units)
        yield _weight(f"layers.{layer}.feed_forward.down", *down, std=residual_std, unit_dims=units)
        if config.layer_scale is not None:
            yield _gain(f"layers.{layer}.feed_forward_scale", dim, config.layer_scale.initial)
    yield _gain("norm", dim)
    if not config.tied:
        yield _weight("head", vocabulary, dim, std=_TRANSFORMER_STD)


STEP_NAME = "optimizer/step"
"""Optimizer steps done, a scalar int64."""


def tensor_name(parameter: str, kind: str | None = None) -> str:
    """What a checkpoint calls a parameter or a buffer, its average (kind `ema`), or a kind of optimizer state."""
    if kind is None:
        return f"params/{parameter}"
    return f"ema/{parameter}" if kind == EMA else f"optimizer/{kind}/{parameter}"


def served_kind(source: TensorSource) -> str | None:
    """What is served of a checkpoint: the model's average where it has one, else the model itself (None)."""
    return EMA if any(name.startswith(tensor_name("", EMA)) for name in source.names()) else None


def output_layer(names: Iterable[str]) -> frozenset[str]:
    """Of the parameters of a model, those of the layer that gives its outputs; a decoder without a head of its own uses
    its embedding for that."""
    everything = frozenset(names)
    return frozenset(name for name in everything if name.startswith("head.")) or everything & {"embed.weight"}


def read_tensor(source: TensorSource, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """The tensor `name` of a checkpoint; weights that it holds as integers are fp32 here. Raises ConfigError if the
    checkpoint has none of that name and shape, so that it belongs to another model or optimizer; CorruptCheckpoint if
    its bytes are wrong."""
    if has_integers_of(source, name):
        return read_weights(source, name, shape)
    _require(source, name, shape)
    return source.read(name)


def read_part(
    source: TensorSource, name: str, shape: tuple[int, ...], start: int, stop: int
) -> npt.NDArray[np.generic]:
    """Elements [start, stop) of the tensor `name`, flattened; nothing else is read, unless they are integers there.
    Raises as `read_tensor`."""
    if has_integers_of(source, name):
        return read_weights(source, name, shape).reshape(-1)[start:stop]
    _require(source, name, shape)
    return source.read_range(name, start, stop)


def _require(source: TensorSource, name: str, shape: tuple[int, ...]) -> None:
    try:
        found = source.shape(name)
    except KeyError:
        raise ConfigError(
            f"spec.model, spec.optimizer: the checkpoint has no {name}, so it is of another model or optimizer; "
            "restore those of its run, or start a new job"
        ) from None
    if found != shape:
        raise ConfigError(
            f"spec.model: {name} has shape {found} in the checkpoint and {shape} in this run; "
            "restore the model and data of its run, or start a new job"
        )
