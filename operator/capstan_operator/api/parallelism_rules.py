"""What of parallelism goes together with what else of a run."""

from typing import Any

_OF_DECODERS = (
    "parallelism: only layers of model.transformer can be spread over devices; remove it, or choose that model"
)


def _cel_divides(axes: str, degree: str, field: str, count: str) -> tuple[str, str]:
    return (
        f"!has(self.parallelism) || !has(self.model.transformer) || {degree} < 1 || {count} % {degree} == 0",
        f"'parallelism: {axes} ' + string({degree}) + ' does not divide model.transformer.{field} ' + string({count})"
        " + '; choose a divisor'",
    )


_CEL_HEADS_DEGREE = "(self.parallelism.tensor * self.parallelism.sequence)"
_CEL_KV_HEADS = "(has(self.model.transformer.kvHeads) ? self.model.transformer.kvHeads : self.model.transformer.heads)"
_CEL_WIDTH = (
    "(has(self.model.transformer.hiddenDim) ? self.model.transformer.hiddenDim"
    " : (self.model.transformer.dim + 11) / 12 * 32)"
)
_CEL_EXPERTS = "(has(self.model.transformer.experts) ? self.model.transformer.experts.count : 1)"

PARALLELISM_RULES: tuple[tuple[str, str], ...] = (
    ("!has(self.parallelism) || has(self.model.transformer)", f"'{_OF_DECODERS}'"),
    _cel_divides("tensor x sequence", _CEL_HEADS_DEGREE, "heads", "self.model.transformer.heads"),
    _cel_divides("tensor x sequence", _CEL_HEADS_DEGREE, "kvHeads", _CEL_KV_HEADS),
    _cel_divides("tensor", "self.parallelism.tensor", "hiddenDim", _CEL_WIDTH),
    _cel_divides("pipeline", "self.parallelism.pipeline", "layers", "self.model.transformer.layers"),
    _cel_divides("expert", "self.parallelism.expert", "experts.count", _CEL_EXPERTS),
    *(
        (
            f"!has(self.parallelism) || self.parallelism.sequence < 1 || !has(self.data.{data})"
            f" || self.data.{data}.sequenceLength % self.parallelism.sequence == 0",
            "'parallelism: sequence ' + string(self.parallelism.sequence)"
            f" + ' does not divide data.{data}.sequenceLength ' + string(self.data.{data}.sequenceLength)"
            " + '; choose a divisor'",
        )
        for data in ("text", "tokens")
    ),
)
"""The twins of `require_parallelism_fits` in CEL."""


def require_parallelism_fits(spec: Any) -> None:
    """Raises ValueError when `parallelism` of `spec`, a Run, does not go together with the rest."""
    asked, decoder = spec.parallelism, spec.model.transformer
    if asked is None:
        return
    if decoder is None:
        raise ValueError(_OF_DECODERS)
    heads = asked.tensor * asked.sequence
    _require_divisor("tensor x sequence", heads, "model.transformer.heads", decoder.heads)
    _require_divisor("tensor x sequence", heads, "model.transformer.kvHeads", decoder.kv_heads or decoder.heads)
    _require_divisor(
        "tensor", asked.tensor, "model.transformer.hiddenDim", decoder.hidden_dim or -(-decoder.dim // 12) * 32
    )
    _require_divisor("pipeline", asked.pipeline, "model.transformer.layers", decoder.layers)
    _require_divisor(
        "expert", asked.expert, "model.transformer.experts.count", decoder.experts.count if decoder.experts else 1
    )
    if spec.data.kind in ("text", "tokens"):
        field, length = f"data.{spec.data.kind}.sequenceLength", spec.data.value.sequence_length
        _require_divisor("sequence", asked.sequence, field, length)


def _require_divisor(axes: str, degree: int, field: str, count: int) -> None:
    if count % degree:
        raise ValueError(f"parallelism: {axes} {degree} does not divide {field} {count}; choose a divisor")
