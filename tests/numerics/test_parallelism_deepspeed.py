"""One decoder over several ranks of DeepSpeed: the curve, the evaluation and the checkpoints of a rank that has all."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstan_runtime.contract.chaos import Fault, Injection
from tests.numerics.test_state import Tensors, bits, gather
from tests.support.attempts import attempt
from tests.support.engines import FLAX, Saved, batch_of, context_of, deepspeed, make_engine, train
from tests.support.features import STEPS, FeatureRun, run_config, spec_of, write_data
from tests.support.ranks import run_ranks
from tests.support.spreading import LEFT_TO_CHANCE, spread

Document = dict[str, Any]
FIRST, LAST = 3, 8
OPTIONS: Document = {"virtual_ranks": 4, "batch": 8}

PLAIN: Document = {"transformer": {"layers": 2, "dim": 32, "heads": 4, "kvHeads": 2}}
CHANCE: Document = {"transformer": {"layers": 2, "dim": 32, "heads": 4, **LEFT_TO_CHANCE}}
EXPERTS: Document = {
    "transformer": {
        "layers": 2,
        "dim": 32,
        "heads": 4,
        "experts": {"count": 4, "topK": 2, "capacityFactor": 1.0, "jitter": 0.1},
    }
}
MODELS = {"plain": PLAIN, "chance": CHANCE, "experts": EXPERTS}

EVERYWHERE = ("embed.weight", "layers.0.attention_norm.weight", "layers.1.feed_forward_norm.weight", "norm.weight")
"""Parameters that no axis cuts."""


def life(
    rank: int,
    world: int,
    coordinator: str,
    framework: Document,
    model: Document,
    options: Document,
    others: Tensors | None,
) -> Any:
    """A curve, what is exported in its middle, an evaluation at its end; its end again, from what was exported; what is
    exported right after importing what `others` saved, and the curve from there; what it has of EVERYWHERE then."""
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine: Any = make_engine(context)
    curve = train(engine, context, 0, FIRST)
    saved = gather(engine)
    curve += train(engine, context, FIRST, LAST)
    sums = engine.evaluate([batch_of(context, 0)])
    engine.import_state(Saved(saved))
    again = train(engine, context, FIRST, LAST)
    taken_over, common = None, []
    if others is not None:
        engine.import_state(Saved(others))
        taken_over = bits(gather(engine)), train(engine, context, FIRST, LAST)
        everywhere = [engine._engine.module.get_parameter(name) for name in EVERYWHERE]
        common = [parameter.detach().numpy().tobytes() for parameter in everywhere]
    engine.close()
    return curve, saved, (sums.loss, sums.correct, sums.count), again, taken_over, common


@functools.cache
def alone(model: str, framework: str = "deepspeed", precision: str = "fp32") -> Any:
    """One rank that has all of it."""
    of = deepspeed(1) if framework == "deepspeed" else FLAX
    return run_ranks(life, 1, of, MODELS[model], OPTIONS | {"precision": precision}, None)[0]


CELLS = {
    "heads and units": (2, 1, "plain", {"tensor": 2}),
    "slices of sequences": (2, 1, "plain", {"sequence": 2}),
    "experts": (2, 1, "experts", {"expert": 2}),
}
MORE_CELLS = {
    **{f"heads and units of 2 replicas, zero{stage}": (4, stage, "plain", {"tensor": 2}) for stage in range(4)},
    **{f"slices, zero{stage}": (2, stage, "chance", {"sequence": 2}) for stage in (0, 2, 3)},
    "units of experts, zero3": (2, 3, "experts", {"tensor": 2}),
    "slices of 2 replicas": (4, 1, "chance", {"sequence": 2}),
    "heads and slices, zero0": (4, 0, "chance", {"tensor": 2, "sequence": 2}),
    "heads and slices, zero2": (4, 2, "chance", {"tensor": 2, "sequence": 2}),
    "experts twice, zero0": (4, 0, "experts", {"expert": 2}),
    "experts twice": (4, 1, "experts", {"expert": 2}),
    "experts over all, zero2": (4, 2, "experts", {"expert": 4}),
    "units of shared experts, zero0": (4, 0, "experts", {"tensor": 2, "expert": 2}),
    "units of shared experts": (4, 1, "experts", {"tensor": 2, "expert": 2}),
}


@pytest.mark.parametrize(
    ("world", "stage", "model", "degrees"),
    [
        *(pytest.param(*cell, id=name) for name, cell in CELLS.items()),
        *(pytest.param(*cell, id=name, marks=pytest.mark.full) for name, cell in MORE_CELLS.items()),
    ],
)
def test_spread_over_ranks_it_is_the_same_run_and_each_goes_on_from_the_others_checkpoint(
    world: int, stage: int, model: str, degrees: Document
) -> None:
    curve, saved, sums, *_ = alone(model)
    ranks = run_ranks(life, world, deepspeed(stage), MODELS[model], OPTIONS | spread(degrees), saved)
    for found, exported, _, again, (imported, onwards), common in ranks:
        np.testing.assert_allclose(found, curve, rtol=1e-5)
        np.testing.assert_allclose(onwards, curve[FIRST:], rtol=1e-5)
        assert again == found[FIRST:], "a resumed run is the undisturbed one, to the last bit"
        assert imported == bits(saved)
        assert common == ranks[0][-1], "what all ranks have is the same on each, to the last bit"
        assert {name: tensor.shape for name, tensor in exported.items()} == {
            name: tensor.shape for name, tensor in saved.items()
        }
        for name, tensor in exported.items():
            np.testing.assert_allclose(tensor, saved[name], rtol=1e-3, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(np.sum([sums for _, _, sums, *_ in ranks], axis=0), sums, rtol=1e-5)


@pytest.mark.full
def test_a_run_of_flax_goes_on_over_several_ranks_of_deepspeed() -> None:
    curve, saved, *_ = alone("plain", "flax")
    for *_, (imported, onwards), _ in run_ranks(life, 4, deepspeed(1), PLAIN, OPTIONS | spread({"tensor": 2}), saved):
        assert imported == bits(saved)
        np.testing.assert_allclose(onwards, curve[FIRST:], rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("degrees", [{"tensor": 2}, {"sequence": 2}], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_differs_by_its_rounding(degrees: Document, precision: str) -> None:
    curve, *_ = alone("plain", precision=precision)
    options = OPTIONS | spread(degrees) | {"precision": precision}
    for found, _, _, again, *_ in run_ranks(life, 2, deepspeed(1), PLAIN, options, None):
        np.testing.assert_allclose(found, curve, rtol=5e-3)
        assert again == found[FIRST:]


@pytest.mark.full
def test_a_job_that_is_killed_goes_on_in_another_layout(tmp_path: Path) -> None:
    write_data(tmp_path / "data")

    def run(name: str, **parallelism: int) -> FeatureRun:
        patches = [{"parallelism": parallelism, "workers": {"max": 4, "min": 2}}] if parallelism else []
        return FeatureRun(tmp_path / name, run_config(spec_of("transformer", "zero1", patches, str(tmp_path / "data"))))

    undisturbed = attempt(run("undisturbed"), 2)[0].losses()
    kill = Injection(name="oom", fault=Fault.GPU_OUT_OF_MEMORY, step=STEPS // 2 + 1)
    killed = attempt(run("killed", tensor=2), 4, more=lambda rank: {"chaos": [kill]})
    assert all((each.failure or "").startswith("GpuOutOfMemory") for each in killed)
    resumed = attempt(run("killed", sequence=2), 2, fence=2, floor_step=STEPS // 2)
    assert [each.failure for each in resumed] == [None, None]
    rest = {step: loss for step, loss in undisturbed.items() if step > STEPS // 2}
    assert resumed[0].losses() == pytest.approx(rest, rel=1e-5)
