"""Chance without state: the same bits in every framework, and numbers that look drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_runtime import randomness
from capstan_runtime.deepspeed_trainer import random as torch_random
from capstan_runtime.flax_trainer import random as flax_random

words = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8)


@settings(max_examples=25)
@given(words, st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), max_size=3))
def test_numpy_jax_and_torch_draw_the_same_bits(keys: list[int], place: int, shape: list[int]) -> None:
    ours = np.asarray(keys, np.uint32)
    expected = randomness.uniform(randomness.at(ours, place), *shape)
    theirs_jax = flax_random.uniform(flax_random.at(jnp.asarray(ours), place), *shape)
    theirs_torch = torch_random.uniform(torch_random.at(torch.tensor(keys), place), *shape)
    assert expected.tobytes() == np.asarray(theirs_jax).tobytes() == theirs_torch.numpy().tobytes()


def test_a_layer_known_only_inside_a_loop_has_the_same_keys() -> None:
    keys_B = jnp.arange(4, dtype=jnp.uint32)
    _, looped = jax.lax.scan(lambda _, layer: (None, flax_random.at(keys_B, layer)), None, jnp.arange(3))
    assert np.array_equal(looped, [randomness.at(np.arange(4, dtype=np.uint32), layer) for layer in range(3)])


def test_numbers_are_uniform_and_independent_of_element_sample_place_and_batch() -> None:
    ids = np.arange(64, dtype=np.int64)
    draws = np.stack(
        [
            randomness.uniform(randomness.at(randomness.sample_keys(7, batch, ids), place), 128)
            for batch in (0, 1)
            for place in (0, randomness.site("dropout"))
        ]
    )
    counts, _ = np.histogram(draws, bins=32, range=(0.0, 1.0))
    expected = draws.size / 32
    assert ((counts - expected) ** 2 / expected).sum() < 61.1  # chi-squared with 31 degrees of freedom, p = 0.001
    for axis in range(3):
        pairs = np.moveaxis(draws, axis, 0)
        correlation = np.corrcoef(pairs[:-1].ravel(), pairs[1:].ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(pairs[1:].size)


@pytest.mark.parametrize("changed", [(8, 0, 5), (7, 1, 5), (7, 0, 6), (7, 0, 5 + 2**32)])
def test_a_sample_has_another_key_in_another_run_batch_or_place(changed: tuple[int, int, int]) -> None:
    seed, batch, sample = changed
    key = randomness.sample_keys(7, 0, np.asarray([5]))
    assert randomness.sample_keys(seed, batch, np.asarray([sample])) != key


def test_keys_do_not_depend_on_how_a_batch_is_cut() -> None:
    ids = np.arange(24, dtype=np.int64).reshape(4, 6)
    whole = randomness.sample_keys(7, 3, ids)
    assert np.array_equal(whole.ravel(), randomness.sample_keys(7, 3, ids.ravel()))
    assert np.array_equal(whole[1], randomness.sample_keys(7, 3, ids[1]))


def test_a_part_of_the_elements_has_the_numbers_that_they_have_in_the_whole() -> None:
    keys_B = torch.tensor([5, 6])
    whole = torch_random.uniform(keys_B, 6, 8)
    assert torch.equal(torch_random.uniform(keys_B, 2, 8, first=3 * 8), whole[:, 3:5])
    assert torch.equal(torch_random.uniform(keys_B, 2, 3, first=3 * 8 + 4, row=8), whole[:, 3:5, 4:7])
