"""What of `spec.compression` goes together with what else of a TrainingJob: validators, and their twins in CEL."""

from typing import Any

from capstan_runtime.contract.compression import Prune, Quantize

_CUT_UP = "compression: prune needs whole parameters, which deepspeed.zeroStage above 0 cuts up; choose zeroStage 0"
_SHARDED = "compression: prune needs whole parameters, which flax.fsdp cuts up; remove one of the two"
_AVERAGED = (
    "compression: prune leaves no zeros in the average of training.ema, which is what is evaluated and served; remove "
    "one of the two"
)
_NOT_OURS = "compression: prune does not know how the weights of model.custom lie; remove one of the two"
_NO_FACTORS = "compression: lowRank does not know how the weights of model.custom lie; remove one of the two"
_UNSPREAD_FACTORS = (
    "compression: lowRank has products where parallelism looks for matrices to spread; remove one of the two"
)
_CUT_CHANNELS = (
    "compression: quantize needs whole channels, which deepspeed.zeroStage 3 cuts up; choose zeroStage 0, 1 or 2"
)
_SHARDED_CHANNELS = "compression: quantize needs whole channels, which flax.fsdp cuts up; remove one of the two"
_UNKNOWN_CHANNELS = "compression: quantize does not know how the weights of model.custom lie; remove one of the two"
_SPREAD = "compression: quantize needs whole matrices, which parallelism spreads over devices; remove one of the two"
_SPREAD_PRUNED = (
    "compression: prune needs whole matrices, and all, and parallelism tensor, pipeline and expert leave each worker "
    "of DeepSpeed some of them, or of each; remove one of the two"
)
_SPREAD_DISTILLED = (
    "compression: distill needs whole sequences, and parallelism sequence leaves each worker of DeepSpeed a slice of "
    "each; remove one of the two"
)
_LAST_CUT = (
    "(has(self.compression.prune.magnitude) ? self.compression.prune.magnitude.endStep"
    " : self.compression.prune.nm.beginStep + 1)"
)
"""`last_cut` of a Prune's value, in CEL."""
_NO_TRAINER = "!has(self.compression) || has(self.program) || !has(self.framework) || !has(self.model)"
_NO_PRUNE = f"{_NO_TRAINER} || !has(self.compression.prune)"
_NO_QUANTIZE = f"{_NO_TRAINER} || !has(self.compression.quantize)"
_AWARE_FROM = "self.compression.quantize.aware.beginStep"

COMPRESSION_RULES: tuple[tuple[str, str], ...] = (
    (
        f"{_NO_PRUNE} || !has(self.framework.deepspeed) || self.framework.deepspeed.zeroStage == 0",
        f"'{_CUT_UP}'",
    ),
    (f"{_NO_PRUNE} || !has(self.framework.flax) || !has(self.framework.flax.fsdp)", f"'{_SHARDED}'"),
    (f"{_NO_PRUNE} || !has(self.training.ema)", f"'{_AVERAGED}'"),
    (f"{_NO_PRUNE} || !has(self.model.custom)", f"'{_NOT_OURS}'"),
    (
        f"{_NO_PRUNE} || !has(self.training.steps) || {_LAST_CUT} <= self.training.steps",
        f"'compression: prune makes its last cut at step ' + string({_LAST_CUT})"
        " + ', after the last of training.steps ' + string(self.training.steps) + '; lower it'",
    ),
    (
        f"{_NO_PRUNE} || !has(self.framework.deepspeed) || !has(self.parallelism)"
        " || [self.parallelism.tensor, self.parallelism.pipeline, self.parallelism.expert].all(n, n <= 1)",
        f"'{_SPREAD_PRUNED}'",
    ),
    (
        f"{_NO_TRAINER} || !has(self.compression.distill) || !has(self.framework.deepspeed) || !has(self.parallelism)"
        " || self.parallelism.sequence <= 1",
        f"'{_SPREAD_DISTILLED}'",
    ),
    (f"{_NO_TRAINER} || !has(self.compression.lowRank) || !has(self.model.custom)", f"'{_NO_FACTORS}'"),
    (f"{_NO_TRAINER} || !has(self.compression.lowRank) || !has(self.parallelism)", f"'{_UNSPREAD_FACTORS}'"),
    (
        f"{_NO_QUANTIZE} || !has(self.framework.deepspeed) || self.framework.deepspeed.zeroStage != 3",
        f"'{_CUT_CHANNELS}'",
    ),
    (f"{_NO_QUANTIZE} || !has(self.framework.flax) || !has(self.framework.flax.fsdp)", f"'{_SHARDED_CHANNELS}'"),
    (f"{_NO_QUANTIZE} || !has(self.model.custom)", f"'{_UNKNOWN_CHANNELS}'"),
    (f"{_NO_QUANTIZE} || !has(self.parallelism)", f"'{_SPREAD}'"),
    (
        f"{_NO_QUANTIZE} || !has(self.training.steps) || !has(self.compression.quantize.aware)"
        f" || {_AWARE_FROM} < self.training.steps",
        f"'compression: quantize.aware begins after step ' + string({_AWARE_FROM})"
        " + ', and training.steps ' + string(self.training.steps) + ' has none after it; lower beginStep'",
    ),
)
"""The twins of `require_compression_fits` in CEL."""


