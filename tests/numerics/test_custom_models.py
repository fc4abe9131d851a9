"""A user's own module in the trainers' loop: trained as its author would, in any world, and refused by name."""

from typing import Any

import numpy as np
import pytest
import torch

from capstan_runtime.contract.custom_model import Custom
from capstan_runtime.deepspeed_trainer.custom import build_custom, table_of
from capstan_runtime.engine import Engine
from capstan_runtime.errors import ConfigError
from capstan_runtime.flax_trainer.custom import CustomStructure
from tests.support.engines import (
    FLAX,
    IMAGES,
    TOKENS,
    Saved,
    WholeTensors,
    batch_of,
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.own_models import MARK
from tests.support.ranks import run_ranks

Document = dict[str, Any]
FRAMEWORKS = {
    "flax": FLAX,
    "deepspeed 1": deepspeed(1),
    "deepspeed 3": pytest.param(deepspeed(3), marks=pytest.mark.full),
}
OPTIMIZER = {"adamw": {"learningRate": 0.01, "weightDecay": 0.1}}


def own(name: str, **config: Any) -> Document:
    return {"custom": {"target": f"tests.support.own_models:{name}", "config": config}}


def of_framework(framework: Document, name: str, **config: Any) -> Document:
    return own(f"{'flax' if 'flax' in framework else 'torch'}_{name}", **config)


def curve(rank: int, world: int, coordinator: str, framework: Document, model: Document, steps: int) -> Any:
    """Losses and norms over `steps`, and the names of what is saved."""
    context = context_of(framework, model, rank, world, coordinator, optimizer=OPTIMIZER, virtual_ranks=4)
    engine = make_engine(context)
    losses = train(engine, context, 0, steps)
    names = sorted({part.name for part in engine.export_state()})
    engine.close()
    return losses, names


def resumed(rank: int, world: int, coordinator: str, framework: Document, model: Document) -> Any:
    """Losses of steps 0 to 3, those of 2 and 3 once more after what step 1 left was restored, what is saved, and the
    constants after they were restored as others than they are made."""
    context = context_of(framework, model, rank, world, coordinator, optimizer=OPTIMIZER, virtual_ranks=4)
    engine: Engine = make_engine(context)
    began = train(engine, context, 0, 2)
    saved = WholeTensors([_copied(part) for part in engine.export_state()])
    went_on = train(engine, context, 2, 4)
    engine.import_state(saved)
    again = train(engine, context, 2, 4)
    others = {name: np.array(saved.read(name)) for name in saved.names()}
    others["params/scale"] *= 3
    others["params/mark"] += 2
    engine.import_state(Saved(others))
    train(engine, context, 2, 3)
    found = WholeTensors([_copied(part) for part in engine.export_state()])
    constants = found.read("params/scale").tolist(), found.read("params/mark").tolist()
    return began + went_on, again, sorted(saved.names()), constants


def _copied(part: Any) -> Any:
    return type(part)(part.name, part.shape, part.start, part.data.copy())


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_dropout_and_all_else_are_the_same_in_every_world_and_after_a_resume(framework: Document) -> None:
    model = of_framework(framework, "classifier", dropout=0.5)
    ((alone, again, names, constants),) = run_ranks(resumed, 1, framework, model)
    assert again == alone[2:], "with the same number of workers, bit for bit"
    assert constants == (6.0, [MARK + 2, MARK + 2])
    (first, own_names), (second, other_names) = run_ranks(curve, 2, framework, model, 4)
    assert first == second
    np.testing.assert_allclose(first, alone, rtol=2e-5)
    assert {name for name in names if name.startswith("params/")} - {"params/scale", "params/mark"} == (
        {f"params/{layer}.{kind}" for layer in ("stem", "head") for kind in ("kernel", "bias")}
        | {"params/norm.scale", "params/norm.bias"}
        if "flax" in framework
        else {f"params/{layer}.{kind}" for layer in ("stem", "norm", "head") for kind in ("weight", "bias")}
    )
    assert sorted({*own_names, *other_names}) == names


def by_hand(model: Document, steps: int) -> list[float]:
    """What plain torch comes to, with nothing of ours but the module and the batches."""
    context = context_of(deepspeed(0), model, optimizer=OPTIMIZER, virtual_ranks=4)
    custom = context.run.model.custom
    assert custom is not None
    module = build_custom(custom, IMAGES, 7)
    decayed = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    losses = []
    for step in range(steps):
        batch = batch_of(context, step)
        images = torch.from_numpy(batch.inputs).flatten(0, 1).permute(0, 3, 1, 2)
        targets = torch.from_numpy(batch.targets).flatten().long()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * min(1.0, (step + 1) / 5)
        loss = torch.nn.functional.cross_entropy(module(images), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_torch_module_is_trained_as_plain_torch_would() -> None:
    model = own("torch_classifier")
    ((losses, _),) = run_ranks(curve, 1, deepspeed(0), model, 6)
    np.testing.assert_allclose([loss for loss, _ in losses], by_hand(model, 6), rtol=1e-5)


def test_half_precision_is_autocast_around_a_torch_module() -> None:
    def losses_of(precision: str) -> list[float]:
        return [loss for loss, _ in run_ranks(precise, 1, precision)[0]]

    exact, rounded = losses_of("fp32"), losses_of("bf16")
    np.testing.assert_allclose(rounded, exact, rtol=0.01)
    assert rounded != exact


def precise(rank: int, world: int, coordinator: str, precision: str) -> Any:
    context = context_of(deepspeed(1), own("torch_classifier"), rank, world, coordinator, precision=precision)
    return train(make_engine(context), context, 0, 3)


REFUSED: dict[str, tuple[str, Document, str]] = {
    "no such module": (
        "nowhere:make",
        {},
        "spec.model.custom.target: nowhere:make: there is no module nowhere in the pod; put it into workers.image, or "
        "mount it and set PYTHONPATH in workers.podPatch",
    ),
    "no such factory": (
        "tests.support.own_models:make",
        {},
        "spec.model.custom.target: tests.support.own_models:make: tests.support.own_models has no make; correct the "
        "name",
    ),
    "nothing to call": (
        "tests.support.own_models:NOT_CALLABLE",
        {},
        "spec.model.custom.target: tests.support.own_models:NOT_CALLABLE: is of type int; name a function or a class",
    ),
    "an argument that it has not": (
        "tests.support.own_models:{framework}_classifier",
        {"depth": 2},
        "spec.model.custom: tests.support.own_models:{framework}_classifier raised TypeError: {framework}_classifier() "
        "got an unexpected keyword argument 'depth'; correct config, or the factory",
    ),
    "no module": (
        "tests.support.own_models:of_no_framework",
        {},
        "spec.model.custom.target: tests.support.own_models:of_no_framework returned a value of type object; return a "
        "{framework} Module",
    ),
    "running statistics": (
        "tests.support.own_models:{framework}_statistics",
        {},
        "changes when the module is called, so its value would depend on the number of workers; use a layer without "
        "running statistics, such as GroupNorm or LayerNorm",
    ),
    "what no checkpoint holds": (
        "tests.support.own_models:{framework}_complex",
        {},
        "spec.model.custom: waves is of type complex64, which checkpoints cannot hold; use one of float64, float32, ",
    ),
    "other outputs": (
        "tests.support.own_models:{framework}_wrong_outputs",
        {},
        "spec.model.custom: the module returned an array [2, 7] for 2 images of 8 x 8 x 1; return logits [2, 10]",
    ),
    "other inputs": (
        "tests.support.own_models:{framework}_wrong_inputs",
        {},
        "spec.model.custom: the module, called with 2 images of 8 x 8 x 1 of spec.data, raised ",
    ),
}


@pytest.mark.parametrize("framework", ["torch", "flax"])
@pytest.mark.parametrize(("target", "config", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_with_it_is_one_line(framework: str, target: str, config: Document, expected: str) -> None:

    custom = Custom(target=target.format(framework=framework), config=config)
    build = build_custom if framework == "torch" else CustomStructure
    with pytest.raises(ConfigError) as refused:
        build(custom, IMAGES, 0)
    assert expected.format(framework=framework) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_frozen_parameter_is_refused() -> None:

    with pytest.raises(ConfigError, match=r"parameter 1.bias needs no gradient; register it as a buffer"):
        build_custom(Custom(target="tests.support.own_models:torch_frozen"), IMAGES, 0)


def test_tied_weights_are_one_parameter() -> None:

    module = build_custom(Custom(target="tests.support.own_models:torch_decoder"), TOKENS, 0)
    assert [(spec.name, spec.shape, spec.decays) for spec in table_of(module)] == [("embed.weight", (64, 16), True)]


def test_a_buffer_that_changes_in_a_later_call_ends_the_run_before_it_is_saved() -> None:
    (said,) = run_ranks(changes_late, 1)
    assert said == (
        "spec.model.custom: scale changes when the module is called, so its value would depend on the number of "
        "workers; use a layer without running statistics, such as GroupNorm or LayerNorm"
    )


def changes_late(rank: int, world: int, coordinator: str) -> str:
    context = context_of(deepspeed(1), own("torch_late"), rank, world, coordinator)
    with pytest.raises(ConfigError) as refused:
        train(make_engine(context), context, 0, 3)
    return str(refused.value)


def start(rank: int, world: int, coordinator: str, framework: Document, model: Document) -> str | None:
    try:
        make_engine(context_of(framework, model, rank, world, coordinator))
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("framework", "model"),
    [(deepspeed(1), "torch_unseeded"), (deepspeed(1), "torch_unseeded_buffer"), (FLAX, "flax_unseeded_constant")],
)
def test_ranks_that_begin_with_other_weights_or_constants_are_told_so(framework: Document, model: str) -> None:
    first, second = run_ranks(start, 2, framework, own(model))
    assert first == second
    assert first is not None
    assert first.startswith(
        "spec.model.custom: rank 1 begins with other weights or constants than rank 0; let the factory draw"
    )
