"""A Flax run whose layers are stages of a pipeline, and whose replicas share experts: the run without either."""

from typing import Any

import numpy as np
import pytest

from capstan_runtime.engine import EvaluationSums
from capstan_runtime.evaluation import add_up
from tests.numerics.test_parallelism_flax import begun
from tests.numerics.test_state import Tensors, bits, gather
from tests.support.engines import Saved, batch_of, train
from tests.support.ranks import run_ranks
from tests.support.spreading import LEFT_TO_CHANCE, spread

Document = dict[str, Any]
DECODER: Document = {"transformer": {"layers": 4, "dim": 32, "heads": 4, "kvHeads": 2}}
EXPERTS: Document = {"transformer": {"layers": 2, "dim": 32, "heads": 4, "experts": {"count": 4, "jitter": 0.1}}}
RANDOM: Document = {"transformer": DECODER["transformer"] | LEFT_TO_CHANCE}
PLAIN: Document = {"virtual_ranks": 4, "batch": 16}
MIDDLE, STEPS = 3, 6


def life(rank: int, world: int, coordinator: str, devices: int, model: Document, options: Document) -> Any:
    """A curve, what is exported in its middle, what the last step told, an evaluation of the whole, and the bytes of
    weights and moments on a device and in all."""
    context, engine = begun(rank, world, coordinator, devices, model, options)
    curve = train(engine, context, 0, MIDDLE)
    saved = gather(engine)
    curve += train(engine, context, MIDDLE, STEPS)
    told = engine.train_step(batch_of(context, STEPS), 1e-3).fetch()
    found = add_up(engine.exchange, engine.evaluate([batch_of(context, 0)]))
    kept = [*engine._parameters, *(array for arrays in engine._state for array in arrays)]
    sizes = sum(array.addressable_data(0).nbytes for array in kept), sum(array.nbytes for array in kept)
    engine.close()
    return curve, saved, told, found, sizes


def onwards(
    rank: int, world: int, coordinator: str, devices: int, model: Document, options: Document, saved: Tensors
) -> Any:
    """What is exported right after importing `saved`, and the curve from there."""
    context, engine = begun(rank, world, coordinator, devices, model, options)
    engine.import_state(Saved(saved))
    state = gather(engine)
    curve = train(engine, context, MIDDLE, STEPS)
    engine.close()
    return bits(state), curve


def is_the_same(found: Any, exact: Any, tolerance: float = 1e-5) -> None:
    """Whether two lives are, and are a life in which something is learnt."""
    (curve, saved, told, evaluated, _), (exact_curve, exactly_saved, exactly_told, exactly_evaluated, _) = found, exact
    assert exact_curve[-1][0] < exact_curve[0][0]
    np.testing.assert_allclose(curve, exact_curve, rtol=tolerance)
    assert told == pytest.approx(exactly_told, rel=tolerance, abs=tolerance)
    assert isinstance(evaluated, EvaluationSums)
    assert (evaluated.loss, evaluated.count) == pytest.approx(
        (exactly_evaluated.loss, exactly_evaluated.count), rel=tolerance
    )
    assert set(saved) == set(exactly_saved)


def test_stages_that_share_experts_learn_as_one_device_does_which_resumes_them_and_is_resumed() -> None:
    layout = PLAIN | spread({"pipeline": 2, "expert": 2}, 4)
    (found,), (exact,) = run_ranks(life, 1, 4, EXPERTS, layout), run_ranks(life, 1, 1, EXPERTS, PLAIN)
    is_the_same(found, exact)
    own, everything = found[-1]
    assert own < everything * 0.4, "half of the layers, and half of their experts"
    ((state, resumed),) = run_ranks(onwards, 1, 1, EXPERTS, PLAIN, found[1])
    assert state == bits(found[1])
    np.testing.assert_allclose(resumed, exact[0][MIDDLE:], rtol=1e-5)
    ((state, resumed),) = run_ranks(onwards, 1, 4, EXPERTS, layout, exact[1])
    assert state == bits(exact[1])
    np.testing.assert_allclose(resumed, exact[0][MIDDLE:], rtol=1e-5)


