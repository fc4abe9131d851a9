"""Which part of each parameter a rank has: together they have everything, and each finds its own in a checkpoint."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_runtime.contract.models import Model
from capstan_runtime.contract.parallelism import Parallelism
from capstan_runtime.deepspeed_trainer.parallel.shards import Shard, shards_of
from capstan_runtime.model_spec import ParameterSpec, parameter_table
from capstan_runtime.parallel.layout import Layout
from tests.support.engines import TOKENS, Saved

EXPERTS = {"experts": {"count": 4, "topK": 2}}
DECODERS = {
    "grouped heads": {"transformer": {"layers": 1, "dim": 16, "heads": 8, "kvHeads": 4, "hiddenDim": 24}},
    "experts": {"transformer": {"layers": 1, "dim": 16, "heads": 4, "hiddenDim": 8, **EXPERTS}},
}
DEGREES = [Parallelism(tensor=2), Parallelism(tensor=4), Parallelism(tensor=2, sequence=2), Parallelism(expert=4)]
BOTH = Parallelism(tensor=2, expert=2)


def numbered(spec: ParameterSpec) -> np.ndarray:
    """Every element is its place."""
    return np.arange(spec.size, dtype=np.float32).reshape(spec.shape)


def parts(model: str, parallelism: Parallelism, replicas: int) -> dict[str, list[Shard]]:
    """Of each parameter, what each rank has."""
    config = Model.parse(DECODERS[model])
    table = parameter_table(config, TOKENS)
    world = parallelism.devices * replicas
    layout = Layout.of(parallelism, world)
    ranks = [shards_of(config, table, layout, rank) for rank in range(world)]
    return {spec.name: [shards[spec.name] for shards in ranks] for spec in table}


@pytest.mark.parametrize(
    ("model", "parallelism", "replicas"),
    [
        *(("grouped heads", degrees, 2) for degrees in DEGREES[:3]),
        *(("experts", degrees, 4) for degrees in (*DEGREES, BOTH)),
    ],
)
def test_every_element_of_a_matrix_that_is_cut_is_on_equally_many_ranks(
    model: str, parallelism: Parallelism, replicas: int
) -> None:
    for name, shards in parts(model, parallelism, replicas).items():
        holders = np.zeros(shards[0].whole.size, np.int64)
        for shard in shards:
            part = shard.of(numbered(shard.whole))
            assert part.shape == shard.part.shape == shards[0].part.shape
            np.add.at(holders, part.astype(np.int64).ravel(), 1)
        is_expert = shards[0].whole.matrix_dims > 0
        is_cut = is_expert or name.endswith(("qkv.weight", "out.weight", "gate_up.weight", "down.weight"))
        cuts = (parallelism.tensor if is_cut else 1) * (parallelism.expert if is_expert else 1)
        assert set(holders) == {len(shards) // cuts}, name


@pytest.mark.parametrize(("model", "parallelism"), [("grouped heads", DEGREES[0]), ("experts", BOTH)])
@settings(max_examples=50)
@given(data=st.data())
def test_any_range_of_a_part_is_read_from_a_checkpoint_of_whole_tensors(
    model: str, parallelism: Parallelism, data: st.DataObject
) -> None:
    of_all = parts(model, parallelism, 2)
    name = data.draw(st.sampled_from(sorted(of_all)))
    shard = data.draw(st.sampled_from(of_all[name]))
    start = data.draw(st.integers(0, shard.part.size - 1))
    stop = data.draw(st.integers(start + 1, shard.part.size))
    whole = numbered(shard.whole)
    source = Saved({name: whole})
    np.testing.assert_array_equal(shard.read_range(source, name, start, stop), shard.of(whole).ravel()[start:stop])
    np.testing.assert_array_equal(shard.read(source, name), shard.of(whole))
