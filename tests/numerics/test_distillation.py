"""Learning from a trained model: against a few lines of numpy, and the frameworks against each other."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime.context import TrainContext
from capstan_runtime.contract.distillation import Distill
from capstan_runtime.contract.losses import Regularization
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.signature import Signature
from capstan_runtime.deepspeed_trainer import objective as in_torch
from capstan_runtime.deepspeed_trainer.forward_pass import Pass as TorchPass
from capstan_runtime.engine import Batch, Engine, Trained
from capstan_runtime.flax_trainer import objective as in_flax
from capstan_runtime.flax_trainer.forward_pass import Pass as FlaxPass
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import parameter_table
from tests.numerics.test_objective import INPUTS, KEYS, LOGITS, TARGETS, WEIGHTS, log_softmax
from tests.support.engines import (
    DATA_OF,
    FLAX,
    MLP,
    TRANSFORMER,
    Saved,
    batch_of,
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.ranks import run_ranks
from tests.support.teachers import values_of

Document = dict[str, Any]
REFERENCE = {"registry": {"name": "teacher", "version": "1.0.0"}}
chance = np.random.default_rng(11)
TAUGHT = chance.normal(size=LOGITS.shape).astype(np.float32) * 2


def divergence_by_hand(taught: np.ndarray, logits: np.ndarray, temperature: float) -> float:
    log_p, log_q = log_softmax(taught / temperature), log_softmax(logits / temperature)
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def test_the_divergence_from_the_teacher_and_its_gradient_are_those_of_the_paper() -> None:
    flax = in_flax.divergence(jnp.asarray(TAUGHT), jnp.asarray(LOGITS), 3.0)
    logits = torch.tensor(LOGITS, requires_grad=True)
    theirs = in_torch.divergence(torch.from_numpy(TAUGHT), logits, 3.0)
    expected = divergence_by_hand(TAUGHT.astype(np.float64), LOGITS.astype(np.float64), 3.0)
    np.testing.assert_allclose([float(flax), theirs.item()], expected, rtol=1e-5)
    theirs.backward()
    ours = jax.grad(lambda x: in_flax.divergence(jnp.asarray(TAUGHT), x, 3.0))(jnp.asarray(LOGITS))
    # 1503.02531, equation 2: (q - p) / T, here of the mean over the samples.
    slope = (np.exp(log_softmax(LOGITS / 3)) - np.exp(log_softmax(TAUGHT / 3))) / 3 / len(LOGITS)
    assert logits.grad is not None
    np.testing.assert_allclose(ours, slope, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(logits.grad, slope, rtol=1e-4, atol=1e-7)


TEACHER = chance.normal(size=WEIGHTS.shape).astype(np.float32)
DISTILL = Distill.parse({"teacher": REFERENCE, "temperature": 2.0, "alpha": 0.7})


def loss_by_hand(inputs: np.ndarray) -> float:
    """Of a linear model, whose teacher sees the samples as they are."""
    hard = -log_softmax(inputs @ WEIGHTS)[np.arange(6), TARGETS].mean()
    return float(0.3 * hard + 0.7 * 4 * divergence_by_hand(INPUTS @ TEACHER, inputs @ WEIGHTS, 2.0))


def harm_by_hand(epsilon: float) -> np.ndarray:
    """One step up the whole loss: its gradient is that of both parts times the weights."""
    logits = INPUTS @ WEIGHTS
    hard = np.exp(log_softmax(logits)) - np.eye(4)[TARGETS]
    soft = np.exp(log_softmax(logits / 2)) - np.exp(log_softmax(INPUTS @ TEACHER / 2))
    return epsilon * np.sign((0.3 * hard + 0.7 * 4 * soft / 2) @ WEIGHTS.T)


def objectives(regularization: Document) -> list[float]:
    """What both frameworks make of the linear model and its teacher."""
    parts = Regularization.parse(regularization)
    flax = in_flax.Objective(None, parts, None, DISTILL)(
        lambda inputs, here: here.perturbed(inputs) @ WEIGHTS,
        Batch(jnp.asarray(INPUTS), jnp.asarray(TARGETS), keys=jnp.asarray(KEYS)),
        FlaxPass(jnp.dtype("float32"), jnp.asarray(KEYS)),
        lambda inputs, here: here.perturbed(inputs) @ TEACHER,
    )
    keys = torch.arange(6)
    theirs = in_torch.Objective(None, parts, None, DISTILL)(
        lambda inputs, here: here.perturbed(inputs) @ torch.from_numpy(WEIGHTS),
        Batch(torch.from_numpy(INPUTS), torch.from_numpy(TARGETS), keys=keys),
        TorchPass(torch.float32, keys),
        teacher=lambda inputs, here: here.perturbed(inputs) @ torch.from_numpy(TEACHER),
    )
    return [float(flax), theirs.item()]


def test_the_loss_has_its_share_of_the_targets_and_of_the_teacher() -> None:
    np.testing.assert_allclose(objectives({}), loss_by_hand(INPUTS), rtol=1e-5)


def test_an_attack_raises_the_whole_loss_and_the_teacher_sees_the_samples_as_they_are() -> None:
    expected = (loss_by_hand(INPUTS) + loss_by_hand(INPUTS + harm_by_hand(0.1))) / 2
    np.testing.assert_allclose(objectives({"adversarial": {"fgsm": {"epsilon": 0.1}}}), expected, rtol=1e-5)


def trained(model: Document, student: Document, seed: int = 1) -> Trained:
    """A teacher that nobody has trained, with averages of its weights and running statistics that are others: what is
    served of it is told from what is not."""
    data = DATA_OF[next(iter(student))]
    signature = Signature(model=Model.parse(model), kind=data.kind, input_shape=data.input_shape, outputs=data.outputs)
    values = values_of(signature, seed)
    table = parameter_table(signature.model, data_spec_of(signature))
    own = {spec.tensor_name(): spec for spec in table if spec.is_averaged}
    averages = {
        spec.tensor_name("ema"): 3 * values[name] if spec.is_trained else values[name] + 0.5
        for name, spec in own.items()
    }
    return Trained(signature, "blake3:" + "7" * 64, Saved({**values, **averages}))


def learner(context: TrainContext, teacher: Trained) -> Engine:
    """An engine that has read its teacher."""
    engine = make_engine(replace(context, teacher=teacher))
    engine.read_teacher()
    return engine


def curve(
    rank: int, world: int, coordinator: str, framework: Document, model: Document, teacher: Document, more: Document
) -> Any:
    """Losses and norms of 20 steps, and the names of what is saved."""
    compression = {"distill": {"teacher": REFERENCE, "alpha": 0.8}}
    options = {"virtual_ranks": 4, "compression": compression, **more}
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine = learner(context, trained(teacher, model))
    losses = train(engine, context, 0, 20)
    names = sorted({part.name for part in engine.export_state()})
    engine.close()
    return losses, names


BATCH_NORM: Document = {"cnn": {"channels": [8, 16], "norm": {"batch": {}}, "dropout": {"rate": 0.5}}}
EXPERTS: Document = {"transformer": {"layers": 2, "dim": 16, "heads": 2, "experts": {"count": 4}}}
PAIRS: dict[str, tuple[Document, Document]] = {"an mlp of a cnn": (MLP, BATCH_NORM), "decoders": (TRANSFORMER, EXPERTS)}
STUDENTS: dict[str, Document] = {"an mlp of a cnn": {"regularization": {"adversarial": {"fgsm": {"epsilon": 0.05}}}}}


@pytest.mark.parametrize("pair", PAIRS)
def test_both_frameworks_learn_alike_from_a_teacher_of_which_nothing_is_saved(pair: str) -> None:
    model, teacher = PAIRS[pair]
    more = STUDENTS.get(pair, {})
    (ours, names), (theirs, others) = (
        run_ranks(curve, 1, framework, model, teacher, more)[0] for framework in (FLAX, deepspeed(1))
    )
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)
    assert ours[-1][0] < ours[0][0]
    context = context_of(FLAX, model)
    parameters = {spec.tensor_name() for spec in parameter_table(context.run.model, context.data)}
    assert {name for name in names if name.startswith("params/")} == parameters
    assert {name for name in others if name.startswith("params/")} == parameters


@pytest.mark.parametrize(
    "frameworks",
    [
        pytest.param([{"flax": {"fsdp": {}}}, deepspeed(3)], id="weights"),
        pytest.param([deepspeed(0), deepspeed(2)], id="no weights", marks=pytest.mark.full),
    ],
)
def test_the_teacher_is_whole_whatever_is_cut_up_of_the_model(frameworks: list[Document]) -> None:
    (expected, _), _ = run_ranks(curve, 2, FLAX, MLP, BATCH_NORM, {})
    for framework in frameworks:
        (found, _), (same, _) = run_ranks(curve, 2, framework, MLP, BATCH_NORM, {})
        assert same == found
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def judgement(
    rank: int, world: int, coordinator: str, devices: int, model: Document, teacher: Document, more: Document
) -> tuple[float, float, float]:
    """What a rank of a run whose workers have so many devices finds of a teacher on a batch."""
    jax.config.update("jax_num_cpu_devices", devices)
    compression = {"distill": {"teacher": REFERENCE}}
    options = {"virtual_ranks": 2, "batch": 8, "compression": compression, **more}
    context = context_of(FLAX, model, rank, world, coordinator, **options)
    asked = trained(teacher, model)
    engine = learner(context, asked)
    found = engine.evaluate([batch_of(context, 0)], asked)
    engine.close()
    return found.loss, found.correct, found.count


UNEVEN: Document = {"transformer": {"layers": 3, "dim": 24, "heads": 3, "experts": {"count": 3}}}
EVEN: Document = {"transformer": {"layers": 2, "dim": 32, "heads": 4}}
LAYOUTS: dict[str, tuple[Document, Document, Document, int, int]] = {
    "tensor over workers": (TRANSFORMER, EVEN, {"parallelism": {"tensor": 2}, "workersPerReplica": 2}, 2, 1),
    "stages of layers that they do not divide": (EVEN, UNEVEN, {"parallelism": {"pipeline": 2}}, 1, 2),
    "experts over workers": (EXPERTS, UNEVEN, {"parallelism": {"expert": 2}}, 2, 1),
    "heads that devices do not divide": (TRANSFORMER, UNEVEN, {"parallelism": {"tensor": 2, "sequence": 2}}, 1, 4),
}
QUICK = {"tensor over workers", "stages of layers that they do not divide"}


@pytest.mark.parametrize(
    "layout",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.full) for name in LAYOUTS],
)
def test_a_teacher_is_judged_alike_however_the_model_that_learns_from_it_is_spread(layout: str) -> None:
    model, teacher, more, world, devices = LAYOUTS[layout]
    ranks = run_ranks(judgement, world, devices, model, teacher, more)
    (exactly,) = run_ranks(judgement, 1, 1, model, teacher, {})
    np.testing.assert_allclose(np.sum(ranks, axis=0), exactly, rtol=1e-5)


def first_step(rank: int, world: int, coordinator: str, framework: Document, seed: int) -> Any:
    """Loss and norm of a model whose teacher is what the model would be with this seed."""
    compression = {"distill": {"teacher": REFERENCE, "alpha": 1.0}}
    context = context_of(framework, MLP, rank, world, coordinator, compression=compression)
    data = DATA_OF["mlp"]
    signature = Signature(model=Model.parse(MLP), kind=data.kind, input_shape=data.input_shape, outputs=data.outputs)
    teacher = Trained(signature, "", Saved(values_of(signature, seed)))
    engine = learner(context, teacher)
    (found,) = train(engine, context, 0, 1)
    engine.close()
    return found


@pytest.mark.parametrize("framework", [FLAX, deepspeed(0)], ids=["flax", "deepspeed"])
def test_who_agrees_with_the_teacher_has_nothing_to_learn(framework: Document) -> None:
    (itself,) = run_ranks(first_step, 1, framework, 7)  # the run's own seed
    assert itself == pytest.approx((0.0, 0.0), abs=1e-5)
    ((other, _),) = run_ranks(first_step, 1, framework, 8)
    assert other > 0.01


def with_a_module_of_its_own(rank: int, world: int, coordinator: str, framework: Document, model: Document) -> Any:
    """Losses of 10 steps, and what is found of the teacher and of the model itself on one batch."""
    compression = {"distill": {"teacher": REFERENCE}}
    context = context_of(framework, model, rank, world, coordinator, compression=compression)
    teacher = trained(BATCH_NORM, model)
    engine = learner(context, teacher)
    losses = [loss for loss, _ in train(engine, context, 0, 10)]
    batch = [batch_of(context, 0)]
    found = engine.evaluate(batch, teacher), engine.evaluate(batch)
    engine.close()
    return losses, [each.loss for each in found]


@pytest.mark.full
def test_a_module_of_ones_own_learns_from_a_teacher_which_both_frameworks_judge_alike() -> None:
    judged = []
    for framework, name in ((FLAX, "flax_classifier"), (deepspeed(1), "torch_classifier")):
        model = {"custom": {"target": f"tests.support.own_models:{name}", "config": {"dropout": 0.1}}}
        losses, (of_teacher, of_itself) = run_ranks(with_a_module_of_its_own, 1, framework, model)[0]
        assert losses[-1] < losses[0]
        assert of_itself != of_teacher
        judged.append(of_teacher)
    np.testing.assert_allclose(judged[1], judged[0], rtol=1e-5)
