"""What augmentation needs of model and data: each rule as a validator, and as its twin in CEL."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capstan_operator.api.training_job import Run

_HAS_MULTI_SCALE = "has(self.augmentation) && has(self.augmentation.multiScale)"
_OWN_SIZES = (
    "augmentation: multiScale changes the size of inputs, and model.custom is tried with the size of spec.data alone "
    "before the run begins; remove multiScale"
)
_HAS_NORMALIZE = "has(self.augmentation) && has(self.augmentation.normalize)"

AUGMENTATION_RULES = (
    (
        "!has(self.augmentation) || !(has(self.data.text) || has(self.data.tokens))",
        "'augmentation: changes pictures, and data text or tokens has none; remove it'",
    ),
    (
        f"!({_HAS_MULTI_SCALE} && has(self.model.mlp))",
        "'augmentation: multiScale changes the size of inputs, and mlp has weights for one size; choose model cnn, "
        "or remove multiScale'",
    ),
    (f"!({_HAS_MULTI_SCALE} && has(self.model.custom))", f"'{_OWN_SIZES}'"),
    (
        f"!({_HAS_NORMALIZE} && has(self.data.images))"
        " || size(self.augmentation.normalize.mean) == self.data.images.channels",
        "'augmentation: normalize has ' + string(size(self.augmentation.normalize.mean)) + ' channels and data '"
        " + 'images ' + string(self.data.images.channels) + '; give one mean and one std for each channel'",
    ),
)
"""Of a Run: expression, and the expression of its message."""


def require_augmentation_fits(spec: "Run") -> None:
    """Raises ValueError."""
    augmentation = spec.augmentation
    if augmentation is None:
        return
    if spec.data.kind in ("text", "tokens"):
        raise ValueError(f"augmentation: changes pictures, and data {spec.data.kind} has none; remove it")
    if augmentation.multi_scale and spec.model.kind == "mlp":
        raise ValueError(
            "augmentation: multiScale changes the size of inputs, and mlp has weights for one size; choose model cnn, "
            "or remove multiScale"
        )
    if augmentation.multi_scale and spec.model.custom is not None:
        raise ValueError(_OWN_SIZES)
    images, normalize = spec.data.images, augmentation.normalize
    if images and normalize and len(normalize.mean) != images.channels:
        raise ValueError(
            f"augmentation: normalize has {len(normalize.mean)} channels and data images {images.channels}; give one "
            "mean and one std for each channel"
        )
