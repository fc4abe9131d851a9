"""A Flax run whose replicas are spread over devices: the run of whole replicas, in a part of the memory."""

import re
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

from capstan_runtime.contract.parallelism import Parallelism
from capstan_runtime.engine import Array
from capstan_runtime.errors import ConfigError
from capstan_runtime.flax_trainer.cuts import cuts_of
from capstan_runtime.model_spec import STEP_NAME
from tests.numerics.test_state import Tensors, bits, gather
from tests.support.engines import FLAX, TOKENS, Saved, batch_of, context_of, make_engine, train
from tests.support.ranks import run_ranks
from tests.support.spreading import LEFT_TO_CHANCE, spread

Document = dict[str, Any]
DECODER: Document = {"transformer": {"layers": 2, "dim": 32, "heads": 8, "kvHeads": 4}}
EVERYTHING: Document = {"transformer": {"layers": 3, "dim": 32, "heads": 4, **LEFT_TO_CHANCE}}
PLAIN: Document = {"virtual_ranks": 2, "batch": 8}
MIDDLE, STEPS = 3, 6
_ACTIVATIONS = "f32[4,8,32]"
"""Of a micro-step, half of each sequence."""


def begun(rank: int, world: int, coordinator: str, devices: int, model: Document, options: Document) -> Any:
    """Context and engine of a rank with so many devices."""
    jax.config.update("jax_num_cpu_devices", devices)
    context = context_of(options.get("framework", FLAX), model, rank, world, coordinator, **_without(options))
    return context, make_engine(context)


def _without(options: Document) -> Document:
    return {name: value for name, value in options.items() if name != "framework"}


def life(rank: int, world: int, coordinator: str, devices: int, model: Document, options: Document) -> Any:
    """A curve, what is exported in its middle, evaluations, and the bytes of weights and moments on a device."""
    context, engine = begun(rank, world, coordinator, devices, model, options)
    curve = train(engine, context, 0, MIDDLE)
    saved = gather(engine)
    curve += train(engine, context, MIDDLE, STEPS)
    # Another number of batches in each replica: none waits for the others.
    found = engine.evaluate([batch_of(context, 0)] * (1 + context.data_rank))
    kept = [*engine._parameters, *(array for arrays in engine._state for array in arrays)]
    sizes = sum(array.addressable_data(0).nbytes for array in kept), sum(array.nbytes for array in kept)
    engine.close()
    return curve, saved, (found.loss, found.correct, found.count), sizes


def looked_at(rank: int, world: int, coordinator: str, devices: int, model: Document, options: Document) -> Any:
    """A life, and the messages of a layer in each of its micro-steps."""
    context, engine = begun(rank, world, coordinator, devices, model, options)
    batch = engine._spread(batch_of(context, 0)._replace(weights=None))
    numbers = engine._update.numbers(0.1, 1, 1.0)
    kept = engine._parameters, engine._state, engine._buffers, engine._scale
    program = engine._program.lower(*kept, batch, numbers, engine._taught_by).compile().as_text()
    counts = {name: count / context.micro_steps for name, count in messages_of_a_layer(program).items()}
    return life(rank, world, coordinator, devices, model, options), counts


def messages_of_a_layer(program: str) -> Counter[tuple[str, str]]:
    """How many of each kind are in the loops over layers, forward and backward, but for the sums of gradients."""
    found: Counter[tuple[str, str]] = Counter()
    for shapes, kind, name in re.findall(
        r"= (.+?) (all-[a-z-]+|collective-permute|reduce-scatter)\(.*op_name=\"([^\"]*)", program
    ):
        in_loop = re.search(r"/(transpose\()?jvp\(\)\)?/while/body/closed_call/(?!jit)", name)
        if in_loop and (kind != "all-reduce" or shapes.startswith(_ACTIVATIONS)):
            found[kind, "backward" if in_loop[1] else "forward"] += 1
    return found


def onwards(
    rank: int, world: int, coordinator: str, devices: int, model: Document, options: Document, saved: Tensors
) -> Any:
    """What is exported right after importing `saved`, and the curve from there."""
    context, engine = begun(rank, world, coordinator, devices, model, options)
    engine.import_state(Saved(saved))
    state = gather(engine)
    curve = train(engine, context, MIDDLE, STEPS)
    engine.close()
    return bits(state), curve


