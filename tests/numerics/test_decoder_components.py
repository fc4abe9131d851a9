"""A decoder's components: both frameworks against numpy in double precision, and against each other."""

from typing import Any

import numpy as np
import pytest

from capstan_runtime.contract.decoder_components import StochasticDepth
from capstan_runtime.decoder_spec import alibi_slopes, depth_rates, taken_tokens
from tests.support.decoders import (
    BASE,
    KEYS_B,
    TOKENS_BT,
    close,
    flax_results,
    model_of,
    torch_results,
    weights_of,
)
from tests.support.engines import ADAMW, FLAX, context_of, deepspeed, make_engine, train
from tests.support.numpy_decoder import NumpyDecoder, slopes
from tests.support.ranks import run_ranks

Document = dict[str, Any]
COMPONENTS: dict[str, Document] = {
    "alibi": {"alibi": {}},
    "layerScale": {"layerScale": {"initial": 0.5}},
    "dropout": {"dropout": {"rate": 0.3}},
    "temporalDropout": {"temporalDropout": {"rate": 0.3}},
    "adaptiveDropout": {"adaptiveDropout": {"scale": 2.0, "shift": 0.5}},
    "tokenDropout": {"tokenDropout": {"keep": 0.55}},
    "stochasticDepth": {"stochasticDepth": {"rate": 0.5}},
}
EVERYTHING: Document = {name: value for component in COMPONENTS.values() for name, value in component.items()}


@pytest.mark.parametrize("components", COMPONENTS.values(), ids=COMPONENTS)
def test_each_component_computes_what_numpy_does(components: Document) -> None:
    model = model_of(components)
    weights = weights_of(model)
    logits, gradients = torch_results(model, weights, KEYS_B)
    close(logits, NumpyDecoder(model.value, weights)(TOKENS_BT, KEYS_B), 1e-5)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("components", [EVERYTHING, COMPONENTS["tokenDropout"]], ids=["everything", "rotary positions"])
def test_both_frameworks_compute_the_same_with_the_same_chance(components: Document) -> None:
    model = model_of(components)
    weights = weights_of(model)
    flax_logits, flax_gradients = flax_results(model, weights, KEYS_B)
    torch_logits, torch_gradients = torch_results(model, weights, KEYS_B)
    close(torch_logits, NumpyDecoder(model.value, weights)(TOKENS_BT, KEYS_B), 1e-5)
    close(flax_logits, torch_logits, 1e-5)
    assert set(flax_gradients) == set(torch_gradients) == set(weights)
    for name, gradient in torch_gradients.items():
        close(flax_gradients[name], gradient, 1e-4, name)


@pytest.mark.parametrize("components", COMPONENTS.values(), ids=COMPONENTS)
def test_every_component_changes_what_is_computed_in_training_and_only_some_in_evaluation(components: Document) -> None:
    plain, model = model_of({}), model_of(components)
    weights = weights_of(model)
    bare = {name: value for name, value in weights.items() if "_scale" not in name}
    changed = {
        keys is not None: not np.allclose(
            NumpyDecoder(model.value, weights)(TOKENS_BT, keys),
            NumpyDecoder(plain.value, bare)(TOKENS_BT, keys),
            rtol=1e-3,
        )
        for keys in (KEYS_B, None)
    }
    acts_always = bool({"alibi", "layerScale", "adaptiveDropout"} & set(components))
    assert changed == {True: True, False: acts_always}


def test_in_evaluation_nothing_is_random_and_units_count_as_often_as_they_are_kept() -> None:
    model = model_of(EVERYTHING)
    weights = weights_of(model)
    expected = NumpyDecoder(model.value, weights)(TOKENS_BT, None)
    close(torch_results(model, weights, None)[0], expected, 1e-5)
    close(flax_results(model, weights, None)[0], expected, 1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 20])
def test_slopes_are_those_of_the_paper_s_code(heads: int) -> None:
    np.testing.assert_allclose(alibi_slopes(heads), slopes(heads), rtol=1e-6)


def test_the_last_layer_is_left_out_most_often() -> None:
    np.testing.assert_allclose(depth_rates(StochasticDepth(rate=0.2), layers=4), [0.05, 0.1, 0.15, 0.2], rtol=1e-6)


def test_a_layer_takes_whole_tokens_and_at_least_one() -> None:
    assert [taken_tokens(keep, length) for keep, length in ((0.5, 16), (0.55, 16), (0.01, 16), (0.99, 2))] == [
        8,
        9,
        1,
        2,
    ]


def losses(rank: int, world: int, coordinator: str, framework: Document, steps: int) -> Any:
    context = context_of(framework, {"transformer": {**BASE, **EVERYTHING}}, rank, world, coordinator, optimizer=ADAMW)
    engine = make_engine(context)
    curve = train(engine, context, 0, steps)
    engine.close()
    return curve


@pytest.mark.full
def test_twenty_steps_with_all_of_them_have_the_same_losses_in_both_frameworks() -> None:
    (flax_curve,) = run_ranks(losses, 1, FLAX, 20)
    (torch_curve,) = run_ranks(losses, 1, deepspeed(1), 20)
    assert flax_curve[-1][0] < flax_curve[0][0] - 0.1, "nothing was learnt: the comparison would be empty"
    np.testing.assert_allclose(flax_curve, torch_curve, rtol=1e-3)
