"""Which activations the backward pass keeps, and so which it computes again."""

from collections.abc import Callable
from typing import Any

import jax

from capstan_runtime.contract.memory import ActivationCheckpointing

Keeps = Callable[..., bool]
"""`keeps(primitive, *types, **parameters)`: whether results of such an operation are kept (`jax.checkpoint`)."""

_CHANGES_OF_FORM = frozenset({"all_gather", "convert_element_type", "reshape", "slice", "squeeze", "transpose"})
_policies: Any = jax.checkpoint_policies  # JAX leaves them untyped


def kept_activations(config: ActivationCheckpointing | None) -> Keeps | None:
    """The policy of `config`; None: everything is kept."""
    if config is None:
        return None
    policy: Keeps = {"full": _policies.nothing_saveable, "dots": _is_product_with_weights}[config.policy]
    return policy


def _is_product_with_weights(primitive: Any, *types: Any, **parameters: Any) -> bool:
    """A linear layer or a convolution; the products of attention, which have a batch dimension on either side and take
    memory that grows with the square of the length, are none."""
    is_linear: bool = _policies.dots_with_no_batch_dims_saveable(primitive, *types, **parameters)
    return is_linear or primitive is jax.lax.conv_general_dilated_p


def without_gathered(keeps: Keeps | None) -> Keeps:
    """The policy `keeps` (None: everything is kept), but weights that were gathered are let go of, whatever their form,
    and gathered again."""
    return keeps or (lambda primitive, *_, **__: primitive.name not in _CHANGES_OF_FORM)
