"""What the DeepSpeed trainer cannot do exactly where several workers compute one model."""

from typing import Any

_WHOLE_MATRICES = (
    "parallelism: tensor leaves each worker of DeepSpeed a part of every matrix, but novograd, adaptiveClip "
    "and centralizeGradients look at whole ones; remove them, or set tensor to 1"
)
_WHOLE_SEQUENCES = (
    "parallelism: sequence leaves each worker of DeepSpeed a slice of every sequence, but experts and tokenDropout "
    "need all its tokens; remove them, or set sequence to 1"
)
_WHOLE_GRADIENTS = (
    "parallelism: expert leaves each worker of DeepSpeed some experts, but zeroStage 3, dropless, sophia and novograd "
    "need all of them; remove them, or set expert to 1"
)
_ONE_ORDER = (
    "parallelism: pipeline gives each worker of DeepSpeed an order of its own, but zeroStage 3 gathers weights in one "
    "of all, and 2 sums gradients before both copies of a tied embedding can; lower zeroStage, or set pipeline to 1"
)
_WHOLE_MODELS = (
    "parallelism: pipeline leaves each worker of DeepSpeed some layers, but sophia and adversarial look at all of "
    "them; remove them, or set pipeline to 1"
)
_ONE_DEVICE = (
    "parallelism: DeepSpeed has one GPU in each worker; set workers.gpus to 1, and as many workers as there are GPUs"
)

_DECODER, _TRAINING = "self.model.transformer", "self.training"


def _cel(axis: str, refused: str, text: str) -> tuple[str, str]:
    spread = f"has(self.parallelism) && self.parallelism.{axis} > 1"
    return f"!({spread} && has(self.framework.deepspeed) && has({_DECODER}) && ({refused}))", f"'{text}'"


DEEPSPEED_PARALLELISM_RULES: tuple[tuple[str, str], ...] = (
    (
        "!has(self.parallelism) || !has(self.framework.deepspeed) || self.workers.gpus <= 1",
        f"'{_ONE_DEVICE}'",
    ),
    _cel(
        "tensor",
        f"has(self.optimizer.novograd) || has({_TRAINING}.adaptiveClip) || has({_TRAINING}.centralizeGradients)",
        _WHOLE_MATRICES,
    ),
    _cel(
        "pipeline",
        f"self.framework.deepspeed.zeroStage > ({_DECODER}.tied ? 1 : 2)",
        _ONE_ORDER,
    ),
    _cel(
        "pipeline",
        "has(self.optimizer.sophia) || has(self.regularization) && has(self.regularization.adversarial)",
        _WHOLE_MODELS,
    ),
    _cel(
        "sequence",
        f"has({_DECODER}.experts) || has({_DECODER}.tokenDropout)",
        _WHOLE_SEQUENCES,
    ),
    _cel(
        "expert",
        "self.framework.deepspeed.zeroStage == 3 || has(self.optimizer.sophia) || has(self.optimizer.novograd)"
        f" || has({_DECODER}.experts) && has({_DECODER}.experts.dropless)",
        _WHOLE_GRADIENTS,
    ),
)
"""The twins of `require_exact_with_deepspeed` in CEL."""


def require_exact_with_deepspeed(spec: Any) -> None:
    """Raises ValueError when `parallelism` of `spec`, a Run, asks DeepSpeed for what would not be the same run."""
    asked, decoder, deepspeed = spec.parallelism, spec.model.transformer, spec.framework.deepspeed
    if asked is None or decoder is None or deepspeed is None:
        return
    if spec.workers.gpus > 1:
        raise ValueError(_ONE_DEVICE)
    training, novograd = spec.training, spec.optimizer.novograd is not None
    if asked.tensor > 1 and (novograd or training.adaptive_clip or training.centralize_gradients):
        raise ValueError(_WHOLE_MATRICES)
    if asked.pipeline > 1 and deepspeed.zero_stage > (1 if decoder.tied else 2):
        raise ValueError(_ONE_ORDER)
    attacks = bool(spec.regularization and spec.regularization.adversarial)
    if asked.pipeline > 1 and (spec.optimizer.sophia or attacks):
        raise ValueError(_WHOLE_MODELS)
    if asked.sequence > 1 and (decoder.experts or decoder.token_dropout):
        raise ValueError(_WHOLE_SEQUENCES)
    dropless = bool(decoder.experts and decoder.experts.dropless)
    needs_all = deepspeed.zero_stage == 3 or spec.optimizer.sophia or novograd or dropless
    if asked.expert > 1 and needs_all:
        raise ValueError(_WHOLE_GRADIENTS)
