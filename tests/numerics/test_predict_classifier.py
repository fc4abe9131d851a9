"""Classifiers of both frameworks: the trainers' own logits, from parameters alone, whatever the size of a batch."""

import warnings
from typing import Any

import jax
import numpy as np
import pytest

from capstan_runtime.errors import ConfigError
from tests.support.engines import CNN, MLP, Saved
from tests.support.predictors import (
    FRAMEWORKS,
    Array,
    Compilations,
    Framework,
    build,
    signature_of,
    state_of,
    trainer_forward,
)

MODELS = {"mlp": MLP, "cnn": CNN}
WARM = (1, 4, 8)


def images(count: int) -> Array:
    return np.random.default_rng(count).normal(size=(count, 8, 8, 1)).astype(np.float32)


def classifier(framework: Framework, model: dict[str, Any]) -> Any:
    signature = signature_of(model)
    made = build(framework, signature, Saved(state_of(signature)))
    made.warm(WARM)
    assert made.signature == signature
    return made


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> dict[str, Any]:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def both(model: dict[str, Any]) -> dict[Framework, Any]:
    return {framework: classifier(framework, model) for framework in FRAMEWORKS}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 8, 19])
def test_logits_are_those_of_the_trainer(
    both: dict[Framework, Any], model: dict[str, Any], framework: Framework, count: int
) -> None:
    signature = signature_of(model)
    found = both[framework].logits(images(count))
    assert (found.shape, found.dtype) == ((count, 10), np.float32)
    if count:
        expected = trainer_forward(framework, signature, state_of(signature))(images(count))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_both_frameworks_have_the_same_logits(both: dict[Framework, Any]) -> None:
    flax, torch = (both[framework].logits(images(8)) for framework in FRAMEWORKS)
    assert np.ptp(torch, axis=1).min() > 0.1, "all classes alike: the comparison would be empty"
    np.testing.assert_allclose(flax, torch, rtol=1e-5, atol=1e-5 * np.abs(torch).max())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sample_has_the_same_bits_wherever_it_stands_and_whoever_stands_beside_it(
    both: dict[Framework, Any], framework: Framework
) -> None:
    batch, others = images(8), images(9)[:8]
    first = both[framework].logits(batch)
    for turn in range(8):
        mixed = np.where(np.arange(8)[:, None, None, None] % 2, others, np.roll(batch, turn, axis=0))
        again = both[framework].logits(np.ascontiguousarray(mixed))
        np.testing.assert_array_equal(again[::2], np.roll(first, turn, axis=0)[::2])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_any_array_of_the_right_form_will_do_and_none_is_changed(
    both: dict[Framework, Any], framework: Framework
) -> None:
    batch = images(4)
    kept = batch.copy()
    expected = both[framework].logits(batch)
    read_only = np.frombuffer(batch.tobytes(), np.float32).reshape(batch.shape)
    strided = np.repeat(batch, 2, axis=0)[::2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (read_only, strided, np.asfortranarray(batch)):
            np.testing.assert_array_equal(both[framework].logits(same), expected)
    np.testing.assert_array_equal(batch, kept)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_inputs_of_another_form_are_refused(both: dict[Framework, Any], framework: Framework) -> None:
    for wrong in (images(2)[..., 0], images(2).astype(np.float64), images(2)[:, :7]):
        with pytest.raises(ValueError, match="float32 of n x 8 x 8 x 1 expected"):
            both[framework].logits(wrong)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_it_must_be_warmed_and_may_be_warmed_again(framework: Framework) -> None:
    signature = signature_of(MLP)
    made = build(framework, signature, Saved(state_of(signature)))
    with pytest.raises(ValueError, match="call warm first"):
        made.logits(images(1))
    for wrong in ([], [0, 1]):
        with pytest.raises(ValueError, match="give one or more, each at least 1"):
            made.warm(wrong)
    made.warm([4])
    few = made.logits(images(1))
    made.warm([1, 4])
    np.testing.assert_allclose(made.logits(images(1)), few, rtol=1e-6, atol=1e-6)


def test_nothing_is_compiled_once_it_is_warm(both: dict[Framework, Any]) -> None:
    compilations = Compilations()
    for count in (1, 2, 8, 19):
        both["flax"].logits(images(count))
    assert compilations.count == 0
    jax.jit(lambda x: x + 41)(1).block_until_ready()
    assert compilations.count == 1, "the count would notice"


class OnlyParameters(Saved):
    """A checkpoint as it is, with optimizer state; notes what is read."""

    def __init__(self, state: dict[str, Array]) -> None:
        moments = {name.replace("params/", "optimizer/exp_avg/"): value for name, value in state.items()}
        super().__init__({**state, **moments, "optimizer/step": np.array(3)})
        self.read_names: list[str] = []

    def read(self, name: str) -> Any:
        self.read_names.append(name)
        return super().read(name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_parameter_is_read_once_and_nothing_else(framework: Framework, model: dict[str, Any]) -> None:
    signature = signature_of(model)
    source = OnlyParameters(state_of(signature))
    build(framework, signature, source)
    assert sorted(source.read_names) == sorted(state_of(signature))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_tensors_of_another_model_are_refused(framework: Framework) -> None:
    with pytest.raises(ConfigError, match="has no params/"):
        build(framework, signature_of(CNN), Saved(state_of(signature_of(MLP))))
    with pytest.raises(ConfigError, match="in the checkpoint and"):
        build(framework, signature_of({"mlp": {"hidden": [24, 17]}}), Saved(state_of(signature_of(MLP))))
