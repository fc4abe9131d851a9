"""A run that keeps a moving average of its model is evaluated and served with it, and trains on with the weights."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from capstan_runtime.engine import Batch
from capstan_runtime.flax_trainer.objective import cross_entropy
from capstan_runtime.hooks import Interrupted
from tests.numerics.test_state import bits, gather
from tests.support.engines import FLAX, Saved, batch_of, context_of, deepspeed, make_engine, train
from tests.support.predictors import FRAMEWORKS, Framework, build, signature_of, state_of, trainer_forward
from tests.support.ranks import run_ranks

Document = dict[str, Any]
WITH_AVERAGE: Document = {"training": {"ema": {"decay": 0.9}}, "virtual_ranks": 4}
MODEL: Document = {"mlp": {"hidden": [24, 16], "norm": {"batch": {}}, "fourierFeatures": {"count": 12, "scale": 0.5}}}
JUDGED = 50
"""The batch that is evaluated."""


def loss_of(engine: Any, context: Any) -> float:
    """Over the samples of all ranks."""
    sums = engine.evaluate([batch_of(context, JUDGED)._replace(keys=None)])
    everyone = [pickle.loads(each) for each in engine.exchange(pickle.dumps((sums.loss, sums.count)))]
    loss, count = np.sum(everyone, axis=0)
    return float(loss / count)


def break_off(engine: Any, context: Any) -> None:
    def batches() -> Iterator[Batch]:
        yield batch_of(context, JUDGED)._replace(keys=None)
        raise Interrupted

    with pytest.raises(Interrupted):
        engine.evaluate(batches())


def evaluated(rank: int, world: int, coordinator: str, frameworks: list[Document]) -> Any:
    """For each framework: the loss after some steps, everything it had at first and after each of them, and whether
    evaluating, also when it is broken off, has left every bit and the steps that follow as they were."""
    from capstan_runtime.deepspeed_trainer import engine as deepspeed_engine

    answers = []
    for framework in frameworks:
        context = context_of(framework, MODEL, rank, world, coordinator, **WITH_AVERAGE)
        engine: Any = make_engine(context)
        history = [gather(engine)]
        for step in range(4):
            train(engine, context, step, step + 1)
            history.append(gather(engine))
        state = history[-1]
        onwards = train(engine, context, 4, 6)
        engine.import_state(Saved(state))
        loss = loss_of(engine, context)
        break_off(engine, context)
        is_untouched = bits(gather(engine)) == bits(state)
        answers.append((loss, history, is_untouched, train(engine, context, 4, 6) == onwards))
        # A process joins one world only, so the stages share it.
        deepspeed_engine.World = lambda *_, joined=engine._world: joined  # type: ignore[assignment,misc]
    engine.close()
    return answers


@pytest.mark.parametrize("frameworks", [[FLAX], [deepspeed(stage) for stage in range(4)]], ids=["flax", "deepspeed"])
def test_the_average_is_evaluated_and_training_goes_on_with_the_weights(frameworks: list[Document]) -> None:
    context = context_of(FLAX, MODEL, virtual_ranks=4)
    batch = batch_of(context, JUDGED)
    inputs, targets = (array.reshape(-1, *array.shape[2:]) for array in (batch.inputs, batch.targets))
    signature = signature_of(MODEL)

    def loss_by_hand(state: dict[str, np.ndarray], is_averaged: Callable[[str], bool]) -> float:
        names = [name for name in state if name.startswith("params/")]
        averages = {name: state.get(name.replace("params/", "ema/"), state[name]) for name in names}
        mixed = {name: averages[name] if is_averaged(name) else state[name] for name in names}
        return float(np.mean(cross_entropy(trainer_forward("torch", signature, mixed)(inputs), targets)))

    for ranks in zip(*run_ranks(evaluated, 2, frameworks), strict=True):
        for loss, history, is_untouched, goes_on_alike in ranks:
            require_averages(history)
            state = history[-1]
            assert loss == pytest.approx(loss_by_hand(state, lambda name: True), rel=1e-5)
            assert abs(loss_by_hand(state, lambda name: False) - loss) > 1e-3, "the weights are elsewhere by now"
            assert abs(loss_by_hand(state, lambda name: "running" not in name) - loss) > 1e-3, "and their statistics"
            assert is_untouched
            assert goes_on_alike


def require_averages(history: list[dict[str, np.ndarray]]) -> None:
    """All that changes has an average, which begins as it does and goes towards it at each step."""
    names = {name.removeprefix("params/") for name in history[0] if name.startswith("params/")}
    averaged = {name.removeprefix("ema/") for name in history[0] if name.startswith("ema/")}
    assert names - averaged == {"fourier.weight"}
    assert {"norms.0.running_mean", "norms.1.running_var"} < averaged
    for name in averaged:
        average = history[0][f"params/{name}"].astype(np.float64)
        np.testing.assert_array_equal(history[0][f"ema/{name}"], average)
        for step, state in enumerate(history[1:], 1):
            rate = max(0.1, 9 / (10 + step))  # 1 - decay, and more while the average is young
            average += (state[f"params/{name}"] - average) * rate
            np.testing.assert_allclose(state[f"ema/{name}"], average, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_average_is_served_where_there_is_one(framework: Framework) -> None:
    signature = signature_of({"mlp": {"hidden": [8], "norm": {"batch": {}}}})
    averages = state_of(signature)
    weights = {name: np.zeros_like(array) for name, array in averages.items()}
    averages = {name.replace("params/", "ema/"): array for name, array in averages.items()}
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    found = []
    for state in ({**weights, **averages}, state_of(signature)):
        served = build(framework, signature, Saved(state))
        served.warm((4,))
        found.append(served.logits(images))
    np.testing.assert_array_equal(*found)
