"""From equal weights the two frameworks compute the same: outputs, gradients, and whole training runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime.contract.models import Model
from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer.models import build_model
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.flax_trainer.step import cross_entropy
from capstan_runtime.model_spec import parameter_table
from tests.support.engines import (
    ADAMW,
    CNN,
    DATA_OF,
    FLAX,
    MLP,
    SGD,
    TIED,
    TRANSFORMER,
    batch_of,
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.ranks import run_ranks

MODELS = {"mlp": MLP, "cnn": CNN, "transformer": TRANSFORMER, "tied": TIED}
Document = dict[str, Any]


def flax_outputs_and_gradients(model: Document) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    context = context_of(FLAX, model)
    batch = batch_of(context, 0)
    structure = Structure(context.run.model, context.data)
    values = [jnp.asarray(leaf.initial_value(context.run.training.seed)) for leaf in structure.leaves]

    def loss(values: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = structure.assemble(values)(batch.inputs[0], flax_pass.Pass(jnp.dtype("float32")))
        return cross_entropy(logits, batch.targets[0]).mean(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(values)
    by_name = {}
    for leaf, gradient in zip(structure.leaves, gradients, strict=True):
        parts = np.asarray(gradient).reshape(len(leaf.parameters), *leaf.parameters[0].shape)
        by_name.update(zip((spec.name for spec in leaf.parameters), parts, strict=True))
    return np.asarray(logits), by_name


def torch_outputs_and_gradients(model: Document) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    context = context_of(deepspeed(0), model)
    batch = batch_of(context, 0)
    module = build_model(context.run.model, context.data, context.run.training.seed)
    logits = module(torch.from_numpy(batch.inputs[0]), torch_pass.Pass(torch.float32))
    targets = torch.from_numpy(batch.targets[0]).long()
    torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    return logits.detach().numpy(), gradients


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_outputs_and_gradients_are_equal(model: Document) -> None:
    flax_logits, flax_gradients = flax_outputs_and_gradients(model)
    torch_logits, torch_gradients = torch_outputs_and_gradients(model)
    names = {spec.name for spec in parameter_table(Model.parse(model), DATA_OF[next(iter(model))])}
    assert set(flax_gradients) == set(torch_gradients) == names
    np.testing.assert_allclose(flax_logits, torch_logits, rtol=1e-5, atol=1e-5 * np.abs(torch_logits).max())
    for name in names:
        scale = np.abs(torch_gradients[name]).max()
        assert scale > 0, name
        np.testing.assert_allclose(flax_gradients[name], torch_gradients[name], atol=1e-4 * scale, err_msg=name)


def losses(
    rank: int, world: int, coordinator: str, framework: Document, model: Document, options: Document, steps: int = 20
) -> Any:
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine = make_engine(context)
    curve = train(engine, context, 0, steps)
    engine.close()
    return curve


CASES = {
    "mlp, SGD": (MLP, {"optimizer": SGD}),
    "cnn, AdamW": (CNN, {"optimizer": ADAMW}),
    "transformer, AdamW": (TRANSFORMER, {"optimizer": ADAMW}),
    "transformer, SGD without clipping": (TRANSFORMER, {"optimizer": SGD, "gradient_clip": None}),
}


@pytest.mark.parametrize(("model", "options"), CASES.values(), ids=CASES)
def test_twenty_steps_have_the_same_losses_and_gradient_norms(model: Document, options: Document) -> None:
    (flax_curve,) = run_ranks(losses, 1, FLAX, model, options)
    (torch_curve,) = run_ranks(losses, 1, deepspeed(0), model, options)
    assert flax_curve[-1][0] < flax_curve[0][0] - 0.1, "nothing was learnt: the comparison would be empty"
    np.testing.assert_allclose(flax_curve, torch_curve, rtol=1e-3)
    np.testing.assert_allclose(flax_curve[0], torch_curve[0], rtol=2e-5)


@pytest.mark.parametrize(("model", "steps"), [(MLP, 20), (TRANSFORMER, 3)], ids=["mlp", "transformer"])
def test_half_precision_follows_the_full_precision_curve_in_both(model: Document, steps: int) -> None:
    (exact,) = run_ranks(losses, 1, deepspeed(0), model, {}, steps)
    for framework in (FLAX, deepspeed(1)):
        (rounded,) = run_ranks(losses, 1, framework, model, {"precision": "bf16"}, steps)
        np.testing.assert_allclose(np.asarray(rounded)[:, 0], np.asarray(exact)[:, 0], rtol=0.01)
        assert rounded != exact
