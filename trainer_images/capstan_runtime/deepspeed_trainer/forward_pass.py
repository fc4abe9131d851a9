"""What a model is told with its inputs, and what it says beside its outputs. Axes: B samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from capstan_runtime import randomness
from capstan_runtime.deepspeed_trainer import random
from capstan_runtime.deepspeed_trainer.recomputation import Recompute


@dataclass(frozen=True, slots=True)
class Pass:
    """One call of a model. Modules hand it on; a module with chances of its own hands on its part, `named`."""

    dtype: torch.dtype
    """What is computed in."""
    sample_keys_B: Tensor | None = None
    """One key a sample, int64 below 2^32 (`capstan_runtime.randomness`). None: not training, and nothing is random."""
    perturbation: Tensor | None = None
    """Added to the inputs, or to the embeddings of tokens; fp32. None: nothing is."""
    conditions: Tensor | None = None
    """[B, K] fp32: what the data says of each sample beside its input. None: nothing."""
    first: int = 0
    """Which of a sequence's tokens the first is that this rank computes."""
    places: tuple[int, ...] = ()
    """Where in the model the module is that sees the call: layers and names, as numbers, from outside in."""
    known_keys: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    """Those of `sample_keys_B` at other places that were asked for, so that each is hashed once."""
    number: int | None = None
    """Of the layer that sees the call, from 0. None: it is outside of layers, or nothing is random."""
    seed: int | None = None
    """The first key, on the host: what a module that is not ours draws from. None: not training."""
    is_apart: bool = False
    """The tokens have nothing to do with each other, and what one gets must not depend on the others by one bit."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """What modules add to the loss, fp32 scalars, each as its share of the mean over the samples."""
    proposals: dict[int, Tensor] = field(default_factory=dict)
    """What modules propose as next values of their buffers, by the `id` of each."""
    recompute: Recompute | None = None
    """How a block is run whose activations are, in part, computed again by the backward pass. None: all are kept."""
    measured: dict[str, Tensor] = field(default_factory=dict)
    """What modules measure, fp32 [layers that do, ...], each a mean over the samples."""

    @property
    def is_training(self) -> bool:
        return self.sample_keys_B is not None

    @property
    def keys_B(self) -> Tensor | None:
        """The samples' keys at the place of the module that sees the call. Found when somebody asks: to hash them takes
        eleven kernels for each place on the way, and most places draw nothing."""
        return None if self.sample_keys_B is None else self._keys_at(self.sample_keys_B, self.places)

    def _keys_at(self, keys_B: Tensor, places: tuple[int, ...]) -> Tensor:
        if not places:
            return keys_B
        if places not in self.known_keys:
            self.known_keys[places] = random.at(self._keys_at(keys_B, places[:-1]), places[-1])
        return self.known_keys[places]

    def named(self, name: str) -> "Pass":
        """The same call as a module called `name` sees it."""
        return self if self.sample_keys_B is None else replace(self, places=(*self.places, randomness.site(name)))

    def layer(self, number: int) -> "Pass":
        """The same call as layer `number` sees it."""
        if self.sample_keys_B is None:
            return self
        return replace(self, places=(*self.places, number), number=number)

    def add_loss(self, name: str, value: Tensor) -> None:
        self.losses[name] = self.losses[name] + value if name in self.losses else value

    def measure(self, name: str, value: Tensor) -> None:
        """Of the layer that sees the call."""
        self.measure_all(name, value.detach()[None])

    def measure_all(self, name: str, values: Tensor) -> None:
        """Of layers that are one after the other, [layers, ...]."""
        others = self.measured.get(name)
        self.measured[name] = values if others is None else torch.cat([others, values])

    def perturbed(self, x: Tensor) -> Tensor:
        """`x`, which is the inputs or the embeddings of tokens, with what is added to it, in the type to compute in."""
        return (x if self.perturbation is None else x + self.perturbation).to(self.dtype)

    def propose(self, buffer: Tensor, value: Tensor) -> None:
        """The buffer's next value as this micro-step would have it, fp32; the mean over all of them is taken. Proposed
        twice, the later one counts."""
        self.proposals[id(buffer)] = value.detach()


def through_block(block: Callable[..., Tensor], x: Tensor, here: Pass, *others: Any) -> Tensor:
    """`block(x, *others, here)`, of which the backward pass has what `here` lets it keep."""
    if here.recompute is None:
        return block(x, *others, here)

    measured: dict[str, Tensor] = {}

    def run(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # Run twice, so what it adds to the loss must not be added to `here` itself, and what it measures must be told
        # once. What it proposes is the same again.
        inside = replace(here, losses={}, measured={})
        x = block(x, *others, inside)
        measured.update(inside.measured)
        return x, inside.losses

    x, losses = here.recompute(run, x)
    for name, value in losses.items():
        here.add_loss(name, value)
    for name, values in measured.items():
        here.measure_all(name, values)
    return x


class Proposals:
    """The sum of what the micro-steps of one optimizer step propose for the buffers of a module."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        """`buffers`: all that the module has, in its order; to find them takes long enough to do it once only."""
        self._buffers = buffers
        self._sums: dict[int, Tensor] = {}

    def add(self, proposals: Mapping[int, Tensor]) -> None:
        """What one micro-step proposes, by the `id` of the buffer."""
        for buffer, value in proposals.items():
            self._sums[buffer] = self._sums[buffer] + value if buffer in self._sums else value

    def settle(self, micro_steps: int) -> None:
        """The buffers take the mean over the micro-steps of all ranks. Collective, if anything was proposed: every rank
        runs the same module, so it was on all of them or on none."""
        moved = [buffer for buffer in self._buffers if id(buffer) in self._sums]
        if not moved:
            return
        flat = torch.cat([self._sums[id(buffer)].flatten() for buffer in moved])
        if dist.get_world_size() > 1:
            dist.all_reduce(flat)
        for buffer, mean in zip(moved, (flat / micro_steps).split([buffer.numel() for buffer in moved]), strict=True):
            buffer.copy_(mean.view_as(buffer))
