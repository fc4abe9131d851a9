"""A decoder's components: both frameworks against numpy in double precision, and against each other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime.contract.models import Model, Transformer
from capstan_runtime.decoder_spec import alibi_slopes, depth_rates, taken_tokens
from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer import objective as torch_objective
from capstan_runtime.deepspeed_trainer.models import build_model
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer import objective as flax_objective
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.model_spec import initial_parameter, parameter_table
from tests.support.engines import ADAMW, FLAX, TOKENS, context_of, deepspeed, make_engine, train
from tests.support.numpy_decoder import NumpyDecoder, slopes
from tests.support.ranks import run_ranks

Array = np.ndarray
Document = dict[str, Any]
BASE = {"layers": 4, "dim": 24, "heads": 6, "kvHeads": 3, "hiddenDim": 32}
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
RANDOM = np.random.default_rng(5)
TOKENS_BT = RANDOM.integers(0, TOKENS.outputs, (3, *TOKENS.input_shape)).astype(np.int32)
TARGETS_BT = RANDOM.integers(0, TOKENS.outputs, TOKENS_BT.shape).astype(np.int32)
KEYS_B = RANDOM.integers(0, 2**32, len(TOKENS_BT), dtype=np.uint32)


def model_of(components: Document) -> Model:
    return Model.parse({"transformer": {**BASE, **components}})


def weights_of(model: Model) -> dict[str, Array]:
    """Ten times as large as they begin: then every component shows in the outputs."""
    table = parameter_table(model, TOKENS)
    return {spec.name: initial_parameter(spec, 3) * (10 if len(spec.shape) > 1 else 1) for spec in table}


def flax_results(model: Model, weights: dict[str, Array], keys: Array | None) -> tuple[Array, dict[str, Array]]:
    """Logits, and the loss's gradient by parameter."""
    structure = Structure(model, TOKENS)
    values = [
        jnp.asarray(np.stack([weights[spec.name] for spec in leaf.parameters]).reshape(leaf.shape))
        for leaf in structure.leaves
    ]

    def loss(values: list[jax.Array], keys_B: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        here = flax_pass.Pass(jnp.dtype("float32"), keys_B)
        logits = structure.assemble(values)(jnp.asarray(TOKENS_BT), here)
        mean = flax_objective.cross_entropy(logits, jnp.asarray(TARGETS_BT)).mean()
        return sum(here.losses.values(), mean), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(values, None if keys is None else jnp.asarray(keys))
    by_name: dict[str, Array] = {}
    for leaf, gradient in zip(structure.leaves, gradients, strict=True):
        parts = np.asarray(gradient).reshape(len(leaf.parameters), *leaf.parameters[0].shape)
        by_name.update(zip((spec.name for spec in leaf.parameters), parts, strict=True))
    return np.asarray(logits), by_name


def torch_results(model: Model, weights: dict[str, Array], keys: Array | None) -> tuple[Array, dict[str, Array]]:
    module = build_model(model, TOKENS, 0)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    here = torch_pass.Pass(torch.float32, None if keys is None else torch.from_numpy(keys.astype(np.int64)))
    logits = module(torch.from_numpy(TOKENS_BT), here)
    mean = torch_objective.cross_entropy(logits, torch.from_numpy(TARGETS_BT)).mean()
    sum(here.losses.values(), mean).backward()
    return logits.detach().numpy(), {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}


def close(found: Array, expected: Array, tolerance: float, what: str = "") -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max(), err_msg=what)


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
    config = Transformer(layers=4, dim=8, heads=1, stochastic_depth={"rate": 0.2})
    np.testing.assert_allclose(depth_rates(config), [0.05, 0.1, 0.15, 0.2], rtol=1e-6)


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