def test_a_spread_replica_learns_as_a_whole_one_and_another_layout_resumes_it() -> None:
    (((curve, saved, evaluated, (own, everything)), messages),) = run_ranks(
        looked_at, 1, 4, DECODER, PLAIN | spread({"tensor": 2, "sequence": 2}, 4)
    )
    ((exact, exactly_saved, exactly, _),) = run_ranks(life, 1, 1, DECODER, PLAIN)
    assert curve[-1][0] < curve[0][0]
    np.testing.assert_allclose(curve, exact, rtol=1e-5)
    np.testing.assert_allclose(evaluated, exactly, rtol=1e-5)
    assert set(saved) == set(exactly_saved)
    assert own == pytest.approx(everything / 2, rel=0.02), "all but gains is cut in two"
    assert messages == {
        ("all-reduce", "forward"): 2,  # over tensor: Megatron's (1909.08053)
        ("all-reduce", "backward"): 2,
        (
            "all-to-all",
            "forward",
        ): 4,  # over sequence: Ulysses's (2309.14509), of queries, keys, values and what they mix
        ("all-to-all", "backward"): 4,
    }
    for state, resumed in run_ranks(onwards, 2, 1, DECODER, PLAIN | spread({"tensor": 2}), saved):
        assert state == bits(saved)
        np.testing.assert_allclose(resumed, exact[MIDDLE:], rtol=1e-5)


def refused(rank: int, world: int, coordinator: str, devices: int, options: Document) -> str:
    with pytest.raises(ConfigError) as error:
        begun(rank, world, coordinator, devices, DECODER, options)
    return str(error.value)


def test_devices_and_sequences_that_cannot_be_divided_are_refused() -> None:
    told = "spec.parallelism: a replica is spread over 4 devices, and each worker has 4, not as many as make 2 workers"
    for changes, message in (
        ({"parallelism": {"tensor": 3}}, "spec.parallelism: 4 devices are no multiple of the 3 that hold one replica"),
        ({"parallelism": {"tensor": 4}, "workersPerReplica": 2}, told),
        (
            {"parallelism": {"tensor": 2}, "virtual_ranks": 8},
            "samples a micro-step, which 2 replicas per worker do not",
        ),
    ):
        assert message in run_ranks(refused, 1, 4, {**PLAIN, **changes})[0]
    with pytest.raises(ConfigError, match=r"spec.parallelism.sequence: 3 does not divide .* length 16; choose a div"):
        cuts_of(Parallelism(sequence=3), TOKENS)


LAYOUTS = {
    "tensor over workers, replicated": ({"tensor": 2}, 4, 1),
    "sequence over workers": ({"sequence": 2}, 2, 1),
    "both over workers": ({"tensor": 2, "sequence": 2}, 4, 1),
    "tensor over workers of two devices": ({"tensor": 4}, 2, 2),
    "two replicas in each of two workers": ({"sequence": 2}, 2, 4),
    "nothing over anything": ({}, 2, 1),
    "no layout, over workers of two devices": (None, 2, 2),
}


