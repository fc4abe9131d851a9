"""Parameters: names, shapes, first values, and how they are shared out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.checkpoint.digest import LEAF_BYTES
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.optimizers import Optimizer
from capstan_runtime.contract.training import Training
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.errors import ConfigError
from capstan_runtime.model_spec import initial_parameter, parameter_table, read_tensor
from capstan_runtime.parallel.tiling import LEAF_ELEMENTS, tile_evenly
from capstan_runtime.updates import StateKind, state_kinds
from tests.support.engines import ADAMW, CNN, IMAGES, MLP, SGD, TIED, TOKENS, TRANSFORMER

VECTORS = DataSpec("vector", (6,), 3, "")


def shapes(model: dict[str, object], data: DataSpec) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in parameter_table(Model.parse(model), data)}


def test_a_perceptron_flattens_its_inputs() -> None:
    assert shapes(MLP, IMAGES) == {
        "layers.0.weight": (24, 64),
        "layers.0.bias": (24,),
        "layers.1.weight": (16, 24),
        "layers.1.bias": (16,),
        "head.weight": (10, 16),
        "head.bias": (10,),
    }


def test_a_residual_network_projects_where_its_width_or_resolution_changes() -> None:
    names = shapes({"cnn": {"channels": [8, 8, 16], "groups": 4}}, IMAGES)
    assert [name for name in names if "shortcut.conv" in name] == [
        "blocks.1.shortcut.conv.weight",
        "blocks.2.shortcut.conv.weight",
    ]
    assert names["blocks.2.shortcut.conv.weight"] == (16, 8, 1, 1)
    assert names["stem.conv.weight"] == (8, 1, 3, 3)
    assert names["blocks.2.first.conv.weight"] == (16, 8, 3, 3)
    assert names["blocks.2.second.norm.bias"] == (16,)


def test_a_decoder_fuses_what_reads_the_same_input() -> None:
    names = shapes(TRANSFORMER, TOKENS)
    layer = {name.removeprefix("layers.1."): shape for name, shape in names.items() if name.startswith("layers.1.")}
    assert layer == {
        "attention_norm.weight": (32,),
        "attention.qkv.weight": (64, 32),
        "attention.out.weight": (32, 32),
        "feed_forward_norm.weight": (32,),
        "feed_forward.gate_up.weight": (192, 32),
        "feed_forward.down.weight": (32, 96),
    }
    assert names["embed.weight"] == names["head.weight"] == (64, 32)
    assert "head.weight" not in shapes(TIED, TOKENS)


def test_only_matrices_and_kernels_decay() -> None:
    for model, data in ((MLP, IMAGES), (CNN, IMAGES), (TRANSFORMER, TOKENS)):
        for spec in parameter_table(Model.parse(model), data):
            assert spec.decays == (len(spec.shape) > 1), spec.name


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        (TRANSFORMER, IMAGES, "transformer cannot take the images of 8 x 8 x 1 of spec.data; choose mlp or cnn"),
        (CNN, VECTORS, "cnn cannot take the vectors of 6 of spec.data; choose mlp"),
        (MLP, TOKENS, "mlp cannot take the token sequences of 16 of spec.data; choose transformer"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(model: dict[str, object], data: DataSpec, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parameter_table(Model.parse(model), data)
    assert str(caught.value) == f"spec.model: {says}"


def test_first_values_depend_on_seed_and_name_alone() -> None:
    by_name = {spec.name: spec for spec in parameter_table(Model.parse(TRANSFORMER), TOKENS)}
    spec = by_name["layers.0.attention.qkv.weight"]
    value = initial_parameter(spec, 1)
    assert (value.shape, value.dtype) == (spec.shape, np.float32)
    assert (value == initial_parameter(spec, 1)).all()
    assert not (value == initial_parameter(spec, 2)).any()
    assert not (value == initial_parameter(by_name["layers.1.attention.qkv.weight"], 1)).any()
    assert value.std() == pytest.approx(0.02, rel=0.1)
    residual = initial_parameter(by_name["layers.0.attention.out.weight"], 1)
    assert residual.std() == pytest.approx(0.02 / 6**0.5, rel=0.1)
    assert (initial_parameter(by_name["norm.weight"], 1) == 1).all()


def test_a_run_says_which_state_it_keeps() -> None:
    plain = {"sgd": {"learningRate": 1, "momentum": 0}}
    novograd = {"novograd": {"learningRate": 1}}
    training = {"steps": 1, "globalBatchSize": 1}
    wrapped = {**training, "ema": {}, "lookahead": {}}

    def kinds(optimizer: dict[str, Any], training: dict[str, Any] = training) -> tuple[StateKind, ...]:
        return state_kinds(Optimizer.parse(optimizer), Training.parse(training))

    assert kinds(ADAMW) == (StateKind("exp_avg"), StateKind("exp_avg_sq"))
    assert kinds(SGD) == (StateKind("momentum"),)
    assert kinds(plain) == ()
    assert kinds(novograd) == (StateKind("exp_avg"), StateKind("exp_avg_norm_sq", per_parameter=True))
    assert kinds(plain, wrapped) == (StateKind("slow_weights", None), StateKind("ema", None))


@given(
    sizes=st.lists(st.one_of(st.integers(0, 50), st.integers(0, 5 * LEAF_ELEMENTS)), max_size=12),
    world=st.integers(1, 9),
)
def test_replicated_tensors_are_tiled_once_and_evenly(sizes: list[int], world: int) -> None:
    ends = [0] * len(sizes)
    named = [0] * len(sizes)
    loads = []
    for rank in range(world):
        parts = list(tile_evenly(sizes, rank, world))
        loads.append(sum(part.stop - part.start for part in parts))
        for part in parts:
            assert part.start == ends[part.tensor], "each rank goes on where the one before ended"
            ends[part.tensor] = part.stop
            named[part.tensor] += 1
    assert ends == sizes
    assert all(named)
    even = sum(sizes) / world
    assert all(abs(load - even) <= even / 10 + 1 for load in loads)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_no_leaf_of_a_large_state(world: int) -> None:
    sizes = [7, 64 * LEAF_ELEMENTS + 13, 3 * LEAF_ELEMENTS, 40 * LEAF_ELEMENTS + 1]
    starts = {part.start % LEAF_ELEMENTS for rank in range(world) for part in tile_evenly(sizes, rank, world)}
    assert starts == {0}
    assert LEAF_ELEMENTS * np.dtype(np.float32).itemsize == LEAF_BYTES


class Stored:
    def names(self) -> list[str]:
        return ["params/a"]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.read(name).shape

    def read(self, name: str) -> np.ndarray:
        return {"params/a": np.zeros((2, 3))}[name]


def test_a_checkpoint_of_another_model_is_refused_by_name() -> None:
    assert read_tensor(Stored(), "params/a", (2, 3)).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"params/a has shape \(2, 3\) in the checkpoint and \(3, 2\) in this run"):
        read_tensor(Stored(), "params/a", (3, 2))
    with pytest.raises(ConfigError, match="the checkpoint has no optimizer/exp_avg/a"):
        read_tensor(Stored(), "optimizer/exp_avg/a", (2, 3))