LAYOUTS: dict[str, tuple[Document, Document, int, int]] = {
    "stages over workers": (DECODER, {"pipeline": 2}, 2, 1),
    "more stages than micro-batches": (DECODER, {"pipeline": 4}, 2, 4),
    "stages over workers, replicated": (DECODER, {"pipeline": 2}, 4, 1),
    "experts over workers": (EXPERTS, {"expert": 2}, 2, 1),
    "experts over workers, replicated": (EXPERTS, {"expert": 2}, 4, 1),
    "experts over more than a worker": (EXPERTS, {"expert": 4}, 2, 2),
    "two groups of replicas in a worker": (EXPERTS, {"expert": 2}, 1, 4),
    "stages and experts over workers": (EXPERTS, {"pipeline": 2, "expert": 2}, 4, 1),
    "stages of cut matrices": (DECODER, {"pipeline": 2, "tensor": 2}, 2, 2),
    "stages of cut sequences": (DECODER, {"pipeline": 2, "sequence": 2}, 1, 4),
    "experts that are cut": (EXPERTS, {"expert": 2, "tensor": 2}, 1, 4),
    "experts for cut sequences": (EXPERTS, {"expert": 2, "sequence": 2}, 1, 4),
}


@pytest.mark.full
@pytest.mark.parametrize(("model", "parallelism", "world", "devices"), LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_is_no_layout(model: Document, parallelism: Document, world: int, devices: int) -> None:
    ranks = run_ranks(life, world, devices, model, PLAIN | spread(parallelism, devices))
    (exact,) = run_ranks(life, 1, 1, model, PLAIN)
    for found in ranks:
        is_the_same(found, exact)
    ((state, resumed),) = run_ranks(onwards, 1, 1, model, PLAIN, ranks[0][1])
    assert state == bits(ranks[0][1])
    np.testing.assert_allclose(resumed, exact[0][MIDDLE:], rtol=1e-5)


COMPANY: dict[str, tuple[Document, Document, Document]] = {
    "chance": (RANDOM, {"pipeline": 2}, {"training": {"ema": {}, "activationCheckpointing": {"policy": "dots"}}}),
    "dropless": (
        {"transformer": {**EXPERTS["transformer"], "experts": {"count": 4, "dropless": {}}}},
        {"pipeline": 2},
        {},
    ),
    "layer-wise": (
        DECODER,
        {"pipeline": 2},
        {
            "optimizer": {"novograd": {"learningRate": 0.01}},
            "training": {"centralizeGradients": {}, "adaptiveClip": {}},
        },
    ),
    "sampled Hessian": (
        EXPERTS,
        {"pipeline": 2, "expert": 2},
        {"optimizer": {"sophia": {"learningRate": 0.01, "hessianEverySteps": 2}}, "training": {"adaptiveClip": {}}},
    ),
    "pruned": (
        EXPERTS,
        {"pipeline": 2, "expert": 2},
        {"compression": {"prune": {"magnitude": {"sparsity": 0.5, "endStep": 2, "everySteps": 1}}}},
    ),
    "attacked": (
        EXPERTS,
        {"pipeline": 2, "expert": 2},
        {"regularization": {"adversarial": {"fgsm": {"epsilon": 0.01}}, "consistency": {}}},
    ),
    "16 bits": (EXPERTS, {"pipeline": 2, "expert": 2}, {"precision": "bf16"}),
}


@pytest.mark.full
@pytest.mark.parametrize(("model", "parallelism", "options"), COMPANY.values(), ids=COMPANY)
def test_what_else_a_run_does_is_the_same(model: Document, parallelism: Document, options: Document) -> None:
    options, devices = {**PLAIN, **options}, int(np.prod(list(parallelism.values())))
    (found,) = run_ranks(life, 1, devices, model, options | spread(parallelism, devices))
    (exact,) = run_ranks(life, 1, 1, model, options)
    is_the_same(found, exact, 1e-2 if "precision" in options else 1e-4)  # Sophia takes signs of what may be almost 0
    ((state, _),) = run_ranks(onwards, 1, 1, model, options, found[1])
    assert state == bits(found[1])
