"""What is kept in the host's memory makes the same losses, weights and checkpoints to the last bit."""

from typing import Any

import numpy as np
import pytest

from tests.numerics.test_state import bits, gather
from tests.support.engines import ADAMW, SGD, TRANSFORMER, Saved, context_of, deepspeed, make_engine, train
from tests.support.ranks import run_ranks

Document = dict[str, Any]
CPU: Document = {"cpu": {}}


def offloaded(stage: int, *parts: str) -> Document:
    return {"deepspeed": {"zeroStage": stage, "offload": dict.fromkeys(parts, CPU)}}


def lives(rank: int, world: int, coordinator: str, frameworks: list[Document], options: Document) -> Any:
    """For each framework: a curve and all state after it, then the same again from the state in its middle."""
    from capstan_runtime.deepspeed_trainer import engine as deepspeed_engine

    answers = []
    for framework in frameworks:
        context = context_of(framework, TRANSFORMER, rank, world, coordinator, **options)
        engine: Any = make_engine(context)
        curve = train(engine, context, 0, 3)
        middle = gather(engine)
        curve += train(engine, context, 3, 6)
        end = gather(engine)
        engine.import_state(Saved(middle))
        again = curve[:3] + train(engine, context, 3, 6)
        answers += [(curve, bits(middle), bits(end)), (again, bits(middle), bits(gather(engine)))]
        # A process joins one world only, so the engines share it.
        deepspeed_engine.World = lambda *_, joined=engine._world: joined  # type: ignore[assignment,misc]
    engine.close()
    return answers


CASES: dict[str, tuple[list[Document], Document]] = {
    "zero1": ([deepspeed(1), offloaded(1, "optimizer")], {"optimizer": ADAMW}),
    "zero2": ([deepspeed(2), offloaded(2, "optimizer")], {"optimizer": SGD, "gradient_clip": None}),
    "zero3": (
        [
            deepspeed(3),
            *(offloaded(3, *parts) for parts in (["optimizer"], ["parameters"], ["optimizer", "parameters"])),
        ],
        {"optimizer": ADAMW},
    ),
    "zero3, fp16": ([deepspeed(3), offloaded(3, "optimizer", "parameters")], {"precision": "fp16"}),
}


@pytest.mark.parametrize(("frameworks", "options"), CASES.values(), ids=CASES)
def test_an_offloaded_run_is_the_same_to_the_last_bit_and_resumes_as_itself(
    frameworks: list[Document], options: Document
) -> None:
    for (curve, *states), *others in run_ranks(lives, 2, frameworks, options):
        assert len(set(curve)) == 6
        for found_curve, *found_states in others:
            assert found_states == states
            assert [loss for loss, _ in found_curve] == [loss for loss, _ in curve]
            # Their squares are summed in another order.
            np.testing.assert_allclose(found_curve, curve, rtol=1e-6)
