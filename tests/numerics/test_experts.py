"""Mixtures of experts: both frameworks against a token-by-token numpy, and against each other."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime.contract.decoder_components import Experts
from capstan_runtime.decoder_spec import as_served, expert_capacity, expert_figures
from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer.components import experts as torch_experts
from capstan_runtime.deepspeed_trainer.models import build_model
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
from tests.support.engines import FLAX, TOKENS, batch_of, context_of, deepspeed, make_engine
from tests.support.numpy_decoder import NumpyDecoder
from tests.support.ranks import run_ranks

Document = dict[str, Any]
SWITCH = {"count": 4, "topK": 1, "capacityFactor": 1.0, "jitter": 0.1}
GSHARD = {"count": 4, "topK": 2, "capacityFactor": 0.8, "auxiliaryLoss": 0.1, "zLoss": 0.05}
DROPLESS = {"count": 6, "topK": 3, "jitter": 0.1, "dropless": {}}
KINDS = {"one of four": SWITCH, "two of four": GSHARD, "three of six, dropless": DROPLESS}


@pytest.mark.parametrize("experts", [pytest.param(SWITCH, marks=pytest.mark.full), GSHARD, DROPLESS], ids=KINDS)
def test_both_frameworks_send_every_token_where_numpy_does(experts: Document) -> None:
    model = model_of({"layers": 2, "experts": experts})
    weights = weights_of(model)
    reference = NumpyDecoder(model.value, weights)
    expected = reference(TOKENS_BT, KEYS_B)
    torch_logits, torch_gradients = torch_results(model, weights, KEYS_B)
    flax_logits, flax_gradients = flax_results(model, weights, KEYS_B)
    close(torch_logits, expected, 1e-5)
    close(flax_logits, expected, 1e-5)
    assert set(flax_gradients) == set(torch_gradients) == set(weights)
    for name, gradient in torch_gradients.items():
        assert np.abs(gradient).max() > 0, name
        close(flax_gradients[name], gradient, 1e-4, name)
    assert (np.asarray(reference.dropped) > 0).all() == ("dropless" not in experts), "the case must tell something"


@pytest.mark.parametrize("experts", KINDS.values(), ids=KINDS)
def test_losses_and_what_is_measured_are_numpy_s(experts: Document) -> None:
    model = model_of({"layers": 2, "experts": experts})
    weights = weights_of(model)
    reference = NumpyDecoder(model.value, weights)
    reference(TOKENS_BT, KEYS_B)
    module = build_model(model, TOKENS, 0)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    here = torch_pass.Pass(torch.float32, torch.from_numpy(KEYS_B.astype(np.int64)))
    module(torch.from_numpy(TOKENS_BT), here)
    assert float(sum(here.losses.values()).detach()) == pytest.approx(reference.losses, rel=1e-5)
    close(here.measured["expert_load"].numpy(), np.asarray(reference.loads), 1e-6)
    close(here.measured["dropped_share"].numpy(), np.asarray(reference.dropped), 1e-6)


def test_without_a_limit_and_with_one_that_nobody_meets_the_same_is_computed() -> None:
    wide, dropless = (
        model_of({"layers": 2, "experts": {"count": 4, "topK": 2, **more}})
        for more in ({"evalCapacityFactor": 4.0}, {"dropless": {}})
    )
    weights = weights_of(wide)
    close(torch_results(wide, weights, None)[0], torch_results(dropless, weights, None)[0], 1e-6)


def test_what_a_sequence_gets_does_not_depend_on_the_others() -> None:
    model = model_of({"layers": 2, "experts": GSHARD})
    weights = weights_of(model)
    module = build_model(model, TOKENS, 0)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})

    def losses_and_logits(part: slice) -> tuple[float, np.ndarray]:
        here = torch_pass.Pass(torch.float32, torch.from_numpy(KEYS_B[part].astype(np.int64)))
        logits = module(torch.from_numpy(TOKENS_BT[part]), here).detach().numpy()
        return float(sum(here.losses.values()).detach()), logits

    whole, parts = losses_and_logits(slice(None)), [losses_and_logits(slice(one, one + 1)) for one in range(3)]
    assert np.mean([loss for loss, _ in parts]) == pytest.approx(whole[0], rel=1e-6)
    close(np.concatenate([logits for _, logits in parts]), whole[1], 1e-5)


def test_grouped_products_are_those_of_each_expert_in_half_precision() -> None:
    layer = torch_experts.ExpertLinear(4, 16, 24)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=chance).bfloat16())
    x = torch.randn(20, 16, generator=chance).bfloat16().requires_grad_()
    sizes = torch.tensor([7, 0, 12, 1])
    slope = torch.randn(20, 24, generator=chance)
    made = layer(x, sizes)
    (made.float() * slope).sum().backward()
    grouped = made.detach().clone(), x.grad.clone(), layer.weight.grad.clone()
    x.grad = layer.weight.grad = None
    exact = torch.cat(
        [part @ weight.T for part, weight in zip(x.float().split(sizes.tolist()), layer.weight, strict=True)]
    )
    (exact * slope).sum().backward()
    for found, expected in zip(grouped, (exact.detach(), x.grad, layer.weight.grad), strict=True):
        close(found.float().numpy(), expected.float().numpy(), 0.01)
    assert (layer.weight.grad[1] == 0).all()


def test_of_equal_shares_the_first_is_taken() -> None:
    model = model_of({"layers": 1, "experts": {"count": 4, "topK": 2, "capacityFactor": 4.0}})
    weights = {name: value * (0.0 if "router" in name else 1.0) for name, value in weights_of(model).items()}
    expected = NumpyDecoder(model.value, weights)(TOKENS_BT, KEYS_B)
    close(torch_results(model, weights, KEYS_B)[0], expected, 1e-5)


@pytest.mark.parametrize(
    ("experts", "is_training", "expected"),
    [
        ({"count": 8, "topK": 1}, True, 3),
        ({"count": 8, "topK": 1}, False, 4),
        ({"count": 8, "topK": 2, "capacityFactor": 1.0}, True, 4),
        ({"count": 2, "topK": 2, "capacityFactor": 8.0}, True, 16),
        ({"count": 8, "dropless": {}}, True, None),
    ],
)
def test_an_expert_takes_its_share_of_a_sequence(experts: Document, is_training: bool, expected: int | None) -> None:
    assert expert_capacity(Experts.parse(experts), 16, is_training=is_training) == expected


def test_a_served_model_drops_no_token_and_has_the_same_weights() -> None:
    served = as_served(model_of({"experts": GSHARD}))
    assert served == model_of({"experts": {**GSHARD, "dropless": {}}})
    assert as_served(model_of({})) == model_of({})


def test_the_busiest_expert_of_any_layer_is_reported() -> None:
    load = jnp.asarray([[0.25, 0.25, 0.25, 0.25], [0.1, 0.5, 0.3, 0.1]])
    figures = expert_figures(np.asarray(load), np.asarray([0.0, 0.25]))
    assert figures == {"expert_load_ratio": 2.0, "dropped_choice_ratio": 0.125}


def results(rank: int, world: int, coordinator: str, framework: Document, steps: int) -> Any:
    model = {"transformer": {**BASE, "layers": 2, "experts": GSHARD}}
    context = context_of(framework, model, rank, world, coordinator, virtual_ranks=4)
    engine = make_engine(context)
    found = [engine.train_step(batch_of(context, step), 3e-3 * min(1, (step + 1) / 5)).fetch() for step in range(steps)]
    engine.close()
    return found


def test_a_step_tells_of_all_ranks_experts() -> None:
    (alone,) = run_ranks(results, 1, FLAX, 2)
    together = run_ranks(results, 2, deepspeed(2), 2)
    assert together[0] == together[1]
    for one, other in zip(alone, together[0], strict=True):
        assert set(one) == {"loss", "gradient_norm", "expert_load_ratio", "dropped_choice_ratio"}
        assert one == pytest.approx(other, rel=1e-4)
        assert 1.0 <= one["expert_load_ratio"] <= 4.0
        assert 0.0 < one["dropped_choice_ratio"] < 1.0


@pytest.mark.full
def test_twenty_steps_have_the_same_losses_in_both_frameworks() -> None:
    (flax_curve,), (torch_curve,) = run_ranks(results, 1, FLAX, 20), run_ranks(results, 1, deepspeed(0), 20)
    losses = [[step["loss"] for step in curve] for curve in (flax_curve, torch_curve)]
    assert losses[0][-1] < losses[0][0] - 0.1, "nothing was learnt: the comparison would be empty"
    np.testing.assert_allclose(*losses, rtol=1e-3)
