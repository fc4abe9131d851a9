"""From equal weights the two frameworks compute the same: outputs, gradients, and whole training runs."""

from typing import Any

import numpy as np
import pytest

from capstan_runtime.contract.models import Model
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
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.parity import by_torch, require_parity
from tests.support.ranks import run_ranks

MODELS = {"mlp": MLP, "cnn": CNN, "transformer": TRANSFORMER, "tied": TIED}
Document = dict[str, Any]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_outputs_and_gradients_are_equal(model: Document) -> None:
    names = {spec.name for spec in parameter_table(Model.parse(model), DATA_OF[next(iter(model))])}
    assert set(by_torch(model, is_training=False).gradients) == names
    require_parity(model, is_training=False)


def losses(
    rank: int, world: int, coordinator: str, framework: Document, model: Document, options: Document, steps: int = 20
) -> Any:
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine = make_engine(context)
    curve = train(engine, context, 0, steps)
    engine.close()
    return curve


CASES = {
    "mlp, SGD without clipping": (MLP, {"optimizer": SGD, "gradient_clip": None}),
    "cnn, AdamW": (CNN, {"optimizer": ADAMW}),
    "transformer, AdamW": (TRANSFORMER, {"optimizer": ADAMW}),
}
MORE = {
    "mlp, SGD": (MLP, {"optimizer": SGD}),
    "transformer, SGD without clipping": (TRANSFORMER, {"optimizer": SGD, "gradient_clip": None}),
}
"""Each half of these is in one of the others."""


@pytest.mark.parametrize(
    ("model", "options"),
    [
        *(pytest.param(*case, id=name) for name, case in CASES.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.full) for name, case in MORE.items()),
    ],
)
def test_twenty_steps_have_the_same_losses_and_gradient_norms(model: Document, options: Document) -> None:
    (flax_curve,) = run_ranks(losses, 1, FLAX, model, options)
    (torch_curve,) = run_ranks(losses, 1, deepspeed(0), model, options)
    assert flax_curve[-1][0] < flax_curve[0][0] - 0.1, "nothing was learnt: the comparison would be empty"
    np.testing.assert_allclose(flax_curve, torch_curve, rtol=1e-3)
    np.testing.assert_allclose(flax_curve[0], torch_curve[0], rtol=2e-5)


@pytest.mark.parametrize(
    ("model", "steps"),
    [pytest.param(MLP, 20, id="mlp", marks=pytest.mark.full), pytest.param(TRANSFORMER, 3, id="transformer")],
)
def test_half_precision_follows_the_full_precision_curve_in_both(model: Document, steps: int) -> None:
    (exact,) = run_ranks(losses, 1, deepspeed(0), model, {}, steps)
    for framework in (FLAX, deepspeed(1)):
        (rounded,) = run_ranks(losses, 1, framework, model, {"precision": "bf16"}, steps)
        np.testing.assert_allclose(np.asarray(rounded)[:, 0], np.asarray(exact)[:, 0], rtol=0.01)
        assert rounded != exact
