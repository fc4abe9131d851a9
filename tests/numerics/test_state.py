"""What an engine exports is all there is to its state: at every ZeRO stage and world size, and across frameworks."""

import pickle
from typing import Any

import numpy as np
import pytest

from capstan_runtime.errors import ConfigError, CorruptCheckpoint
from capstan_runtime.model_spec import STEP_NAME, parameter_table, tensor_name
from capstan_runtime.parallel.star import MOST_BYTES
from capstan_runtime.updates import state_kinds
from tests.support.engines import (
    ADAMW,
    CNN,
    FLAX,
    MLP,
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
Tensors = dict[str, np.ndarray]
FRAMEWORKS = {"flax": FLAX, **{f"zero{stage}": deepspeed(stage) for stage in range(4)}}


def gather(engine: Any) -> Tensors:
    """Everything all ranks export, on every rank. Each is tiled exactly once, or WholeTensors complains."""
    # Pickled at once: what is exported may be a view that the next step changes.
    everyone = exchange_all(engine, pickle.dumps(list(engine.export_state())))
    whole = WholeTensors(part for parts in everyone for part in pickle.loads(parts))
    return {name: whole.read(name).copy() for name in whole.names()}


def exchange_all(engine: Any, payload: bytes) -> list[bytes]:
    """Every rank's payload, of any size, in messages as large as an engine takes."""
    sizes = [int(size) for size in engine.exchange(str(len(payload)).encode())]
    rounds = [engine.exchange(payload[start : start + MOST_BYTES]) for start in range(0, max(sizes), MOST_BYTES)]
    return [b"".join(pieces) for pieces in zip(*rounds, strict=True)]


def bits(tensors: Tensors) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in tensors.items()}


def run_and_save(
    rank: int, world: int, coordinator: str, framework: Document, model: Document, options: Document, steps: int
) -> Any:
    """Three steps, everything exported after them, the curve of `steps` more, and everything exported after those."""
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine = make_engine(context)
    train(engine, context, 0, 3)
    saved = gather(engine)
    curve = train(engine, context, 3, 3 + steps)
    end = gather(engine)
    engine.close()
    return saved, curve, end


def carry_on(
    rank: int,
    world: int,
    coordinator: str,
    framework: Document,
    model: Document,
    options: Document,
    steps: int,
    saved: Tensors,
) -> Any:
    """The curve of `steps` steps of an engine that starts from `saved`, and everything exported after them. It goes
    back to `saved` once."""
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine = make_engine(context)
    engine.import_state(Saved(saved))
    first = train(engine, context, 3, 5)
    engine.import_state(Saved(saved))
    curve = train(engine, context, 3, 3 + steps)
    end = gather(engine)
    engine.close()
    assert first == curve[:2]
    return curve, end


LONG, SHORT = 200, 5
WITH_ADAMW: Document = {"optimizer": ADAMW}
WITH_SGD: Document = {"optimizer": SGD, "gradient_clip": None}
WRAPPED: Document = {"optimizer": {"adan": {"learningRate": 3e-3}}, "training": {"lookahead": {"steps": 2}, "ema": {}}}
OPTIMIZERS: dict[str, Document] = {
    "Sophia": {"sophia": {"learningRate": 3e-3, "hessianEverySteps": 2}},
    "Adan": {"adan": {"learningRate": 3e-3}},
    "Lion": {"lion": {"learningRate": 1e-3}},
    "AdaBelief": {"adabelief": {"learningRate": 3e-3}},
    "RAdam": {"radam": {"learningRate": 3e-3}},
    "diffGrad": {"diffgrad": {"learningRate": 3e-3}},
    "Yogi": {"yogi": {"learningRate": 3e-3}},
    "NovoGrad": {"novograd": {"learningRate": 3e-3}},
}
STAGES = {"NovoGrad": (0,), "Sophia": (0, 1, 2)}
"""Those that can be had with an optimizer, where it is not all of them."""
RESUMED = {
    "flax, mlp, AdamW": (FLAX, MLP, WITH_ADAMW, LONG),
    "zero1, mlp, AdamW": (deepspeed(1), MLP, WITH_ADAMW, LONG),
    "zero0, cnn, AdamW": (deepspeed(0), CNN, WITH_ADAMW, SHORT),
    "zero2, mlp, Adan with slow weights and an average": (deepspeed(2), MLP, WRAPPED, SHORT),
    "flax, tied transformer, SGD": (FLAX, TIED, WITH_SGD, SHORT),
    "zero3, tied transformer, SGD": (deepspeed(3), TIED, WITH_SGD, SHORT),
}