@pytest.mark.full
@pytest.mark.parametrize(("parallelism", "world", "devices"), LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_is_no_layout(parallelism: Document | None, world: int, devices: int) -> None:
    options = PLAIN | spread(parallelism, devices)
    ranks = run_ranks(life, world, devices, DECODER, options)
    ((exact, _, exactly, _),) = run_ranks(life, 1, 1, DECODER, PLAIN)
    for curve, _, _, _ in ranks:
        np.testing.assert_allclose(curve, exact, rtol=1e-5)
    shares = world // options.get("workersPerReplica", 1)  # of a batch, of which the first has one, the second two, ...
    assert sum(count for _, _, (_, _, count), _ in ranks) == exactly[2] * (shares + 1) / 2
    _, saved, _, _ = ranks[0]
    ((state, resumed),) = run_ranks(onwards, 1, 1, DECODER, PLAIN, saved)
    assert state == bits(saved)
    np.testing.assert_allclose(resumed, exact[MIDDLE:], rtol=1e-5)


class Counted(Saved):
    """Tensors that know how many bytes of them were asked for."""

    asked = 0

    def read_range(self, name: str, start: int, stop: int) -> Array:
        self.asked += super().read_range(name, start, stop).nbytes
        return super().read_range(name, start, stop)


def asked_and_kept(rank: int, world: int, coordinator: str, devices: int, model: Document, options: Document) -> Any:
    """Bytes that an import asks for, bytes of the rows of which this process keeps something, and of all tensors."""
    _, engine = begun(rank, world, coordinator, devices, model, options)
    source = Counted(gather(engine))
    engine.import_state(source)
    kept = 0
    for array in (*engine._parameters, *(array for arrays in engine._state for array in arrays)):
        rows = {str(shard.index[:-1]): shard.data.size // shard.data.shape[-1] for shard in array.addressable_shards}
        kept += sum(rows.values()) * array.shape[-1] * array.dtype.itemsize
    engine.close()
    return source.asked, kept, sum(source.read(name).nbytes for name in source.names() if name != STEP_NAME)


@pytest.mark.parametrize(
    ("world", "devices", "parallelism"),
    [(1, 8, {"tensor": 2}), (1, 8, {"pipeline": 2}), (2, 2, {"tensor": 4})],
    ids=str,
)
def test_a_worker_reads_once_what_several_of_its_devices_keep(world: int, devices: int, parallelism: Document) -> None:
    options = {"virtual_ranks": 1, "batch": 16, **spread(parallelism, devices)}
    for asked, kept, everything in run_ranks(asked_and_kept, world, devices, DECODER, options):
        assert asked == kept
        assert asked == everything if world == 1 else asked < everything


COMPANY: dict[str, tuple[Document, Document]] = {
    "everything on the way, averaged": (
        EVERYTHING,
        {"training": {"ema": {}, "lookahead": {"steps": 2}, "activationCheckpointing": {"policy": "dots"}}},
    ),
    "layer-wise": (
        DECODER,
        {
            "optimizer": {"novograd": {"learningRate": 0.01}},
            "training": {"centralizeGradients": {}, "adaptiveClip": {}, "ema": {}},
        },
    ),
    "sampled Hessian": (DECODER, {"optimizer": {"sophia": {"learningRate": 0.01, "hessianEverySteps": 2}}}),
    "pruned": (DECODER, {"compression": {"prune": {"magnitude": {"sparsity": 0.5, "endStep": 2, "everySteps": 1}}}}),
    "products of two": (DECODER, {"compression": {"lowRank": {"rank": 4}}}),
    "attacked": (DECODER, {"regularization": {"adversarial": {"fgsm": {"epsilon": 0.01}}, "consistency": {}}}),
    "experts": ({"transformer": {**DECODER["transformer"], "experts": {"count": 4, "topK": 2, "jitter": 0.01}}}, {}),
    "dropless experts": (
        {"transformer": {**DECODER["transformer"], "experts": {"count": 4, "topK": 2, "dropless": {}}}},
        {},
    ),
    "reversible": ({"transformer": {**DECODER["transformer"], "reversible": {}}}, {}),
    "16 bits": (DECODER, {"precision": "bf16"}),
    "fully sharded": (DECODER, {"framework": {"flax": {"fsdp": {}}}}),
}


@pytest.mark.full
@pytest.mark.parametrize(("model", "options"), COMPANY.values(), ids=COMPANY)
def test_what_else_a_run_does_is_the_same_over_devices(model: Document, options: Document) -> None:
    parallelism = {"sequence": 2} if "framework" in options else {"tensor": 2, "sequence": 2}
    options = {**PLAIN, **options}
    ((curve, saved, evaluated, _),) = run_ranks(life, 1, 4, model, options | spread(parallelism, 4))
    ((exact, exactly_saved, exactly, _),) = run_ranks(life, 1, 1, model, options)
    tolerance = 1e-2 if "precision" in options else 2e-5
    np.testing.assert_allclose(curve, exact, rtol=tolerance)
    np.testing.assert_allclose(evaluated, exactly, rtol=tolerance)
    assert set(saved) == set(exactly_saved)
    ((state, _),) = run_ranks(onwards, 1, 1, model, options, saved)
    assert state == bits(saved)
