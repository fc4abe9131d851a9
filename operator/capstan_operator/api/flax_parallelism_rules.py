"""What the Flax trainer cannot do exactly where several devices compute one model."""

from typing import Any

_CUT_OTHERWISE = (
    "parallelism: tensor leaves each device of Flax a part of every matrix, which fsdp would cut otherwise; remove "
    "fsdp, or set tensor to 1, such as for sequence"
)
_WHOLE_SEQUENCES = (
    "parallelism: sequence leaves each device of Flax a slice of every sequence, but tokenDropout chooses among all "
    "its tokens; remove it, or set sequence to 1"
)
_IN_DEVICES = (
    "parallelism: Flax spreads state in memory of the devices, and flax.offload keeps it elsewhere; remove offload, or "
    "set all degrees to 1"
)
_LAYERS_ALIKE = (
    "parallelism: pipeline makes stages of layers of Flax that run alike in one loop, but reversible and tokenDropout "
    "have loops of their own, and fsdp cuts layers otherwise; remove them, or set pipeline to 1"
)
_WHOLE_EXPERTS = (
    "parallelism: expert leaves each device of Flax some experts and exchanges as many tokens every time, but novograd "
    "looks at all experts, dropless takes what comes, and fsdp cuts experts otherwise; remove them, or set expert to 1"
)

_TOO_MANY_CUTS = (
    "parallelism: layers with experts are too much for the compiler as stages that are cut by tensor or sequence, or "
    "cut by both while replicas share experts; set one of these to 1"
)
_AXES = ("tensor", "sequence", "pipeline", "expert")
_DECODER, _FLAX = "self.model.transformer", "self.framework.flax"


def _cel(axis: str, refused: str, text: str) -> tuple[str, str]:
    spread = f"has(self.parallelism) && self.parallelism.{axis} > 1"
    return f"!({spread} && has({_FLAX}) && has({_DECODER}) && ({refused}))", f"'{text}'"


_ASKED = "self.parallelism"
_CEL_TOO_MANY = (
    f"has({_ASKED}) && has({_FLAX}) && has({_DECODER}) && has({_DECODER}.experts)"
    f" && ({_ASKED}.pipeline > 1 && ({_ASKED}.tensor > 1 || {_ASKED}.sequence > 1)"
    f" || {_ASKED}.expert > 1 && {_ASKED}.tensor > 1 && {_ASKED}.sequence > 1)"
)

FLAX_PARALLELISM_RULES: tuple[tuple[str, str], ...] = (
    _cel("tensor", f"has({_FLAX}.fsdp)", _CUT_OTHERWISE),
    _cel("sequence", f"has({_DECODER}.tokenDropout)", _WHOLE_SEQUENCES),
    *(_cel(axis, f"has({_FLAX}.offload)", _IN_DEVICES) for axis in _AXES),
    _cel("pipeline", f"has({_FLAX}.fsdp) || has({_DECODER}.reversible) || has({_DECODER}.tokenDropout)", _LAYERS_ALIKE),
    _cel(
        "expert",
        f"has({_FLAX}.fsdp) || has(self.optimizer.novograd)"
        f" || has({_DECODER}.experts) && has({_DECODER}.experts.dropless)",
        _WHOLE_EXPERTS,
    ),
    (f"!({_CEL_TOO_MANY})", f"'{_TOO_MANY_CUTS}'"),
)
"""The twins of `require_exact_with_flax` in CEL."""


def require_exact_with_flax(spec: Any) -> None:
    """Raises ValueError when `parallelism` of `spec`, a Run, asks Flax for what would not be the same run."""
    asked, decoder, flax = spec.parallelism, spec.model.transformer, spec.framework.flax
    if asked is None or decoder is None or flax is None:
        return
    if asked.tensor > 1 and flax.fsdp is not None:
        raise ValueError(_CUT_OTHERWISE)
    if asked.sequence > 1 and decoder.token_dropout is not None:
        raise ValueError(_WHOLE_SEQUENCES)
    if flax.offload is not None and any(getattr(asked, axis) > 1 for axis in _AXES):
        raise ValueError(_IN_DEVICES)
    runs_otherwise = flax.fsdp is not None or decoder.reversible is not None or decoder.token_dropout is not None
    if asked.pipeline > 1 and runs_otherwise:
        raise ValueError(_LAYERS_ALIKE)
    is_dropless = decoder.experts is not None and decoder.experts.dropless is not None
    if asked.expert > 1 and (flax.fsdp is not None or spec.optimizer.novograd is not None or is_dropless):
        raise ValueError(_WHOLE_EXPERTS)
    cuts_of_layers = asked.tensor > 1, asked.sequence > 1
    if decoder.experts is not None and (
        (asked.pipeline > 1 and any(cuts_of_layers)) or (asked.expert > 1 and all(cuts_of_layers))
    ):
        raise ValueError(_TOO_MANY_CUTS)
