"""A decoder over the stages of a pipeline: the run, the evaluation and the checkpoints of a rank that has all of it."""

import time
from typing import Any

import numpy as np
import pytest

from capstan_runtime.errors import PeerLost
from tests.numerics.test_state import Tensors, bits, gather
from tests.support.engines import FLAX, Saved, batch_of, context_of, deepspeed, make_engine
from tests.support.ranks import run_ranks
from tests.support.spreading import spread

Document = dict[str, Any]
MIDDLE, STEPS = 3, 7
OPTIONS: Document = {"virtual_ranks": 4, "batch": 16}
ALONE: Document = {}


def decoder(**components: Any) -> Document:
    return {"transformer": {"layers": 4, "dim": 32, "heads": 4, "kvHeads": 2, **components}}


def curve(engine: Any, context: Any, first: int, last: int) -> list[dict[str, float]]:
    """All that is said of each step."""
    return [dict(engine.train_step(batch_of(context, step), 3e-3).fetch()) for step in range(first, last)]


def life(rank: int, world: int, coordinator: str, framework: Document, model: Document, options: Document) -> Any:
    """A curve, what is exported in its middle, an evaluation, and the number of parameters; what is exported right
    after the middle was imported again, and the curve from there."""
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine: Any = make_engine(context)
    said = curve(engine, context, 0, MIDDLE)
    saved = gather(engine)
    said += curve(engine, context, MIDDLE, STEPS)
    sums = engine.evaluate([batch_of(context, 0)])
    engine.import_state(Saved(saved))
    again = gather(engine)
    onwards = curve(engine, context, MIDDLE, STEPS)
    engine.close()
    return said, saved, (sums.loss, sums.correct, sums.count), engine.parameters, bits(again), onwards


def require_same_run(alone: Any, ranks: list[Any], tolerance: float) -> None:
    said, saved, sums, parameters, *_ = alone
    assert said[-1]["loss"] < said[0]["loss"] - 0.03
    for each in ranks:
        assert each[0] == ranks[0][0], "loss, norm and figures are global"
        assert each[3] == parameters
        assert each[4] == bits(each[1])
        assert each[5] == each[0][MIDDLE:], "in the same layout, to the last bit"
        assert {name: tensor.shape for name, tensor in each[1].items()} == {
            name: tensor.shape for name, tensor in saved.items()
        }
    for mine, theirs in zip(ranks[0][0], said, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)
    for name, tensor in saved.items():
        np.testing.assert_allclose(ranks[0][1][name], tensor, rtol=1e-3, atol=10 * tolerance, err_msg=name)
    np.testing.assert_allclose(np.sum([each[2] for each in ranks], axis=0), sums, rtol=tolerance)


CHANCE = decoder(
    experts={"count": 4, "topK": 2, "jitter": 0.01},
    dropout={"rate": 0.1},
    tokenDropout={"keep": 0.5},
    stochasticDepth={"rate": 0.2},
)
CLIPPED_BY_UNIT: Document = {"gradient_clip": None, "training": {"adaptiveClip": {}, "centralizeGradients": {}}}
AVERAGED: Document = {"training": {"ema": {}, "lookahead": {"steps": 2}, "activationCheckpointing": {"policy": "dots"}}}
OFFLOADED: Document = {"deepspeed": {"zeroStage": 1, "offload": {"optimizer": {"cpu": {}}}}}
TWO, FOUR = spread({"pipeline": 2}), spread({"pipeline": 4})
CASES: dict[str, tuple[Document, Document, Document, Document, int]] = {
    "what is left to chance, and what experts add to the loss": (deepspeed(1), CHANCE, OPTIONS, TWO, 2),
}
MORE: dict[str, tuple[Document, Document, Document, Document, int]] = {
    **{
        f"zero{stage}, {degrees} of {world} ranks": (deepspeed(stage), decoder(), OPTIONS, spread(degrees), world)
        for stage in range(3)
        for degrees, world in (
            ({"pipeline": 2}, 4),
            ({"pipeline": 4}, 4),
            ({"pipeline": 2, "tensor": 2}, 4),
            ({"pipeline": 2, "sequence": 2}, 4),
        )
    },
    **{
        f"zero{stage}, tied, {degrees} of {world} ranks": (
            deepspeed(stage),
            decoder(tied=True),
            OPTIONS,
            spread(degrees),
            world,
        )
        for stage in range(2)
        for degrees, world in (({"pipeline": 2}, 4), ({"pipeline": 4}, 4), ({"pipeline": 2, "tensor": 2}, 4))
    },
    "tied, clipping by unit": (deepspeed(0), decoder(tied=True), OPTIONS | CLIPPED_BY_UNIT, TWO, 2),
    "tied, state in the host's memory": (OFFLOADED, decoder(tied=True), OPTIONS, TWO, 2),
    "tied, fp16": (deepspeed(1), decoder(tied=True), OPTIONS | {"precision": "fp16"}, TWO, 2),
    "NovoGrad": (deepspeed(0), decoder(), OPTIONS | {"optimizer": {"novograd": {"learningRate": 3e-3}}}, TWO, 2),
    "clipping by unit": (deepspeed(0), decoder(), OPTIONS | CLIPPED_BY_UNIT, TWO, 2),
    "averages, slow weights and some activations": (deepspeed(2), decoder(), OPTIONS | AVERAGED, TWO, 2),
    "fp16": (deepspeed(2), decoder(), OPTIONS | {"precision": "fp16"}, TWO, 2),
    "bf16": (deepspeed(1), decoder(), OPTIONS | {"precision": "bf16"}, TWO, 2),
    "reversible layers": (deepspeed(1), decoder(reversible={}, experts={"count": 4}), OPTIONS, TWO, 2),
    "two views of each sample": (
        deepspeed(1),
        decoder(dropout={"rate": 0.1}),
        OPTIONS | {"regularization": {"consistency": {"weight": 1.0}}},
        TWO,
        2,
    ),
    "focal loss": (deepspeed(1), decoder(), OPTIONS | {"loss": {"focal": {}}}, TWO, 2),
    "state in the host's memory": (OFFLOADED, decoder(), OPTIONS, TWO, 2),
    "fewer micro-steps than stages": (deepspeed(1), decoder(), OPTIONS | {"virtual_ranks": 1}, FOUR, 4),
    "more micro-steps than stages": (deepspeed(2), decoder(), OPTIONS | {"virtual_ranks": 8}, FOUR, 4),
}