EVERY = {
    **{f"zero{stage}, cnn, AdamW": (deepspeed(stage), CNN, WITH_ADAMW, SHORT) for stage in (2, 3)},
    **{
        f"flax, tied transformer, {name}": (FLAX, TIED, {"optimizer": each}, SHORT) for name, each in OPTIMIZERS.items()
    },
    **{
        f"zero{stage}, tied transformer, {name}": (deepspeed(stage), TIED, {"optimizer": each}, SHORT)
        for name, each in OPTIMIZERS.items()
        for stage in STAGES.get(name, range(4))
    },
}
"""Every optimizer at every stage, which takes minutes; and stages with a model that others show with another."""


@pytest.mark.parametrize(
    ("framework", "model", "options", "steps"),
    [
        *(pytest.param(*case, id=name) for name, case in RESUMED.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.full) for name, case in EVERY.items()),
    ],
)
def test_two_processes_resume_to_the_last_bit(
    framework: Document, model: Document, options: Document, steps: int
) -> None:
    results = run_ranks(run_and_save, 2, framework, model, options, steps)
    context = context_of(framework, model, **options)
    table = parameter_table(context.run.model, context.data)
    expected = {tensor_name(spec.name): spec.shape for spec in table} | {STEP_NAME: ()}
    for kind in state_kinds(context.run.optimizer, context.run.training):
        expected |= {tensor_name(spec.name, kind.name): () if kind.per_parameter else spec.shape for spec in table}
    saved, onwards, end = results[0]
    assert {name: array.shape for name, array in saved.items()} == expected
    assert {str(array.dtype) for name, array in saved.items() if name != STEP_NAME} == {"float32"}
    assert saved[STEP_NAME] == 3
    assert len(set(onwards)) == steps
    assert results[1][1] == onwards, "loss and norm are global: every rank reports the same"
    for curve, state in run_ranks(carry_on, 2, framework, model, options, steps, saved):
        assert curve == onwards
        assert bits(state) == bits(end)


ELASTIC: Document = {"batch": 12, "virtual_ranks": 6}


@pytest.fixture(scope="module")
def saved_by_flax() -> tuple[Tensors, list[tuple[float, float]]]:
    """State and onward curve of one process."""
    ((saved, onwards, _),) = run_ranks(run_and_save, 1, FLAX, MLP, ELASTIC, SHORT)
    return saved, onwards


