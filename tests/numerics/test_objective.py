"""Losses and what makes training harder: each against a few lines of numpy, and the frameworks against each other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime.contract.losses import Loss, Regularization
from capstan_runtime.deepspeed_trainer import objective as in_torch
from capstan_runtime.deepspeed_trainer.forward_pass import Pass as TorchPass
from capstan_runtime.engine import Batch
from capstan_runtime.errors import ConfigError
from capstan_runtime.flax_trainer import objective as in_flax
from capstan_runtime.flax_trainer.forward_pass import Pass as FlaxPass
from capstan_runtime.losses import require_loss_fits
from tests.support.engines import CNN, FLAX, MLP, TRANSFORMER, context_of, deepspeed, make_engine, train
from tests.support.ranks import run_ranks

Document = dict[str, Any]
chance = np.random.default_rng(5)
LOGITS = chance.normal(size=(6, 4)).astype(np.float32) * 3
TARGETS = chance.integers(0, 4, 6).astype(np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def smoothed_by_hand(logits: np.ndarray) -> np.ndarray:
    wanted = 0.9 * np.eye(4)[TARGETS] + 0.1 / 4
    return -(wanted * log_softmax(logits)).sum(-1)


def focal_by_hand(logits: np.ndarray) -> np.ndarray:
    p = np.exp(log_softmax(logits))[np.arange(6), TARGETS]
    return -np.asarray([1.0, 2.0, 0.5, 1.5])[TARGETS] * (1 - p) ** 1.5 * np.log(p)


LOSSES: dict[str, tuple[Document, Any]] = {
    "label smoothing": ({"crossEntropy": {"labelSmoothing": 0.1}}, smoothed_by_hand),
    "focal": ({"focal": {"gamma": 1.5, "classWeights": [1.0, 2.0, 0.5, 1.5]}}, focal_by_hand),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_those_of_its_paper(name: str) -> None:
    document, by_hand = LOSSES[name]
    loss, expected = Loss.parse(document), by_hand(LOGITS)
    flax = in_flax.criterion_of(loss)
    logits = torch.tensor(LOGITS, requires_grad=True)
    theirs = in_torch.criterion_of(loss)(logits, torch.from_numpy(TARGETS))
    np.testing.assert_allclose(flax(jnp.asarray(LOGITS), jnp.asarray(TARGETS)), expected, rtol=1e-5)
    np.testing.assert_allclose(theirs.detach(), expected, rtol=1e-5)
    theirs.sum().backward()
    assert logits.grad is not None
    ours = jax.grad(lambda x: flax(x, jnp.asarray(TARGETS)).sum())(jnp.asarray(LOGITS))
    by_difference = np.zeros_like(LOGITS, dtype=np.float64)
    for place in np.ndindex(*LOGITS.shape):
        bump = np.zeros(LOGITS.shape)
        bump[place] = 1e-6
        by_difference[place] = (by_hand(LOGITS + bump) - by_hand(LOGITS - bump)).sum() / 2e-6
    np.testing.assert_allclose(ours, by_difference, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits.grad, by_difference, rtol=1e-4, atol=1e-6)


def test_focal_loss_has_a_gradient_where_it_is_sure() -> None:
    sure = np.asarray([[60.0, 0.0]], np.float32)
    loss = Loss.parse({"focal": {"gamma": 0.5}})
    gradient = jax.grad(lambda x: in_flax.criterion_of(loss)(x, jnp.zeros(1, jnp.int32)).sum())(jnp.asarray(sure))
    logits = torch.tensor(sure, requires_grad=True)
    in_torch.criterion_of(loss)(logits, torch.zeros(1, dtype=torch.int32)).sum().backward()
    assert logits.grad is not None
    assert np.isfinite(gradient).all()
    assert torch.isfinite(logits.grad).all()


def test_disagreement_is_the_mean_of_both_divergences() -> None:
    others = LOGITS[::-1].copy()
    log_p, log_q = log_softmax(LOGITS), log_softmax(others)
    expected = ((np.exp(log_p) * (log_p - log_q)).sum(-1) + (np.exp(log_q) * (log_q - log_p)).sum(-1)).mean() / 2
    np.testing.assert_allclose(in_flax.disagreement(jnp.asarray(LOGITS), jnp.asarray(others)), expected, rtol=1e-5)
    np.testing.assert_allclose(in_torch.disagreement(*map(torch.from_numpy, (LOGITS, others))), expected, rtol=1e-5)


WEIGHTS = chance.normal(size=(3, 4)).astype(np.float32)
INPUTS = chance.normal(size=(6, 3)).astype(np.float32)
KEYS = np.arange(6, dtype=np.uint32)


def harm_by_hand(epsilon: float, step: float, steps: int) -> np.ndarray:
    """The perturbation of a linear model: its gradient is (p - target) times the weights."""
    harm = np.zeros_like(INPUTS)
    for _ in range(steps):
        slope = (np.exp(log_softmax((INPUTS + harm) @ WEIGHTS)) - np.eye(4)[TARGETS]) @ WEIGHTS.T
        harm = np.clip(harm + step * np.sign(slope), -epsilon, epsilon)
    return harm


@pytest.mark.parametrize(
    ("attack", "harm", "share"),
    [
        ({"fgsm": {"epsilon": 0.1}}, (0.1, 0.1, 1), 0.5),
        ({"pgd": {"epsilon": 0.1, "stepSize": 0.04, "steps": 4}}, (0.1, 0.04, 4), 1.0),
    ],
    ids=["FGSM", "PGD"],
)
def test_adversarial_samples_are_those_of_the_papers(attack: Document, harm: Any, share: float) -> None:
    regularization = Regularization.parse({"adversarial": attack})
    changed = INPUTS + harm_by_hand(*harm)
    clean, adversarial = (-log_softmax(inputs @ WEIGHTS)[np.arange(6), TARGETS].mean() for inputs in (INPUTS, changed))
    expected = (1 - share) * clean + share * adversarial
    flax = in_flax.Objective(None, regularization, None)(
        lambda inputs, here: here.perturbed(inputs) @ WEIGHTS,
        Batch(jnp.asarray(INPUTS), jnp.asarray(TARGETS), keys=jnp.asarray(KEYS)),
        FlaxPass(jnp.dtype("float32"), jnp.asarray(KEYS)),
    )
    keys = torch.arange(6)
    theirs = in_torch.Objective(None, regularization, None)(
        lambda inputs, here: here.perturbed(inputs) @ torch.from_numpy(WEIGHTS),
        Batch(torch.from_numpy(INPUTS), torch.from_numpy(TARGETS), keys=keys),
        TorchPass(torch.float32, keys),
    )
    np.testing.assert_allclose(flax, expected, rtol=1e-5)
    np.testing.assert_allclose(theirs, expected, rtol=1e-5)


def test_samples_made_of_two_have_a_share_of_both_targets() -> None:
    second, shares = TARGETS[::-1].copy(), np.linspace(0, 1, 6, dtype=np.float32)
    minus_log = -log_softmax(LOGITS)
    expected = (shares * minus_log[np.arange(6), TARGETS] + (1 - shares) * minus_log[np.arange(6), second]).mean()
    arrays = (LOGITS, TARGETS, None, KEYS, second, shares)
    flax = in_flax.Objective(None, None, None)(
        lambda inputs, here: inputs,
        Batch(*(None if each is None else jnp.asarray(each) for each in arrays)),
        FlaxPass(jnp.dtype("float32"), jnp.asarray(KEYS)),
    )
    theirs = in_torch.Objective(None, None, None)(
        lambda inputs, here: inputs,
        Batch(*(None if each is None else torch.from_numpy(each.astype(each.dtype, copy=True)) for each in arrays)),
        TorchPass(torch.float32, torch.arange(6)),
    )
    np.testing.assert_allclose(flax, expected, rtol=1e-5)
    np.testing.assert_allclose(theirs, expected, rtol=1e-5)


def test_weights_for_other_classes_than_the_data_has_are_refused() -> None:
    loss = Loss.parse({"focal": {"classWeights": [1.0, 2.0]}})
    require_loss_fits(loss, 2)
    with pytest.raises(ConfigError, match=r"^spec\.loss\.focal\.classWeights: 2 weights, but the data has 3 classes; "):
        require_loss_fits(loss, 3)


def curve(rank: int, world: int, coordinator: str, framework: Document, model: Document, hardship: Document) -> Any:
    context = context_of(framework, model, rank, world, coordinator, **hardship)
    engine = make_engine(context)
    losses = [loss for loss, _ in train(engine, context, 0, 20)]
    engine.close()
    return losses


PGD = {"adversarial": {"pgd": {"epsilon": 0.02, "stepSize": 0.01, "steps": 2}}}
FGSM = {"adversarial": {"fgsm": {"epsilon": 0.05}}}
CURVES: dict[str, tuple[Document, Document]] = {
    "adversarial images": (CNN, {"regularization": FGSM}),
    "adversarial tokens": (TRANSFORMER, {"regularization": PGD}),
    "focal": (MLP, {"loss": {"focal": {}}}),
}


@pytest.mark.parametrize("name", CURVES)
def test_both_frameworks_learn_alike(name: str) -> None:
    model, hardship = CURVES[name]
    ours, theirs = (run_ranks(curve, 1, framework, model, hardship)[0] for framework in (FLAX, deepspeed(1)))
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)
