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
    "parallelism: tensor and sequence of Flax need state in memory of the devices, and flax.offload keeps it "
    "elsewhere; remove offload, or set both to 1"
)

_DECODER, _FLAX = "self.model.transformer", "self.framework.flax"


def _cel(axis: str, refused: str, text: str) -> tuple[str, str]:
    spread = f"has(self.parallelism) && self.parallelism.{axis} > 1"
    return f"!({spread} && has({_FLAX}) && has({_DECODER}) && ({refused}))", f"'{text}'"


FLAX_PARALLELISM_RULES: tuple[tuple[str, str], ...] = (
    _cel("tensor", f"has({_FLAX}.fsdp)", _CUT_OTHERWISE),
    _cel("sequence", f"has({_DECODER}.tokenDropout)", _WHOLE_SEQUENCES),
    *(_cel(axis, f"has({_FLAX}.offload)", _IN_DEVICES) for axis in ("tensor", "sequence")),
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
    if max(asked.tensor, asked.sequence) > 1 and flax.offload is not None:
        raise ValueError(_IN_DEVICES)
