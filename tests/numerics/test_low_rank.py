"""Matrices as products of two: nearest to a given one, alike in both frameworks, and smaller in what is saved."""

import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime.beginning import Factors, require_same_architecture
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.signature import Signature
from capstan_runtime.deepspeed_trainer.forward_pass import Pass as TorchPass
from capstan_runtime.deepspeed_trainer.models import bare_model, trained_model
from capstan_runtime.deepspeed_trainer.predict import build as build_torch
from capstan_runtime.engine import Array, Trained
from capstan_runtime.errors import ConfigError
from capstan_runtime.flax_trainer.forward_pass import Pass as FlaxPass
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.flax_trainer.predict import build as build_flax
from capstan_runtime.low_rank import factors_of, is_factored, model_table, nearest_factors, table_of
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import Normal, ParameterSpec, initial_parameter, parameter_table
from capstan_runtime.parallel.star import MOST_BYTES
from tests.support.engines import (
    CNN,
    DATA_OF,
    FLAX,
    IMAGES,
    MLP,
    TRANSFORMER,
    Saved,
    WholeTensors,
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.ranks import run_ranks
from tests.support.teachers import values_of

Document = dict[str, Any]
ORIGIN = {"registry": {"name": "origin", "version": "1.0.0"}}
EXPERTS: Document = {"transformer": {"layers": 2, "dim": 16, "heads": 2, "experts": {"count": 4}}}
MODELS: dict[str, Document] = {"mlp": MLP, "cnn": CNN, "transformer": TRANSFORMER, "experts": EXPERTS}


def spec(*shape: int, unit_dims: int = 1) -> ParameterSpec:
    return ParameterSpec("layer.weight", shape, Normal(0.1), decays=True, unit_dims=unit_dims)


@pytest.mark.parametrize(
    ("shape", "unit_dims"), [((20, 12), 1), ((12, 20), 1), ((10, 4, 3, 3), 1), ((3, 14, 9), 2)], ids=str
)
def test_the_product_is_the_nearest_of_its_rank_and_both_factors_bear_the_same(
    shape: tuple[int, ...], unit_dims: int
) -> None:
    whole, rank = initial_parameter(spec(*shape, unit_dims=unit_dims), 3), 4
    first, second = nearest_factors(spec(*shape, unit_dims=unit_dims), whole, rank)
    several = shape[: unit_dims - 1]
    seconds = second.reshape(*several, shape[unit_dims - 1], rank)
    firsts = first.reshape(*several, rank, -1)
    matrices = whole.reshape(*several, shape[unit_dims - 1], -1).astype(np.float64)
    lost = np.linalg.svd(matrices, compute_uv=False)[..., rank:]
    distance = ((seconds @ firsts - matrices) ** 2).sum((-1, -2))
    np.testing.assert_allclose(distance, (lost**2).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(seconds, axis=-2), np.linalg.norm(firsts, axis=-1), rtol=1e-4, err_msg="in equal parts"
    )
    assert (np.take_along_axis(seconds, np.abs(seconds).argmax(-2, keepdims=True), -2) > 0).all()


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)], ids=str)
def test_a_product_is_as_exact_as_its_elements_whatever_there_is_of_singular_values(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(4)
    left, right = (np.linalg.qr(random.normal(size=(size, 24)))[0] for size in shape)
    values = np.concatenate([np.geomspace(1, 1e-9, 20), np.zeros(4)])
    whole = ((left * values) @ right.T).astype(np.float32)
    for rank in (4, 12):
        first, second = nearest_factors(spec(*shape), whole, rank)
        u, s, vh = np.linalg.svd(whole.astype(np.float64))
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        np.testing.assert_allclose(second.astype(np.float64) @ first, best, rtol=0, atol=2e-7)
    for factor in nearest_factors(spec(*shape), np.zeros_like(whole), 4):
        assert not factor.any(), "of nothing is nothing"


class Seen(Saved):
    """Tensors that know which were read."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        super().__init__(tensors)
        self.read_names: list[str] = []

    def read(self, name: str) -> Array:
        self.read_names.append(name)
        return super().read(name)


@pytest.mark.parametrize("name", ["mlp", "experts"])
def test_each_rank_finds_the_factors_of_its_share_and_all_have_those_that_one_alone_finds(name: str) -> None:
    model, world = MODELS[name], 3
    compression = {"lowRank": {"rank": 5, "from": ORIGIN}}
    origin = origin_of(model)
    everything = Saved({each: origin.tensors.read(each) for each in origin.tensors.names()})
    here, messages = threading.Barrier(world, timeout=60), [b""] * world
    sources = [Seen(everything._tensors) for _ in range(world)]

    def found(rank: int) -> Factors:
        def exchange(payload: bytes) -> list[bytes]:
            assert len(payload) <= MOST_BYTES
            messages[rank] = payload
            here.wait()
            answers = list(messages)
            here.wait()
            return answers

        context = context_of(FLAX, model, rank, world, batch=12, compression=compression)
        return Factors(replace(origin, tensors=sources[rank]), context, exchange)

    with ThreadPoolExecutor(world) as pool:
        together = list(pool.map(found, range(world)))
    shown: list[None] = []
    alone = Factors(
        origin, context_of(FLAX, model, compression=compression), lambda own: [own], lambda: shown.append(None)
    )
    table = parameter_table(Model.parse(model), DATA_OF[next(iter(model))])
    for factors in together:
        assert list(factors.names()) == list(alone.names())
        for each in alone.names():
            np.testing.assert_array_equal(factors.read(each), alone.read(each))
    read = Counter(each for source in sources for each in source.read_names)
    assert read == {each.tensor_name("ema"): 1 if is_factored(each, 5) else world for each in table}
    assert len(shown) == len(table), "a sign of life for each"


def test_elements_of_a_product_that_begins_by_chance_vary_as_those_of_the_whole_matrix() -> None:
    whole = spec(300, 200)
    first, second = (initial_parameter(part, 5) for part in factors_of(whole, 16))
    assert np.std(second @ first) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_only_what_becomes_smaller_is_a_product_and_nothing_else_changes(name: str) -> None:
    model, data = Model.parse(MODELS[name]), DATA_OF[next(iter(MODELS[name]))]
    table, whole = model_table(model, data, 5), parameter_table(model, data)
    kept = {each.name: each for each in whole if not is_factored(each, 5)}
    assert {each.name: each for each in table if each.name in kept} == kept
    made = [part for each in whole if is_factored(each, 5) for part in factors_of(each, 5)]
    assert [each for each in table if each.name not in kept] == made
    assert made
    for each in whole:
        if is_factored(each, 5):
            assert sum(part.size for part in factors_of(each, 5)) < each.size
    assert not any("embed" in each.name or "head" in each.name or "router" in each.name for each in made)


def test_a_rank_that_makes_nothing_smaller_is_refused_with_the_largest_that_does() -> None:
    model = Model.parse(MLP)
    with pytest.raises(
        ConfigError, match=r"^spec\.compression\.lowRank\.rank: 18 makes no matrix of mlp smaller; choose at most 17$"
    ):
        model_table(model, IMAGES, 18)
    assert [each.name for each in model_table(model, IMAGES, 17)][:2] == [
        "layers.0.first.weight",
        "layers.0.second.weight",
    ]
    with pytest.raises(ConfigError, match="makes no matrix of mlp smaller; leave it out"):
        model_table(Model.parse({"mlp": {"hidden": [1]}}), IMAGES, 1)


def signature_for(model: Document, rank: int | None) -> Signature:
    data = DATA_OF[next(iter(model))]
    return Signature(
        model=Model.parse(model), kind=data.kind, input_shape=data.input_shape, outputs=data.outputs, low_rank=rank
    )


def factored_values(model: Document, rank: int, seed: int = 1) -> dict[str, np.ndarray]:
    return {each.tensor_name(): initial_parameter(each, seed) for each in table_of(signature_for(model, rank))}


def multiplied(model: Document, values: dict[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """The whole model that is the same function."""
    found = {}
    for each in parameter_table(Model.parse(model), DATA_OF[next(iter(model))]):
        if not is_factored(each, rank):
            found[each.tensor_name()] = values[each.tensor_name()]
            continue
        first, second = (values[part.tensor_name()].astype(np.float64) for part in factors_of(each, rank))
        kernel = each.shape[2:] if len(each.shape) == 4 else ()
        flat = first.reshape(*first.shape[:2], -1) if kernel else first
        product = np.einsum("or,rik->oik", second[..., 0, 0], flat) if kernel else second @ first
        found[each.tensor_name()] = product.reshape(each.shape).astype(np.float32)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_products_computes_what_the_multiplied_model_computes(name: str) -> None:
    model, rank = MODELS[name], 5
    values = factored_values(model, rank)
    whole = multiplied(model, values, rank)
    data = DATA_OF[next(iter(model))]
    inputs = np.random.default_rng(2).normal(size=(3, *data.input_shape)).astype(np.float32)
    if data.kind == "tokens":
        inputs = np.random.default_rng(2).integers(0, data.outputs, (3, *data.input_shape)).astype(np.int32)
    answers = []
    for tensors, each_rank in ((whole, None), (values, rank)):
        signature = signature_for(model, each_rank)
        module = trained_model(signature, Saved(tensors), torch.device("cpu"))
        answers.append(module(torch.from_numpy(inputs), TorchPass(torch.float32)).numpy())
        structure = Structure(signature.model, data_spec_of(signature), each_rank)
        parameters = [jnp.asarray(value) for value in structure.read_served(Saved(tensors))]
        forward = jax.jit(
            lambda values, inputs, structure=structure: structure.assemble(values)(
                inputs, FlaxPass(jnp.dtype(jnp.float32))
            )
        )
        if name != "experts":  # torch's is as it is served, which takes all tokens
            answers.append(np.asarray(forward(parameters, jnp.asarray(inputs))))
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], rtol=1e-4, atol=1e-5)


def test_products_are_served_by_both_frameworks() -> None:
    signature, values = signature_for(CNN, 4), factored_values(CNN, 4)
    inputs = np.random.default_rng(2).normal(size=(2, *IMAGES.input_shape)).astype(np.float32)
    answers = []
    for build in (build_flax, build_torch):
        served: Any = build(signature, Saved(values), 1)
        served.warm([2])
        answers.append(served.logits(inputs))
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-4, atol=1e-5)


def origin_of(model: Document) -> Trained:
    """A model with an average, which is what is served of it."""
    signature = signature_for(model, None)
    values = values_of(signature, seed=1)
    averages = {f"ema/{name.removeprefix('params/')}": 2 * value for name, value in values.items()}
    return Trained(signature, "blake3:" + "7" * 64, Saved({**values, **averages}))


def life(rank: int, world: int, coordinator: str, framework: Document, model: Document, more: Document) -> Any:
    """Losses of 20 steps from a trained model, those of the last 10 once more after a restore, and what is saved."""
    compression = {"lowRank": {"rank": 5, "from": ORIGIN}}
    context = context_of(framework, model, rank, world, coordinator, virtual_ranks=4, compression=compression, **more)
    engine = make_engine(context)
    engine.import_state(Factors(origin_of(model), context, engine.exchange))
    began = train(engine, context, 0, 10)
    saved = [replace(part, data=part.data.copy()) for part in engine.export_state()]
    went_on = train(engine, context, 10, 20)
    again = None
    if world == 1:
        engine.import_state(WholeTensors(saved))
        again = train(engine, context, 10, 20)
    engine.close()
    return began + went_on, again, {part.name: part.shape for part in saved}


LIVES: dict[str, tuple[Document, Document]] = {
    "mlp with an average": (MLP, {"training": {"ema": {}}}),
    "transformer": (TRANSFORMER, {}),
    "cnn with averages of all": ({"cnn": {"channels": [8, 16], "norm": {"batch": {}}}}, {"training": {"ema": {}}}),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param("mlp with an average", marks=pytest.mark.full), "transformer", "cnn with averages of all"],
)
def test_both_frameworks_begin_from_a_model_alike_learn_alike_and_go_on_alike(name: str) -> None:
    model, more = LIVES[name]
    found = [run_ranks(life, 1, framework, model, more)[0] for framework in (FLAX, deepspeed(1))]
    for curve, again, shapes in found:
        np.testing.assert_allclose(again, curve[10:], rtol=1e-5)
        table = table_of(signature_for(model, 5))
        assert {each: shape for each, shape in shapes.items() if each.startswith("params/")} == {
            each.tensor_name(): each.shape for each in table
        }
        assert shapes.keys() == found[0][2].keys()
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-3)


@pytest.mark.parametrize(
    "framework",
    [deepspeed(3), pytest.param({"flax": {"fsdp": {}}}, marks=pytest.mark.full)],
    ids=["zero3", "fsdp"],
)
def test_what_is_cut_up_begins_from_the_same_factors(framework: Document) -> None:
    (expected, _, _), *_ = run_ranks(life, 1, FLAX, MLP, {})
    (found, _, _), (same, _, _) = run_ranks(life, 2, framework, MLP, {})
    assert found == same
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_model_of_another_architecture_is_no_beginning() -> None:
    compression = {"lowRank": {"rank": 4, "from": ORIGIN}}
    context = context_of(FLAX, MLP, compression=compression)
    require_same_architecture(origin_of(MLP), context)
    other: Document = {"mlp": {"hidden": [24, 12]}}
    with pytest.raises(
        ConfigError,
        match=r"^spec\.compression\.lowRank\.from: has head\.weight of shape \(10, 12\), and spec\.model and "
        r"spec\.data of shape \(10, 16\); set spec\.model to its architecture, mlp: hidden \[24, 12\]$",
    ):
        require_same_architecture(origin_of(other), context)
    with pytest.raises(ConfigError, match="is of rank 4 itself; name the model that it came from"):
        require_same_architecture(Trained(signature_for(MLP, 4), "", Saved({})), context)


def test_a_bare_module_has_products_where_the_table_has_them() -> None:
    names = {name for name, _ in bare_model(Model.parse(MLP), IMAGES, 4).named_parameters()}
    assert names == {each.name for each in model_table(Model.parse(MLP), IMAGES, 4)}
