"""Weights as integers, in both frameworks, against the papers' arithmetic written once more in double precision."""

import math
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_runtime.contract.compression import Compression
from capstan_runtime.deepspeed_trainer.integers import as_if_integers as torch_twin
from capstan_runtime.errors import ConfigError
from capstan_runtime.flax_trainer.integers import as_if_integers as flax_twin
from capstan_runtime.integers import Bits, as_integers, as_weights, integers_name, most, scales_name, stored
from capstan_runtime.model_spec import initial_parameter, parameter_table
from capstan_runtime.quantization import is_quantized, require_aware_steps, weight_bytes
from tests.numerics.test_average import JUDGED, loss_of
from tests.numerics.test_average import MODEL as WITH_STATISTICS
from tests.numerics.test_state import gather
from tests.support.engines import (
    CNN,
    FLAX,
    MLP,
    TRANSFORMER,
    Saved,
    WholeTensors,
    batch_of,
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.predictors import FRAMEWORKS, build, signature_of
from tests.support.ranks import run_ranks

Document = dict[str, Any]
Array = np.ndarray
BEGIN, STEPS, RATE = 4, 10, 0.2
SGD = {"sgd": {"learningRate": RATE, "momentum": 0.0}}
EXPERTS = {"transformer": {**TRANSFORMER["transformer"], "experts": {"count": 4, "topK": 2}}}
EIGHT_FROM_4: Document = {"quantize": {"aware": {"beginStep": BEGIN}}}
FOUR_AT_THE_END: Document = {"quantize": {"bits": 4}}


def rounded(w: Array, bits: int) -> Array:
    """[O, I] by rows: symmetric, and scales of 16 significant bits, in any precision."""
    top = 2 ** (bits - 1) - 1
    mantissa, exponent = np.frexp(np.abs(w).max(axis=1, keepdims=True) / top)
    scale = np.ldexp(np.rint(mantissa * 2**16), exponent - 16)
    return np.rint(w / scale).clip(-top, top) * scale


@st.composite
def weights(draw: st.DrawFn) -> tuple[Array, int, Bits]:
    """Of a matrix, a kernel or several experts; of sizes that differ between channels, some of them zeros."""
    shape, channel_dims = draw(st.sampled_from([((5, 7), 1), ((4, 3, 3, 3), 1), ((2, 3, 5), 2), ((2, 4, 6), 2)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    w = random.normal(size=shape) * 10.0 ** draw(st.integers(-36, 30))
    w *= 10.0 ** random.integers(-3, 3, size=shape[:channel_dims]).reshape(
        *shape[:channel_dims], *[1] * (w.ndim - channel_dims)
    )
    w[random.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0.0
    return w.astype(np.float32), channel_dims, draw(st.sampled_from([8, 4]))


@given(weights())
@settings(max_examples=60)
def test_all_frameworks_round_to_the_same_bits_and_what_is_rounded_stays(case: tuple[Array, int, Bits]) -> None:
    w, channel_dims, bits = case
    integers, scales = as_integers(w, channel_dims, bits)
    whole = as_weights(integers, scales)
    by_flax = jax.jit(flax_twin, static_argnums=(1, 2))(w, channel_dims, bits)
    np.testing.assert_array_equal(np.asarray(by_flax), whole)
    np.testing.assert_array_equal(torch_twin(torch.from_numpy(w), channel_dims, bits).numpy(), whole)
    again = as_integers(whole, channel_dims, bits)
    np.testing.assert_array_equal(again[0], integers)
    np.testing.assert_array_equal(again[1], scales)
    assert np.abs(integers).max(initial=0) <= most(bits)
    wide = scales.reshape(*scales.shape, *[1] * (w.ndim - channel_dims))
    assert (np.abs(whole - w) <= wide * (0.5 + most(bits) * 2.0**-16)).all(), (
        "half a step, but for the scale's rounding"
    )
    assert (whole[w == 0] == 0).all(), "what was pruned stays pruned"


def test_rounding_is_that_of_the_paper_and_four_bits_lie_two_to_a_byte() -> None:
    w = np.random.default_rng(3).normal(size=(6, 5)).astype(np.float32)
    for bits in (8, 4):
        np.testing.assert_array_equal(as_weights(*as_integers(w, 1, bits)), rounded(w.astype(np.float64), bits))
    integers = np.array([[-7, 7, 1], [0, -1, 5]], np.int8)
    assert stored(integers, 1, 4).tolist() == [[0x79, 0x01], [0xF0, 0x05]]
    assert stored(integers, 1, 8) is integers


def by_reference(document: Document) -> tuple[list[float], dict[str, Array]]:
    """Losses and weights of the MLP of the engines' tests: gradients at the weights that passes see, for those kept."""
    context = context_of(FLAX, MLP)
    table = parameter_table(context.run.model, context.data)
    w = {spec.name: initial_parameter(spec, 7).astype(np.float64) for spec in table}
    layers = ["layers.0", "layers.1", "head"]
    cdf = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))
    losses = []
    for step in range(STEPS):
        sees = step + 1 > document["aware"]["beginStep"]
        used = {n: rounded(v, document.get("bits", 8)) if sees and n in QUANTIZED else v for n, v in w.items()}
        batch = batch_of(context, step)
        targets = batch.targets.reshape(-1)
        xs, zs = [batch.inputs.reshape(len(targets), -1).astype(np.float64)], []
        for name in layers:
            zs.append(xs[-1] @ used[f"{name}.weight"].T + used[f"{name}.bias"])
            xs.append(zs[-1] * cdf(zs[-1]) if name != "head" else zs[-1])
        shares = np.exp(xs[-1] - xs[-1].max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        rows = np.arange(len(targets))
        losses.append(float(-np.log(shares[rows, targets]).mean()))
        shares[rows, targets] -= 1
        g = shares / len(targets)
        rate = RATE * min(1.0, (step + 1) / 5)
        for number in (2, 1, 0):
            if number < 2:
                z = zs[number]
                g = g * (cdf(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi))
            name, back = layers[number], g @ used[f"{layers[number]}.weight"]
            w[f"{name}.weight"] = w[f"{name}.weight"] - rate * g.T @ xs[number]
            w[f"{name}.bias"] = w[f"{name}.bias"] - rate * g.sum(axis=0)
            g = back
    return losses, w


QUANTIZED = {"layers.0.weight", "layers.1.weight"}


def aware_run(rank: int, world: int, coordinator: str, frameworks: list[Document], document: Document) -> Any:
    """For each framework: the losses of a run, and its weights."""
    from capstan_runtime.deepspeed_trainer import engine as deepspeed_engine

    answers = []
    for framework in frameworks:
        compression = {"quantize": document}
        context = context_of(
            framework, MLP, rank, world, coordinator, optimizer=SGD, gradient_clip=None, compression=compression
        )
        engine: Any = make_engine(context)
        losses = [loss for loss, _ in train(engine, context, 0, STEPS)]
        kept = WholeTensors(engine.export_state())
        answers.append((losses, {name: kept.read(name).copy() for name in kept.names()}))
        deepspeed_engine.World = lambda *_, joined=engine._world: joined  # type: ignore[assignment,misc]
    engine.close()
    return answers


@pytest.mark.parametrize("frameworks", [[FLAX], [deepspeed(stage) for stage in range(3)]], ids=["flax", "deepspeed"])
@pytest.mark.parametrize("bits", [8, 4])
def test_passes_see_integers_and_their_gradients_move_the_weights_straight_through(
    frameworks: list[Document], bits: int
) -> None:
    document = {"bits": bits, "aware": {"beginStep": BEGIN}}
    losses, w = by_reference(document)
    without, _ = by_reference({"aware": {"beginStep": STEPS}})
    assert losses[:BEGIN] == without[:BEGIN]
    assert max(abs(one - other) for one, other in zip(losses, without, strict=True)) > 1e-4, "it makes a difference"
    (answers,) = run_ranks(aware_run, 1, frameworks, document)
    for found, kept in answers:
        assert found == pytest.approx(losses, rel=1e-5)
        for name, expected in w.items():
            np.testing.assert_allclose(kept[f"params/{name}"], expected, atol=1e-5)


def ended_run(
    rank: int, world: int, coordinator: str, frameworks: list[Document], model: Document, more: Document
) -> list[tuple[list[float], dict[str, Array], dict[str, Array]]]:
    """For each framework: the loss before the weights become integers, after it, and once they were read into an engine
    that was elsewhere; and all that was saved, the second time by that engine."""
    from capstan_runtime.deepspeed_trainer import engine as deepspeed_engine

    answers = []
    for framework in frameworks:
        context = context_of(framework, model, rank, world, coordinator, virtual_ranks=4, **more)
        engine: Any = make_engine(context)
        train(engine, context, 0, 3)
        elsewhere = gather(engine)
        train(engine, context, 3, 6)
        losses = [loss_of(engine, context)]
        engine.quantize()
        losses.append(loss_of(engine, context))
        saved = gather(engine)
        engine.import_state(Saved(elsewhere))
        assert loss_of(engine, context) not in losses
        engine.import_state(Saved(saved))
        losses.append(loss_of(engine, context))
        answers.append((losses, saved, gather(engine)))
        deepspeed_engine.World = lambda *_, joined=engine._world: joined  # type: ignore[assignment,misc]
    engine.close()
    return answers


ENDS: dict[str, tuple[Document, Document, tuple[int, ...]]] = {
    "a perceptron that was aware": (MLP, {"compression": EIGHT_FROM_4}, (0, 1, 2)),
    "a convolutional network, four bits at the end": (CNN, {"compression": FOUR_AT_THE_END}, (1,)),
    "experts": (EXPERTS, {"compression": {"quantize": {}}}, (0, 1)),
    "an average, of running statistics too": (
        WITH_STATISTICS,
        # Adam would make steps of the biases before a normalisation, whose gradients are rounding.
        {"compression": {"quantize": {}}, "training": {"ema": {"decay": 0.5}}, "optimizer": SGD},
        (0, 1, 2),
    ),
}
"""Model, options, and ZeRO stages."""
QUICK = list(ENDS)[:2]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.full) for name in ENDS]
)
def ended(request: pytest.FixtureRequest) -> tuple[Document, Document, dict[str, Any]]:
    """Model and options, and what each framework and ZeRO stage gave, on two ranks."""
    model, more, stages = ENDS[request.param]
    found: dict[str, Any] = {}
    by_torch = [f"zero{stage}" for stage in stages], [deepspeed(stage) for stage in stages]
    for names, frameworks in ((["flax"], [FLAX]), by_torch):
        first, second = run_ranks(ended_run, 2, frameworks, model, more)
        for name, one, other in zip(names, first, second, strict=True):
            assert one[0] == other[0], "of all ranks"
            found[name] = one
    return model, more, found


def test_what_a_run_ends_with_is_what_it_was_evaluated_as_and_every_stage_and_framework_ends_alike(
    ended: tuple[Document, Document, dict[str, Any]],
) -> None:
    _, more, found = ended
    is_aware = "aware" in more["compression"]["quantize"]
    for name, ((before, after, again), saved, saved_again) in found.items():
        assert again == after, name
        assert (before == after) == is_aware, "who was aware was evaluated so before"
        assert after == pytest.approx(before, rel=0.05), "it is the same model"
        assert saved.keys() == saved_again.keys()
        for tensor, value in saved.items():
            np.testing.assert_array_equal(saved_again[tensor], value, err_msg=f"{name}, {tensor}")
        assert after == pytest.approx(found["flax"][0][1], rel=1e-4), name
        for tensor, value in found["flax"][1].items():
            if value.dtype == np.float32:
                np.testing.assert_allclose(saved[tensor], value, rtol=1e-4, atol=1e-5, err_msg=f"{name}, {tensor}")
            else:  # who lies between two integers is rounded to either
                assert (saved[tensor] != value).mean() < 0.01, f"{name}, {tensor}"


def test_a_model_of_integers_is_small_and_both_predictors_serve_it_as_what_it_stands_for(
    ended: tuple[Document, Document, dict[str, Any]],
) -> None:
    model, more, found = ended
    bits: Bits = more["compression"]["quantize"].get("bits", 8)
    context = context_of(FLAX, model)
    table = parameter_table(context.run.model, context.data)
    saved = found["zero1"][1]
    assert sum(array.nbytes for array in saved.values()) == weight_bytes(table, bits) + 8, "and the step"
    whole = {}
    for spec in table:
        name = f"params/{spec.name}"
        assert (integers_name(spec.name) in saved) == (name not in saved) == is_quantized(spec)
        whole[name] = saved[name] if name in saved else by_hand(saved, spec.name, spec.shape)
    signature = signature_of(model, context.data.input_shape, context.data.outputs)
    batch = batch_of(context, JUDGED)
    logits = {}
    for framework in FRAMEWORKS:
        of_integers, of_floats = (build(framework, signature, Saved(state)) for state in (saved, whole))
        logits[framework], expected = (served(each, batch.inputs) for each in (of_integers, of_floats))
        np.testing.assert_array_equal(logits[framework], expected)
    largest = np.abs(logits["torch"]).max()
    np.testing.assert_allclose(logits["flax"], logits["torch"], rtol=1e-5, atol=1e-5 * largest)


def by_hand(saved: dict[str, Array], parameter: str, shape: tuple[int, ...]) -> Array:
    """Integers times scales, one channel after the other."""
    integers, scales = saved[integers_name(parameter)], saved[scales_name(parameter)]
    rows = integers.reshape(scales.size, -1)
    if integers.dtype == np.uint8:
        halves = [
            [half - 16 if half > 7 else half for byte in row for half in (byte % 16, byte // 16)]
            for row in rows.tolist()
        ]
        rows = np.array(halves)[:, : math.prod(shape) // scales.size]
    return np.stack([row.astype(np.float32) * scale for row, scale in zip(rows, scales.flat, strict=True)]).reshape(
        shape
    )


def served(predictor: Any, inputs: Array) -> Array:
    flat = inputs.reshape(-1, *inputs.shape[2:])
    if predictor.signature.kind == "tokens":
        predictor.warm()
        return np.asarray(predictor.prefill(0, flat[0][:-1]))
    predictor.warm((len(flat),))
    return np.asarray(predictor.logits(flat))


def test_a_checkpoint_whose_integers_are_of_another_model_is_refused() -> None:
    signature = signature_of(MLP)
    context = context_of(FLAX, MLP)
    state: dict[str, Array] = {}
    for spec in parameter_table(context.run.model, context.data):
        value = initial_parameter(spec, 7)
        state[f"params/{spec.name}"] = value
    integers, scales = as_integers(state.pop("params/layers.0.weight")[:, :-1], 1, 8)
    state |= {integers_name("layers.0.weight"): integers, scales_name("layers.0.weight"): scales}
    for framework in FRAMEWORKS:
        with pytest.raises(ConfigError, match=r"params/layers\.0\.weight has integers of shape \(24, 63\)"):
            build(framework, signature, Saved(state))


def test_a_run_of_which_no_step_would_see_integers_is_refused() -> None:
    compression = Compression.parse(EIGHT_FROM_4)
    training = context_of(FLAX, MLP).run.training
    epochs = training.model_copy(update={"steps": None, "epochs": 2})
    require_aware_steps(None, epochs, 1)
    require_aware_steps(Compression.parse(FOUR_AT_THE_END), epochs, 1)
    require_aware_steps(compression, epochs, BEGIN + 1)
    with pytest.raises(
        ConfigError,
        match=r"^spec\.compression\.quantize\.aware: begins after step 4, and spec\.training\.epochs 2, 4 steps, has "
        r"none after it; lower beginStep$",
    ):
        require_aware_steps(compression, epochs, BEGIN)
