"""The stages of a pipeline: which layers each has, and in what order it computes what.

The order is one forward, one backward (PipeDream-Flush: Narayanan et al., 2104.04473): a stage begins with as many
forward passes as there are stages after it, so it never keeps the activations of more than that and one micro-step,
however many there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from capstan_runtime.parallel.layout import Layout


@dataclass(frozen=True, slots=True)
class Stage:
    """Which part of a model with layers in a row this is. The first stage also has what is before the layers, the last
    one what is after them."""

    number: int = 0
    count: int = 1

    @classmethod
    def of(cls, layout: Layout, device: int) -> "Stage":
        return cls(layout.coordinate(device, "pipeline"), layout.size("pipeline"))

    @property
    def is_first(self) -> bool:
        return self.number == 0

    @property
    def is_last(self) -> bool:
        return self.number == self.count - 1

    def numbers(self, layers: int) -> range:
        """Of its layers, out of so many in the whole model: a multiple of the stages."""
        each = layers // self.count
        return range(self.number * each, (self.number + 1) * each)

    def has(self, parameter: str, layers: int, *, is_tied: bool) -> bool:
        """Whether `parameter` is in it, such as `embed.weight`, `layers.3.attention.qkv.weight` or `norm.weight`.
        `is_tied`: the embedding is also the head, so that both ends have it."""
        first, *others = parameter.split(".")
        if first == "layers":
            return int(others[0]) in self.numbers(layers)
        if first == "embed":
            return self.is_first or (self.is_last and is_tied)
        return self.is_last


WHOLE = Stage()
"""Of a model that is not cut."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The forward pass of a micro-step."""

    micro_step: int


@dataclass(frozen=True, slots=True)
class Backward:
    """The backward pass of a micro-step."""

    micro_step: int


@dataclass(frozen=True, slots=True)
class Swap:
    """What is handed over with one neighbour, in both directions at once: one after the other, both would first wait
    for the other to take, where messages between two devices keep their order. None: nothing goes this way."""

    is_with_next: bool
    """With the stage after this one, to which outputs go and from which their gradients come; False: the one before."""
    gives: int | None
    """Of which micro-step."""
    takes: int | None


Action = Forward | Backward | Swap


def one_forward_one_backward(stage: Stage, micro_steps: int) -> Iterator[Action]:
    """What `stage` does in an optimizer step. Of two stages after each other the swaps match, in their order."""
    ahead = min(stage.count - 1 - stage.number, micro_steps)
    for number in range(ahead):
        yield from _from_before(stage, None, number)
        yield Forward(number)
        yield from _to_next(stage, number, None)
    if ahead < micro_steps:
        yield from _from_before(stage, None, ahead)
    for number in range(ahead, micro_steps):
        done = number - ahead
        yield Forward(number)
        yield from _to_next(stage, number, done)
        yield Backward(done)
        yield from _from_before(stage, done, number + 1 if number + 1 < micro_steps else None)
    for number in range(micro_steps - ahead, micro_steps):
        yield from _to_next(stage, None, number)
        yield Backward(number)
        yield from _from_before(stage, number, None)


def _to_next(stage: Stage, gives: int | None, takes: int | None) -> Iterator[Swap]:
    if not stage.is_last:
        yield Swap(True, gives, takes)


def _from_before(stage: Stage, gives: int | None, takes: int | None) -> Iterator[Swap]:
    if not stage.is_first:
        yield Swap(False, gives, takes)
