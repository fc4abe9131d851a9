"""What an engine exports is all there is to its state: at every ZeRO stage and world size, and across frameworks."""

from typing import Any

import numpy as np
import pytest

from capstan_runtime.errors import ConfigError
from capstan_runtime.model_spec import STEP_NAME, moments, parameter_table, tensor_name
from tests.support.engines import (
    ADAMW,
    CNN,
    FLAX,
    SGD,
    TIED,
    TRANSFORMER,
    Saved,
    WholeTensors,
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.ranks import run_ranks

Document = dict[str, Any]
FRAMEWORKS = {"flax": FLAX, **{f"zero{stage}": deepspeed(stage) for stage in range(4)}}


def gather(engine: Any) -> WholeTensors:
    """Everything all ranks export, on every rank. Each is tiled exactly once, or WholeTensors complains."""
    import pickle

    parts = list(engine.export_state())
    chunks = [pickle.dumps(part) for part in parts]
    everyone = engine.exchange(str(len(chunks)).encode())
    most = max(int(count) for count in everyone)
    gathered = []
    for index in range(most):
        answers = engine.exchange(chunks[index] if index < len(chunks) else b"")
        gathered += [pickle.loads(answer) for answer in answers if answer]
    return WholeTensors(gathered)


def run_and_save(
    rank: int, world: int, coordinator: str, framework: Document, model: Document, options: Document
) -> Any:
    """Three steps, everything exported after them, and the curve of the next three."""
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine = make_engine(context)
    train(engine, context, 0, 3)
    saved = gather(engine)
    curve = train(engine, context, 3, 6)
    engine.close()
    return {name: saved.read(name) for name in saved.names()}, curve


def carry_on(
    rank: int,
    world: int,
    coordinator: str,
    framework: Document,
    model: Document,
    options: Document,
    saved: dict[str, np.ndarray],
) -> Any:
    """The curve of the steps 3 to 6 of an engine that starts from `saved`, and goes back to it once."""
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine = make_engine(context)
    curves = []
    for _ in range(2):
        engine.import_state(Saved(saved))
        curves.append(train(engine, context, 3, 6))
    engine.close()
    assert curves[0] == curves[1]
    return curves[0]


CNN_ADAMW: tuple[Document, Document] = (CNN, {"optimizer": ADAMW})
TIED_SGD: tuple[Document, Document] = (TIED, {"optimizer": SGD, "gradient_clip": None})
RESUMED = {
    **{f"{name}, cnn, AdamW": (framework, *CNN_ADAMW) for name, framework in FRAMEWORKS.items()},
    **{f"{name}, tied transformer, SGD": (FRAMEWORKS[name], *TIED_SGD) for name in ("flax", "zero1", "zero3")},
}


@pytest.mark.parametrize(("framework", "model", "options"), RESUMED.values(), ids=RESUMED)
def test_two_processes_resume_to_the_last_bit(framework: Document, model: Document, options: Document) -> None:
    results = run_ranks(run_and_save, 2, framework, model, options)
    context = context_of(framework, model, **options)
    kinds = (None, *moments(context.run.optimizer))
    table = parameter_table(context.run.model, context.data)
    expected = {tensor_name(spec.name, kind): spec.shape for spec in table for kind in kinds} | {STEP_NAME: ()}
    saved, onwards = results[0]
    assert {name: array.shape for name, array in saved.items()} == expected
    assert {str(array.dtype) for name, array in saved.items() if name != STEP_NAME} == {"float32"}
    assert saved[STEP_NAME] == 3
    assert len(set(onwards)) == 3
    assert results[1][1] == onwards, "loss and norm are global: every rank reports the same"
    assert run_ranks(carry_on, 2, framework, model, options, saved) == [onwards, onwards]


MOVES = {
    "zero1 x 2 to flax x 1": (deepspeed(1), 2, FLAX, 1),
    "flax x 2 to zero3 x 4": (FLAX, 2, deepspeed(3), 4),
    "zero3 x 4 to zero2 x 2": (deepspeed(3), 4, deepspeed(2), 2),
    "zero0 x 1 to zero1 x 2": (deepspeed(0), 1, deepspeed(1), 2),
    "flax x 2 to flax x 1": (FLAX, 2, FLAX, 1),
}


@pytest.mark.parametrize(("first", "first_world", "second", "second_world"), MOVES.values(), ids=MOVES)
def test_a_run_goes_on_in_another_framework_and_world(
    first: Document, first_world: int, second: Document, second_world: int
) -> None:
    saved, onwards = run_ranks(run_and_save, first_world, first, TRANSFORMER, {})[0]
    curve = run_ranks(carry_on, second_world, second, TRANSFORMER, {}, saved)[0]
    np.testing.assert_allclose(curve, onwards, rtol=1e-4)


def untouched(rank: int, world: int, coordinator: str, framework: Document) -> Any:
    context = context_of(framework, TRANSFORMER, rank, world, coordinator)
    engine = make_engine(context)
    saved = gather(engine)
    engine.close()
    return {name: saved.read(name) for name in saved.names()}


def test_before_the_first_step_all_export_the_same_bits() -> None:
    states = [run_ranks(untouched, 2, framework)[0] for framework in (FLAX, deepspeed(1), deepspeed(3))]
    reference = states[0]
    assert all((array == 0).all() for name, array in reference.items() if name.startswith("optimizer/"))
    for state in states[1:]:
        assert {name: array.tobytes() for name, array in state.items()} == {
            name: array.tobytes() for name, array in reference.items()
        }


def refusal(rank: int, world: int, coordinator: str, framework: Document, saved: dict[str, np.ndarray]) -> str:
    engine = make_engine(context_of(framework, TRANSFORMER, rank, world, coordinator))
    with pytest.raises(ConfigError) as caught:
        engine.import_state(Saved(saved))
    return str(caught.value)


@pytest.mark.parametrize("framework", [FLAX, deepspeed(1)], ids=["flax", "deepspeed"])
def test_a_checkpoint_of_another_model_is_refused(framework: Document) -> None:
    saved = {STEP_NAME: np.asarray(3, np.int64), "params/embed.weight": np.zeros((64, 16), np.float32)}
    (message,) = run_ranks(refusal, 1, framework, saved)
    assert message.startswith("spec.model")
