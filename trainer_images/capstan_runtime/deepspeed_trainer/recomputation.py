"""Which activations the backward pass keeps, and so which it computes again."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from capstan_runtime.contract.memory import ActivationCheckpointing

Block = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
Recompute = Callable[[Block, Tensor], tuple[Tensor, dict[str, Tensor]]]

_PRODUCTS_WITH_WEIGHTS = frozenset(
    {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.convolution.default}
)
"""What linear layers and convolutions come down to. Attention is none of these: it is computed again."""


def recomputation(config: ActivationCheckpointing | None) -> Recompute | None:
    """How to run a block by `config`; None: everything is kept, and a block is simply called."""
    if config is None:
        return None
    keep: dict[str, Any] = {}
    if config.policy == "dots":
        keep["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_products)

    def run(block: Block, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # Without the state of torch's generators: chance is a function of keys. The second time must stop as soon as
        # all is there: it happens amid the backward pass of the block's last module, whose weights ZeRO stage 3 has
        # gathered for that, and at the module's end it would let go of them.
        with set_checkpoint_early_stop(True):
            result: tuple[Tensor, dict[str, Tensor]] = checkpoint(
                block, x, use_reentrant=False, preserve_rng_state=False, **keep
            )
        return result

    return run


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation in _PRODUCTS_WITH_WEIGHTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
