"""Activations that are computed again: the same run to the last bit, in less memory."""

from typing import Any

import jax
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from capstan_runtime.context import TrainContext
from capstan_runtime.contract.memory import ActivationCheckpointing
from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer.models import build_model
from capstan_runtime.deepspeed_trainer.objective import Objective as TorchObjective
from capstan_runtime.deepspeed_trainer.recomputation import recomputation
from capstan_runtime.engine import Batch
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.flax_trainer.objective import Objective
from capstan_runtime.flax_trainer.recomputation import kept_activations
from tests.support.engines import CNN, FLAX, TRANSFORMER, batch_of, context_of, deepspeed, make_engine, train
from tests.support.ranks import run_ranks

Document = dict[str, Any]
POLICIES = ("full", "dots")
DEEP: dict[str, Document] = {
    "cnn": {"cnn": {"channels": [16] * 6, "groups": 4}},
    "transformer": {"transformer": {"layers": 8, "dim": 64, "heads": 4}},
}
"""So deep that what happens in blocks is most of it."""


def curves(rank: int, world: int, coordinator: str, framework: Document, model: Document) -> Any:
    """Losses and norms of some steps in each policy, "none" first; all in one world."""
    from capstan_runtime.deepspeed_trainer import engine as deepspeed_engine

    found = {}
    for policy in ("none", *POLICIES):
        training = {} if policy == "none" else {"activationCheckpointing": {"policy": policy}}
        context = context_of(framework, model, rank, world, coordinator, training=training)
        engine: Any = make_engine(context)
        found[policy] = train(engine, context, 0, 6)
        deepspeed_engine.World = lambda *_, joined=engine._world: joined  # type: ignore[assignment,misc]
    engine.close()
    return found


CASES = {
    "flax, transformer": (FLAX, TRANSFORMER, 1),
    "zero0, cnn": (deepspeed(0), CNN, 1),
    "zero1, transformer": (deepspeed(1), TRANSFORMER, 1),
    "zero3 on two, transformer": (deepspeed(3), TRANSFORMER, 2),
}


@pytest.mark.parametrize(("framework", "model", "world"), CASES.values(), ids=CASES)
def test_what_is_computed_again_comes_out_the_same_to_the_last_bit(
    framework: Document, model: Document, world: int
) -> None:
    for found in run_ranks(curves, world, framework, model):
        assert found["none"][-1][0] < found["none"][0][0]
        assert found == dict.fromkeys(found, found["none"])


def flax_loss(context: TrainContext, policy: ActivationCheckpointing | None) -> tuple[Any, list[Any]]:
    """The loss as a function of the weights, and their shapes."""
    batch, structure = batch_of(context, 0), Structure(context.run.model, context.data)
    micro_batch = Batch(batch.inputs[0], batch.targets[0], keys=batch.keys[0])

    def loss(values: list[jax.Array]) -> jax.Array:
        here = flax_pass.Pass(jax.numpy.dtype("float32"), micro_batch.keys, keeps=kept_activations(policy))
        return Objective(None, None, None)(structure.assemble(values), micro_batch, here)

    return loss, [jax.ShapeDtypeStruct(leaf.shape, "float32") for leaf in structure.leaves]


def flax_bytes(context: TrainContext, policy: ActivationCheckpointing | None) -> int:
    """Of everything that the backward pass is handed, without weights."""
    loss, shapes = flax_loss(context, policy)
    _, backward = jax.eval_shape(lambda values: jax.vjp(loss, values), shapes)
    handed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))
    return int(handed - sum(shape.size * shape.dtype.itemsize for shape in shapes))


class Storages(TorchDispatchMode):
    """Of everything that operations put out."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._seen[reference.cdata] = (reference, storage.nbytes())
        return result

    def alive_bytes(self) -> int:
        return sum(size for reference, size in self._seen.values() if not reference.expired())


def torch_bytes(context: TrainContext, policy: ActivationCheckpointing | None) -> int:
    """Of everything that was computed and is alive when the backward pass begins."""
    batch = batch_of(context, 0)
    module = build_model(context.run.model, context.data, context.run.training.seed)
    inputs, targets, keys_B = (torch.from_numpy(array[0]) for array in (batch.inputs, batch.targets, batch.keys))
    micro_batch = Batch(inputs, targets, keys=keys_B.long())
    here = torch_pass.Pass(torch.float32, micro_batch.keys, recompute=recomputation(policy))
    with Storages() as storages:
        loss = TorchObjective(None, None, None)(module, micro_batch, here)
    assert loss.requires_grad
    return storages.alive_bytes()


@pytest.mark.parametrize("model", DEEP)
@pytest.mark.parametrize("framework", ["flax", "deepspeed"])
def test_less_is_kept_the_more_is_computed_again(framework: str, model: str) -> None:
    measure = flax_bytes if framework == "flax" else torch_bytes
    context = context_of(FLAX if framework == "flax" else deepspeed(0), DEEP[model], batch=32)
    everything, dots, full = (
        measure(context, policy)
        for policy in (None, ActivationCheckpointing(policy="dots"), ActivationCheckpointing(policy="full"))
    )
    assert full < dots < 0.9 * everything
    assert full < 0.5 * everything


def test_xla_needs_less_memory_for_a_decoder_that_computes_again() -> None:
    # Not so for a cnn on a CPU: XLA drops the barriers there that keep both computations of a block apart.
    context = context_of(FLAX, DEEP["transformer"], batch=32)
    everything, full = (
        jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis().temp_size_in_bytes
        for loss, shapes in (flax_loss(context, policy) for policy in (None, ActivationCheckpointing(policy="full")))
    )
    assert full < 0.5 * everything
