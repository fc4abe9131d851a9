"""Layers whose inputs the backward pass computes again from their outputs (RevNet, 1707.04585; Reformer, 2001.04451).

A layer is two branches over two streams: first += attention(second), then second += feed_forward(first). Backwards each
can be taken off again, so nothing is kept of a layer but its weights. What is random is a function of keys, and comes
out the same the second time.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from capstan_runtime.flax_trainer import random
from capstan_runtime.flax_trainer.forward_pass import Pass, Said

Streams = tuple[jax.Array, jax.Array]
"""fp32, so that what is taken off is what was added to within its last bits."""
Branch = Callable[[jax.Array], jax.Array]
Branches = Callable[[Any, Pass, Any], tuple[Branch, Branch]]
"""From a layer's parameters, the call as it sees it, and what all layers are given alike."""


def enter(x: jax.Array) -> Streams:
    """Both begin alike."""
    return x.astype(jnp.float32), x.astype(jnp.float32)


def leave(streams: Streams, dtype: jnp.dtype) -> jax.Array:
    """Their mean."""
    return ((streams[0] + streams[1]) / 2).astype(dtype)


def through_reversible_layers(
    branches: Branches, streams: Streams, stacked: Any, numbers: range, here: Pass, given: Any
) -> Streams:
    """`streams` through the layers `numbers`, as `through_layers`, with `given` for each of them: arrays that nothing
    is differentiated by."""
    all_layers = len(jax.tree.leaves(stacked)[0])
    if len(numbers) < all_layers:
        stacked = jax.tree.map(lambda whole: whole[numbers.start : numbers.stop], stacked)
    each = jnp.arange(numbers.start, numbers.stop, dtype=jnp.uint32)

    def add(which: int, parameters: Any, x: jax.Array, number: jax.Array, chance: Any) -> tuple[jax.Array, Said, Said]:
        """What a branch adds, and what it says."""
        keys_B, given = chance
        if here.gather_layer is not None:
            parameters = here.gather_layer(parameters)
        keys_B = None if keys_B is None else random.at(keys_B, number)
        inside = replace(here, keys_B=keys_B, number=number, perturbation=None, losses={}, proposals={}, measured={})
        delta = branches(parameters, inside, given)[which](x.astype(here.dtype))
        return delta.astype(jnp.float32), inside.losses, inside.measured

    def forward(streams: Streams, stacked: Any, chance: Any) -> tuple[Streams, tuple[tuple[Said, Said], Said]]:
        def layer(streams: Streams, numbered: tuple[jax.Array, Any]) -> tuple[Streams, tuple[tuple[Said, Said], Said]]:
            (first, second), (number, parameters) = streams, numbered
            delta, losses, measured = add(0, parameters, second, number, chance)
            first = first + delta
            delta, more_losses, more_measured = add(1, parameters, first, number, chance)
            return (first, second + delta), ((losses, more_losses), {**measured, **more_measured})

        return jax.lax.scan(layer, streams, (each, stacked))

    def keep(streams: Streams, stacked: Any, chance: Any) -> tuple[Any, Any]:
        result = forward(streams, stacked, chance)
        return result, (result[0], stacked, chance)

    def backward(kept: Any, slopes: Any) -> tuple[Streams, Any, None]:
        streams, stacked, chance = kept
        slopes_of_streams, (slopes_of_losses, _) = slopes

        def take_off(which: int, parameters: Any, x: jax.Array, number: jax.Array, slopes: Any) -> Any:
            (delta, _), pull = jax.vjp(
                lambda parameters, x: add(which, parameters, x, number, chance)[:2], parameters, x
            )
            return delta, *pull(slopes)

        def layer(carried: tuple[Streams, Streams], numbered: Any) -> tuple[tuple[Streams, Streams], Any]:
            (first, second), (d_first, d_second) = carried
            number, parameters, (d_losses, d_more_losses) = numbered
            delta, d_parameters, d_x = take_off(1, parameters, first, number, (d_second, d_more_losses))
            second, d_first = second - delta, d_first + d_x
            delta, d_more_parameters, d_x = take_off(0, parameters, second, number, (d_first, d_losses))
            first, d_second = first - delta, d_second + d_x
            d_parameters = jax.tree.map(jnp.add, d_parameters, d_more_parameters)
            return ((first, second), (d_first, d_second)), d_parameters

        begun = (streams, slopes_of_streams)
        (_, slopes_of_streams), d_stacked = jax.lax.scan(layer, begun, (each, stacked, slopes_of_losses), reverse=True)
        return slopes_of_streams, d_stacked, None

    run = jax.custom_vjp(forward)
    run.defvjp(keep, backward)
    streams, (losses, measured) = run(streams, stacked, (here.keys_B, given))
    for said in losses:
        for name, values in said.items():
            here.add_loss(name, jnp.sum(values))
    for name, values in measured.items():
        here.measure_all(name, values.reshape(-1, *values.shape[2:]))
    return streams
