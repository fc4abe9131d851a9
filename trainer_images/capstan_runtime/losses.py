"""What a loss asks of data and model, for both frameworks."""

from capstan_runtime.contract.losses import Focal, Loss
from capstan_runtime.contract.models import Model
from capstan_runtime.errors import ConfigError


def require_loss_fits(loss: Loss | None, outputs: int) -> None:
    """Raises ConfigError unless `loss` is one for `outputs` classes."""
    if loss is None or not isinstance(loss.value, Focal) or loss.value.class_weights is None:
        return
    weights = len(loss.value.class_weights)
    if weights != outputs:
        raise ConfigError(
            f"spec.loss.focal.classWeights: {weights} weights, but the data has {outputs} classes; give one for each"
        )


def embedding_width(model: Model) -> int | None:
    """Of the tokens that `model` takes; None: it takes numbers."""
    return model.transformer.dim if model.transformer is not None else None
