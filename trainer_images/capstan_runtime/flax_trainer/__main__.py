"""`python -m capstan_runtime.flax_trainer`: one rank of a Flax run, started by the supervisor."""

from typing import TYPE_CHECKING

from capstan_runtime.entry import begin

if TYPE_CHECKING:
    from capstan_runtime.loop import MakeEngine


def load() -> "MakeEngine":
    """Imports JAX and all of this trainer. JAX looks for devices only when the engine asks for them."""
    from capstan_runtime.flax_trainer.engine import FlaxEngine

    return FlaxEngine


begin(load)