@pytest.mark.parametrize(
    ("framework", "model", "options", "layout", "world"),
    [
        *(pytest.param(*case, id=name) for name, case in CASES.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.full) for name, case in MORE.items()),
    ],
)
def test_stages_train_what_one_rank_trains(
    framework: Document, model: Document, options: Document, layout: Document, world: int
) -> None:
    (alone,) = run_ranks(life, 1, framework, model, options)
    ranks = run_ranks(life, world, framework, model, options | layout)
    require_same_run(alone, ranks, 1e-5 if options.get("precision", "fp32") == "fp32" else 2e-3)


def onwards(rank: int, world: int, coordinator: str, framework: Document, options: Document, saved: Tensors) -> Any:
    """What is exported right after importing `saved`, and the losses from there."""
    context = context_of(framework, decoder(), rank, world, coordinator, **options)
    engine = make_engine(context)
    engine.import_state(Saved(saved))
    state = bits(gather(engine))
    said = curve(engine, context, MIDDLE, STEPS)
    engine.close()
    return state, [step["loss"] for step in said]


@pytest.mark.full
def test_any_layout_and_framework_takes_a_pipeline_over_and_gives_it_back() -> None:
    said, saved, *_ = run_ranks(life, 2, deepspeed(1), decoder(), OPTIONS | TWO)[0]
    for framework, layout, world in (
        (deepspeed(2), FOUR, 4),
        (deepspeed(0), TWO, 4),
        (deepspeed(3), ALONE, 2),
        (FLAX, ALONE, 1),
    ):
        state, found = run_ranks(onwards, world, framework, OPTIONS | layout, saved)[0]
        assert state == bits(saved)
        np.testing.assert_allclose(found, [step["loss"] for step in said[MIDDLE:]], rtol=1e-4)


def poisoned(rank: int, world: int, coordinator: str, stage: int, victim: int) -> Any:
    """Whether a step that was poisoned in one stage left weights and moments as they were, what is said of it, and the
    step after it."""
    context = context_of(deepspeed(stage), decoder(), rank, world, coordinator, non_finite="ignore", **OPTIONS, **TWO)
    engine = make_engine(context)
    curve(engine, context, 0, 2)
    before = gather(engine)
    if rank == victim:
        engine.poison_next_step()
    (said,) = curve(engine, context, 2, 3)
    after = gather(engine)
    (next_said,) = curve(engine, context, 3, 4)
    engine.close()
    changed = {name for name, each in bits(after).items() if each != bits(before)[name]}
    return changed, said, next_said


@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        pytest.param(1, 0, id="zero1, the first stage"),
        *(
            pytest.param(stage, victim, id=f"zero{stage}, stage {victim}", marks=pytest.mark.full)
            for stage in (0, 2)
            for victim in (0, 1)
        ),
    ],
)
def test_all_stages_drop_an_update_that_one_ruined(stage: int, victim: int) -> None:
    for changed, said, next_said in run_ranks(poisoned, 2, stage, victim):
        assert changed == {"optimizer/step"}
        assert np.isnan(said["loss"])
        assert not np.isfinite(said["gradient_norm"])
        assert np.isfinite([next_said["loss"], next_said["gradient_norm"]]).all()


def busy(rank: int, world: int, coordinator: str, pause: float) -> float:
    """Busy seconds of a step in which the first stage takes its time in each forward pass."""
    context = context_of(deepspeed(1), decoder(), rank, world, coordinator, **OPTIONS, **TWO)
    engine: Any = make_engine(context)
    curve(engine, context, 0, 1)
    if rank == 0:
        engine._engine.module.register_forward_pre_hook(lambda *_: time.sleep(pause))
    before: float = engine.busy_seconds()
    curve(engine, context, 1, 2)
    found = engine.busy_seconds() - before
    engine.close()
    return found


def test_a_stage_is_not_busy_while_it_waits_for_another() -> None:
    pause, micro_steps = 0.5, 4
    first, second = run_ranks(busy, 2, pause)
    assert first > micro_steps * pause
    assert second < first / 2


def wait_in_vain(rank: int, world: int, coordinator: str, patience_seconds: float) -> float:
    """How long the second stage waits for the first, which is there but does nothing."""
    context = context_of(
        deepspeed(1), decoder(), rank, world, coordinator, patience_seconds=patience_seconds, **OPTIONS, **TWO
    )
    engine = make_engine(context)
    curve(engine, context, 0, 1)
    began = time.monotonic()
    if rank == 0:
        time.sleep(2 * patience_seconds)
    else:
        with pytest.raises(PeerLost):
            curve(engine, context, 1, 2)
    return time.monotonic() - began


@pytest.mark.full
def test_a_stage_does_not_wait_for_ever() -> None:
    patience_seconds = 20.0
    _, waited = run_ranks(wait_in_vain, 2, patience_seconds)
    assert patience_seconds - 1.0 < waited < 1.5 * patience_seconds
