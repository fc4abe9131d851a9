"""What cannot be done to a model that only its user knows: each rule as a validator, and as its twin in CEL."""

from typing import Protocol

from capstan_runtime.contract.data import Data
from capstan_runtime.contract.framework import Framework
from capstan_runtime.contract.losses import Regularization
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.training import Training

_PRECISION = (
    "training.precision: in Flax, what a module computes in is said by its layers; give them dtype through "
    "model.custom.config, and leave precision out"
)
_TOKENS = (
    "regularization: mixup, cutmix and adversarial change inputs, which tokens are not, or embeddings, which only your "
    "module knows; remove them"
)
_ADAPTIVE_CLIP = (
    "training.adaptiveClip: leaves out the output layer, and which layer of model.custom that is, only your module "
    "knows; choose training.gradientClip, or leave it out"
)


class _Run(Protocol):
    @property
    def framework(self) -> Framework: ...
    @property
    def model(self) -> Model: ...
    @property
    def data(self) -> Data: ...
    @property
    def regularization(self) -> Regularization | None: ...
    @property
    def training(self) -> Training: ...


CUSTOM_RULES = (
    (
        "!(has(self.framework.flax) && has(self.model.custom) && self.training.precision != 'fp32')",
        f"'{_PRECISION}'",
    ),
    (
        "!(has(self.model.custom) && (has(self.data.text) || has(self.data.tokens)) && has(self.regularization)"
        " && (has(self.regularization.mixup) || has(self.regularization.cutmix)"
        " || has(self.regularization.adversarial)))",
        f"'{_TOKENS}'",
    ),
    (
        "!(has(self.model.custom) && has(self.training.adaptiveClip))",
        f"'{_ADAPTIVE_CLIP}'",
    ),
)


def require_custom_fits(spec: _Run) -> None:
    """Raises ValueError where CUSTOM_RULES do not hold."""
    if spec.model.custom is None:
        return
    if spec.framework.flax and spec.training.precision != "fp32":
        raise ValueError(_PRECISION)
    if spec.training.adaptive_clip is not None:
        raise ValueError(_ADAPTIVE_CLIP)
    changed = spec.regularization
    if changed is None or spec.data.kind not in ("text", "tokens"):
        return
    if changed.mixup or changed.cutmix or changed.adversarial:
        raise ValueError(_TOKENS)