class GoesBad(Saved):
    """A checkpoint of another state, found to be corrupt after some of it was taken."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__({name: np.full_like(array, 7) for name, array in tensors.items()})
        self._left = 5

    def read(self, name: str) -> np.ndarray:
        self._count(name)
        return super().read(name)

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        self._count(name)
        return super().read_range(name, start, stop)

    def _count(self, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            raise CorruptCheckpoint(f"{name} is not what was saved")


def take_over(rank: int, world: int, coordinator: str, frameworks: list[Document], saved: Tensors) -> Any:
    """For each framework: what is exported right after importing `saved` over a checkpoint that went bad, and the curve
    from there."""
    from capstan_runtime.deepspeed_trainer import engine as deepspeed_engine

    answers = []
    for framework in frameworks:
        context = context_of(framework, MLP, rank, world, coordinator, **ELASTIC)
        engine: Any = make_engine(context)
        if rank == 0:  # alone: importing waits for nobody
            with pytest.raises(CorruptCheckpoint):
                engine.import_state(GoesBad(saved))
        engine.import_state(Saved(saved))
        answers.append((gather(engine), train(engine, context, 3, 3 + SHORT)))
        # A process joins one world only, so the stages share it.
        deepspeed_engine.World = lambda *_, joined=engine._world: joined  # type: ignore[assignment,misc]
    engine.close()
    return answers


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.full), 3])
@pytest.mark.parametrize("frameworks", [["flax"], ["zero0", "zero1", "zero2", "zero3"]], ids=["flax", "deepspeed"])
def test_any_world_and_stage_takes_over_and_hands_on_the_same_bits(
    frameworks: list[str], world: int, saved_by_flax: tuple[Tensors, list[tuple[float, float]]]
) -> None:
    # Whatever takes the state in gives the same state out: so from each of these to each other nothing is lost.
    saved, onwards = saved_by_flax
    for answers in run_ranks(take_over, world, [FRAMEWORKS[name] for name in frameworks], saved):
        for name, (state, curve) in zip(frameworks, answers, strict=True):
            assert bits(state) == bits(saved), name
            np.testing.assert_allclose(curve, onwards, rtol=1e-4, err_msg=name)


MOVES = {
    "zero1 x 2 to flax x 1": (deepspeed(1), 2, FLAX, 1),
    "flax x 1 to zero3 x 4": (FLAX, 1, deepspeed(3), 4),
}


@pytest.mark.parametrize(("first", "first_world", "second", "second_world"), MOVES.values(), ids=MOVES)
def test_a_decoder_goes_on_in_another_framework_and_world(
    first: Document, first_world: int, second: Document, second_world: int
) -> None:
    options: Document = {"virtual_ranks": 8}
    saved, onwards, _ = run_ranks(run_and_save, first_world, first, TRANSFORMER, options, SHORT)[0]
    curve, _ = run_ranks(carry_on, second_world, second, TRANSFORMER, options, SHORT, saved)[0]
    np.testing.assert_allclose(curve, onwards, rtol=1e-4)


class Partial(Saved):
    """Notes how many elements are read of each tensor."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__(tensors)
        self.elements = dict.fromkeys(tensors, 0)

    def read(self, name: str) -> np.ndarray:
        self.elements[name] += self._tensors[name].size
        return super().read(name)

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        self.elements[name] += stop - start
        return super().read_range(name, start, stop)


def elements_read(rank: int, world: int, coordinator: str, framework: Document, saved: Tensors) -> Any:
    engine = make_engine(context_of(framework, MLP, rank, world, coordinator, **ELASTIC))
    source = Partial(saved)
    engine.import_state(source)
    engine.close()
    return source.elements


@pytest.mark.parametrize("stage", [1, 3])
def test_ranks_that_share_the_state_read_each_element_of_it_once(
    stage: int, saved_by_flax: tuple[Tensors, list[tuple[float, float]]]
) -> None:
    saved, _ = saved_by_flax
    ranks = run_ranks(elements_read, 3, deepspeed(stage), saved)
    for name, array in saved.items():
        read = [elements[name] for elements in ranks]
        is_whole_everywhere = name == STEP_NAME or (stage == 1 and name.startswith("params/"))
        assert sum(read) == array.size * (3 if is_whole_everywhere else 1), name


def untouched(rank: int, world: int, coordinator: str, framework: Document) -> Any:
    engine = make_engine(context_of(framework, TRANSFORMER, rank, world, coordinator))
    state = gather(engine)
    engine.close()
    return state


def test_before_the_first_step_all_export_the_same_bits() -> None:
    states = [run_ranks(untouched, 2, framework)[0] for framework in (FLAX, deepspeed(1), deepspeed(3))]
    reference = states[0]
    assert all((array == 0).all() for name, array in reference.items() if name.startswith("optimizer/"))
    assert [bits(state) for state in states[1:]] == [bits(reference)] * 2


def refusal(rank: int, world: int, coordinator: str, framework: Document, saved: Tensors) -> str:
    engine = make_engine(context_of(framework, TRANSFORMER, rank, world, coordinator))
    with pytest.raises(ConfigError) as caught:
        engine.import_state(Saved(saved))
    return str(caught.value)


@pytest.mark.parametrize("framework", [FLAX, deepspeed(1), deepspeed(3)], ids=["flax", "zero1", "zero3"])
def test_a_checkpoint_of_another_model_is_refused(framework: Document) -> None:
    saved = {STEP_NAME: np.asarray(3, np.int64), "params/embed.weight": np.zeros((64, 16), np.float32)}
    (message,) = run_ranks(refusal, 1, framework, saved)
    assert message.startswith("spec.model")
