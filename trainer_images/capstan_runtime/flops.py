"""How many floating-point operations a model needs, and how many its devices could do: what throughput is worth.

Counted are matrix products and convolutions, a multiplication and an addition each, as PaLM does for its utilisation
(Chowdhery et al., 2204.02311, appendix B): what is computed twice to save memory does not count twice, and attention
counts at all pairs of positions, those a causal mask hides included.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from capstan_runtime.contract.decoder_components import Experts
from capstan_runtime.contract.models import Cnn, Model, Transformer
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.decoder_spec import expert_capacity, taken_tokens
from capstan_runtime.engine import Hardware
from capstan_runtime.low_rank import model_table
from capstan_runtime.model_signature import rank_of
from capstan_runtime.model_spec import ParameterSpec

_PASSES = 3
"""Forward, and backward once for the weights and once for what went into the layer."""

_PEAKS: Mapping[str, float] = {
    "B200": 2250e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,
    "GH200": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""By a part of the name a device has: bf16 and fp16 operations a second on its tensor cores, without sparsity, from
NVIDIA's data sheets. The first that fits counts."""
_HALF = ("bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Work:
    """What one step of a run is to its devices."""

    flops: float
    """As `step_flops`."""
    peak: float | None
    """Operations a second of all devices together; None: not known."""

    def rates(self, step_seconds: float) -> dict[str, float]:
        """`model_flops_per_second` of all devices together and, where their peak is known, `mfu`: its share of that."""
        achieved = self.flops / step_seconds
        return {"model_flops_per_second": achieved} | ({} if self.peak is None else {"mfu": achieved / self.peak})


def work_of(run: RunConfig, data: DataSpec, hardware: Hardware) -> Work | None:
    """None: what a step computes is not known."""
    flops = step_flops(run, data)
    if flops is None:
        return None
    peak = peak_flops(hardware.name, run.training.precision)
    return Work(flops, None if peak is None else hardware.devices * peak)


def peak_flops(device_name: str | None, precision: str) -> float | None:
    """Operations a second in `precision` of one device, dense. None: not known, as of CPUs, of a part of a device, and
    of fp32, for which it depends on what libraries make of it."""
    if device_name is None or precision not in _HALF:
        return None
    words = device_name.replace("-", " ").split()
    if "MIG" in words:  # a part of the device that the name does not measure
        return None
    return next((peak for name, peak in _PEAKS.items() if set(name.split()) <= set(words)), None)


def step_flops(run: RunConfig, data: DataSpec) -> float | None:
    """Of a plain optimizer step of `run`: forward and backward once over the global batch. What regularisation, a
    teacher or an optimizer computes beside that is not counted. None: a module of the user's own, or images of several
    sizes, whose work is not known."""
    varies = run.augmentation is not None and run.augmentation.multi_scale is not None
    if run.model.custom is not None or varies:
        return None
    return run.training.global_batch_size * sample_flops(run.model, data, rank_of(run))


def sample_flops(model: Model, data: DataSpec, rank: int | None = None) -> float:
    """Forward and backward over one sample in training. `rank`: of matrices that are products of two.

    Raises ConfigError if the model cannot take such data.
    """
    total = 0.0
    for spec in model_table(model, data, rank):
        if len(spec.shape) > 1:
            total += _passes(spec) * 2.0 * spec.size * _uses(model.value, spec, data)
    if isinstance(model.value, Transformer):
        total += _PASSES * sum(_attention(model.value, tokens) for tokens in _tokens(model.value, data.input_shape[0]))
    return total


def _passes(spec: ParameterSpec) -> int:
    """Nobody wants to know how the loss changes with the data."""
    if not spec.is_trained:
        return 1
    layer = spec.name.removesuffix(".weight").removesuffix(".first")
    return _PASSES - 1 if layer in ("layers.0", "stem.conv") or layer.endswith(".modulation.made") else _PASSES


def _uses(config: object, spec: ParameterSpec, data: DataSpec) -> float:
    """With how many vectors a matrix is multiplied for one sample, a kernel at how many positions; of several experts
    in one parameter, the mean."""
    match config:
        case Cnn() if ".conv." in spec.name:
            return _positions(config, spec.name, data)
        case Transformer():
            length = data.input_shape[0]
            if spec.name.startswith("embed."):
                return length if config.tied else 0
            if not spec.name.startswith("layers."):
                return length
            tokens = _tokens(config, length)[int(spec.name.split(".")[1])]
            return tokens if config.experts is None or spec.unit_dims == 1 else _taken(config.experts, tokens)
    return 1


def _taken(experts: Experts, tokens: int) -> float:
    """How many tokens an expert takes, on average: those that choose it and find room. Empty places are no work."""
    chosen = tokens * experts.top_k / experts.count
    capacity = expert_capacity(experts, tokens, is_training=True)
    return chosen if capacity is None else min(chosen, capacity)


def _positions(config: Cnn, name: str, data: DataSpec) -> int:
    """Of the image that a convolution gives."""
    height, width = data.input_shape[:2]
    block = int(name.split(".")[1]) if name.startswith("blocks.") else -1
    for _, _, stride in config.blocks[: block + 1]:
        height, width = -(-height // stride), -(-width // stride)
    return height * width


def _tokens(config: Transformer, length: int) -> list[int]:
    """How many each layer takes."""
    if config.token_dropout is None:
        return [length] * config.layers
    return [length, *[taken_tokens(config.token_dropout.keep, length)] * (config.layers - 2), length]


def _attention(config: Transformer, tokens: int) -> float:
    """Scores, and the values that they weigh."""
    return 2 * 2.0 * tokens * tokens * config.dim
