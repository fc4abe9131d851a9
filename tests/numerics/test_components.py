"""What perceptrons and convolutional networks may be given computes the same in both frameworks, and in every world."""

from typing import Any

import numpy as np
import pytest

from capstan_runtime.errors import ConfigError
from capstan_runtime.model_spec import STEP_NAME
from tests.numerics.test_state import gather
from tests.support.engines import ADAMW, FLAX, SGD, context_of, deepspeed, make_engine, train
from tests.support.parity import Document, require_parity
from tests.support.ranks import run_ranks


def cnn(**components: Any) -> Document:
    return {"cnn": {"channels": [8, 16], "groups": 4, **components}}


def mlp(**components: Any) -> Document:
    return {"mlp": {"hidden": [24, 16], **components}}


MODELS = {
    "cnn, batch norm": cnn(norm={"batch": {}}),
    "cnn, layer norm": cnn(norm={"layer": {}}),
    "cnn, instance norm": cnn(norm={"instance": {}}),
    "cnn, RMS norm": cnn(norm={"rms": {}}),
    "cnn, mixed norm": cnn(norm={"mix": {}}),
    "cnn, everything but a norm": cnn(
        blocksPerStage=2,
        squeezeExcitation={"reduction": 4},
        layerScale={"initial": 0.5},
        stochasticDepth={"rate": 0.4},
        spatialDropout={"rate": 0.2},
        dropout={"rate": 0.3},
    ),
    "mlp, dropout and Fourier features": mlp(dropout={"rate": 0.3}, fourierFeatures={"count": 12, "scale": 0.5}),
    "cnn, FiLM and AdaIN": cnn(conditionalScaling={"film": {}}, adaptiveNorm={"adaIn": {}}),
    "mlp, FiLM": mlp(conditionalScaling={"film": {}}),
    "mlp, group norm": mlp(norm={"group": {"groups": 4}}),
    "mlp, batch norm": mlp(norm={"batch": {}}),
    "mlp, mixed norm": mlp(norm={"mix": {}}),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_proposals_of_a_training_pass_are_equal(name: str) -> None:
    # A normalisation takes a bias before it away again.
    is_lost = {
        "mlp, batch norm": ["layers.0.bias", "layers.1.bias"],
        "cnn, FiLM and AdaIN": ["blocks.0.second.norm.bias", "blocks.1.second.norm.bias"],
    }.get(name, [])
    require_parity(MODELS[name], is_training=True, still=lambda parameter: parameter in is_lost)


BATCH_NORM = cnn(norm={"batch": {}})
# With SGD: Adam would make steps of its own size out of the rounding that is all the gradient a bias before a
# normalisation gets, and such a bias moves a mean.
WITH_STATISTICS = {
    "mlp": (mlp(norm={"batch": {}}), SGD, 4),
    "cnn": (BATCH_NORM, ADAMW, 12),
}
WORLDS = {
    "flax x 1": (FLAX, 1),
    "flax x 2": (FLAX, 2),
    "zero0 x 2": (deepspeed(0), 2),
    "zero3 x 2": (deepspeed(3), 2),
}


def twenty_steps(
    rank: int, world: int, coordinator: str, framework: Document, model: Document, optimizer: Document
) -> Any:
    options: Document = {"batch": 16, "virtual_ranks": 4, "optimizer": optimizer}
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine = make_engine(context)
    curve = train(engine, context, 0, 20)
    state = gather(engine)
    engine.close()
    return curve, state


@pytest.mark.parametrize("name_of_model", ["mlp", pytest.param("cnn", marks=pytest.mark.full)])
def test_batch_norm_has_the_same_losses_and_statistics_in_every_framework_world_and_stage(name_of_model: str) -> None:
    model, optimizer, count = WITH_STATISTICS[name_of_model]
    curves, states = {}, {}
    for name, (framework, world) in WORLDS.items():
        curves[name], states[name] = run_ranks(twenty_steps, world, framework, model, optimizer)[0]
    first = next(iter(WORLDS))
    assert curves[first][-1][0] < curves[first][0][0] - 0.1, "nothing was learnt: the comparison would be empty"
    buffers = [name for name in states[first] if ".running_" in name]
    assert len(buffers) == count
    moments = [name for name in states[first] if name.startswith("optimizer/") and name != STEP_NAME]
    assert not any(".running_" in name for name in moments), "no gradient moves them"
    for name in WORLDS:
        np.testing.assert_allclose(curves[name], curves[first], rtol=1e-3, err_msg=name)
        assert states[name].keys() == states[first].keys()
        for buffer in buffers:
            value = states[name][buffer]
            assert not np.allclose(value, 1.0 if "var" in buffer else 0.0, atol=1e-3), buffer
            np.testing.assert_allclose(
                value, states[first][buffer], rtol=1e-3, atol=1e-3 * np.abs(value).max(), err_msg=f"{name} {buffer}"
            )


def test_samples_that_share_statistics_are_never_computed_apart() -> None:
    context = context_of(FLAX, BATCH_NORM, micro_splits=2)
    with pytest.raises(ConfigError) as caught:
        context.require_whole_slices(devices=1)
    assert str(caught.value) == (
        "spec.model.cnn.norm.batch: a virtual rank's 8 samples do not fit into the device's memory together, and the "
        "statistics are over all of them; in a new job raise training.virtualRanks, or choose norm group or layer"
    )
    with pytest.raises(ConfigError, match="2 devices per worker would share a virtual rank's samples"):
        context_of(FLAX, BATCH_NORM).require_whole_slices(devices=2)
    context_of(FLAX, cnn(norm={"layer": {}}), micro_splits=2).require_whole_slices(devices=2)