def require_compression_fits(spec: Any) -> None:
    """Raises ValueError when compression and what else `spec`, a TrainingJobSpec without a program, says do not go
    together."""
    if spec.compression is None:
        return
    if spec.compression.prune is not None:
        _require_prune_fits(spec, spec.compression.prune)
    spread = spec.parallelism if spec.framework.deepspeed is not None else None
    divides = spread is not None and max(spread.tensor, spread.pipeline, spread.expert) > 1
    if divides and spec.compression.prune is not None:
        raise ValueError(_SPREAD_PRUNED)
    if spread is not None and spec.compression.distill is not None and spread.sequence > 1:
        raise ValueError(_SPREAD_DISTILLED)
    if spec.compression.low_rank is not None and spec.model.custom is not None:
        raise ValueError(_NO_FACTORS)
    if spec.compression.low_rank is not None and spec.parallelism is not None:
        raise ValueError(_UNSPREAD_FACTORS)
    if spec.compression.quantize is not None:
        _require_quantize_fits(spec, spec.compression.quantize)


def _require_prune_fits(spec: Any, prune: Prune) -> None:
    deepspeed, steps = spec.framework.deepspeed, spec.training.steps
    if deepspeed and deepspeed.zero_stage > 0:
        raise ValueError(_CUT_UP)
    if spec.framework.flax and spec.framework.flax.fsdp is not None:
        raise ValueError(_SHARDED)
    if spec.training.ema is not None:
        raise ValueError(_AVERAGED)
    if spec.model.custom is not None:
        raise ValueError(_NOT_OURS)
    last_cut = prune.value.last_cut
    if steps is not None and last_cut > steps:
        raise ValueError(
            f"compression: prune makes its last cut at step {last_cut}, after the last of training.steps {steps}; "
            "lower it"
        )


def _require_quantize_fits(spec: Any, quantize: Quantize) -> None:
    deepspeed, steps = spec.framework.deepspeed, spec.training.steps
    if deepspeed and deepspeed.zero_stage == 3:
        raise ValueError(_CUT_CHANNELS)
    if spec.framework.flax and spec.framework.flax.fsdp is not None:
        raise ValueError(_SHARDED_CHANNELS)
    if spec.model.custom is not None:
        raise ValueError(_UNKNOWN_CHANNELS)
    if spec.parallelism is not None:
        raise ValueError(_SPREAD)
    if steps is not None and quantize.aware is not None and quantize.aware.begin_step >= steps:
        raise ValueError(
            f"compression: quantize.aware begins after step {quantize.aware.begin_step}, and training.steps {steps} "
            "has none after it; lower beginStep"
        )
