"""The two compiled functions: one optimizer step, and one evaluation step.

Axes: M micro-steps, G samples of one micro-step of all replicas, b samples of one replica.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from capstan_runtime.contract.training import LossScale
from capstan_runtime.engine import Batch
from capstan_runtime.flax_trainer.custom import CustomStructure
from capstan_runtime.flax_trainer.cuts import Cuts
from capstan_runtime.flax_trainer.forward_pass import Pass, Said
from capstan_runtime.flax_trainer.leaves import Leaf, Structure
from capstan_runtime.flax_trainer.loss_scaling import next_state
from capstan_runtime.flax_trainer.mesh import (
    AXIS,
    EXPERT,
    REPLICATED,
    by_sample,
    manual_axes,
    on_each_device,
    over_replicas,
    put_out,
    summed,
)
from capstan_runtime.flax_trainer.objective import Model, Objective, cross_entropy
from capstan_runtime.flax_trainer.optimizers.gauss_newton import sampled_objective
from capstan_runtime.flax_trainer.optimizers.gradients import Leaves
from capstan_runtime.flax_trainer.optimizers.update import UpdatePlan
from capstan_runtime.flax_trainer.partition import Partition
from capstan_runtime.flax_trainer.pipeline import Pipeline, in_one
from capstan_runtime.flax_trainer.recomputation import Keeps
from capstan_runtime.flax_trainer.sharding import FullSharding

Buffers = tuple[Leaves, Leaves]
"""Themselves, and the averages of those that have one; of none in a run without `training.ema`."""
TrainStep = Callable[..., tuple[Leaves, list[Leaves], Buffers, jax.Array | None, jax.Array]]
EvaluationStep = Callable[..., jax.Array]
Sums = TypeVar("Sums")
Arrays = TypeVar("Arrays")


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
    """What the compiled functions are made from."""

    structure: Structure | CustomStructure
    update: UpdatePlan
    objective: Objective
    dtype: jnp.dtype
    """Of activations and of weights as they are used; the stored weights and all sums are fp32."""
    partition: Partition
    """Which devices of a replica have which part of parameters and their state."""
    keeps: Keeps | None = None
    """Which activations of a block are kept for the backward pass. None: all."""
    scaling: LossScale | None = None
    """How the loss is scaled. None: it is not."""
    cuts: Cuts | None = None
    """How activations are cut over the devices of a replica. None: they are not."""
    stages: int = 1
    """Of layers, through which micro-steps go together. 1: they are computed one after the other."""
    sharding: FullSharding | None = None
    """How parameters and their state are cut over the replicas. None: each has all of them."""
    is_offloaded: bool = False
    """Whether the state comes out of the host's memory, and goes back there."""
    teacher: Structure | None = None
    """Of the model to learn from. None: there is none."""

    def assemble(self, parameters: Leaves, buffers: Leaves) -> Model:
        """The model of parameters as a device keeps them."""
        if self.sharding is not None:
            parameters = self.sharding.usable(self.structure.leaves, parameters)
        return self.structure.assemble([*parameters, *buffers])

    def call(self, batch: Batch[jax.Array], together: int) -> Pass:
        """Of the model with a micro-step of training, or of evaluation, which has no keys; or with `together` of them,
        which go through stages."""
        keeps = self.keeps if batch.keys is not None else None
        return Pass(
            self.dtype,
            batch.keys,
            conditions=batch.conditions,
            keeps=keeps,
            cuts=self.cuts,
            pipeline=Pipeline(self.stages, together) if self.stages > 1 else None,
            experts_over=EXPERT if any(map(self.partition.shared_over, self.structure.leaves)) else None,
        )

    def micro_steps(self, batch: Batch[jax.Array]) -> Batch[jax.Array]:
        """What the model is called with, one after the other: [M, b, …] or, through a pipeline, all at once."""
        return in_one(batch) if self.stages > 1 else batch

    def manual_specs(self) -> tuple[Any, Any]:
        """Of parameters and of their state, what `jax.shard_map` is told."""
        leaves = self.structure.leaves
        if self.sharding is not None:
            cut = [self.sharding.manual_spec(leaf) for leaf in leaves]
        else:
            cut = self.partition.manual_specs(leaves)
        return cut, [cut] * len(self.update.kinds)

    def specs(self) -> tuple[Any, Any]:
        """Of parameters and of their state, how the devices keep them."""
        leaves, kinds = self.structure.leaves, self.update.kinds
        if self.sharding is None:
            return self.partition.specs(leaves), [self.partition.specs(leaves, kind) for kind in kinds]
        cut = [self.sharding.spec(leaf) for leaf in leaves]
        return cut, [cut] * len(kinds)


def compile_train_step(plan: StepPlan, mesh: Mesh) -> jax.stages.Wrapped:
    """`step(parameters, state, buffers, scale, batch, numbers, taught_by)`.

    `buffers` are `Buffers`; `scale` is the state of the loss's scale, or None without one; `taught_by` the teacher's
    values, none without one. The arrays of the batch, [M, G, …], are spread over the devices; numbers as `UpdatePlan`
    gives them. Returns new parameters, state, buffers and scale, in the memory of the old ones, and [loss, gradient
    norm before clipping] or, with a scale, [loss, norm, this step's scale, skipped steps], and after that what the
    model measures, flattened, by name.
    """
    replicas = math.prod(mesh.shape[axis] for axis in over_replicas(mesh))
    mean = functools.partial(_mean_over_replicas, plan, mesh)

    def step(
        parameters: Leaves,
        state: list[Leaves],
        all_buffers: Buffers,
        scale: jax.Array | None,
        batch: Batch[jax.Array],
        numbers: jax.Array,
        taught_by: Leaves,
    ) -> tuple[Leaves, list[Leaves], Buffers, jax.Array | None, jax.Array]:
        buffers, averages = all_buffers
        together, batch = len(batch.inputs), plan.micro_steps(batch)
        factor = numbers[-1] if scale is None else numbers[-1] * scale[0]
        used = plan.update.used(parameters, numbers)
        gradient = jax.value_and_grad(functools.partial(_loss, plan, together), has_aux=True)
        sums = _sum_over_micro_steps(functools.partial(gradient, used, buffers, taught_by, factor), batch)
        terms = replicas * len(batch.inputs)
        if plan.sharding is None:
            (loss, (proposals, measured)), gradients = mean(*sums, terms)
        else:  # whose gradients are summed over the replicas where weights were gathered
            (loss, (proposals, measured)), _ = mean(sums[0], [], terms)
            gradients = [total / terms for total in sums[1]]
        if scale is not None:
            loss, gradients = jax.tree.map(lambda scaled: scaled / scale[0], (loss, gradients))
        hessian = None
        if plan.update.samples_hessian:
            sampled = functools.partial(_sampled_hessian, plan, mean, replicas, together)
            hessian = sampled(used, buffers, batch, numbers)
        parameters, state, norm = plan.update.apply(parameters, state, gradients, numbers, hessian)
        named = zip(plan.structure.buffers, buffers, strict=True)
        moved = [proposals.get(leaf.name, buffer) for leaf, buffer in named]
        averaged = plan.update.averaged(plan.structure.buffers, moved, averages, numbers)
        all_buffers = plan.update.unless_dropped(norm, (moved, averaged), all_buffers)
        more = [measured[name].reshape(-1) for name in sorted(measured)]
        if scale is None or plan.scaling is None:
            return parameters, state, all_buffers, None, jnp.concatenate([jnp.stack([loss, norm]), *more])
        new_scale = next_state(plan.scaling, scale, jnp.isfinite(norm))
        told = jnp.stack([loss, norm, scale[0], new_scale[-1]])
        return parameters, state, all_buffers, new_scale, jnp.concatenate([told, *more])

    cut, cut_state = plan.manual_specs()
    spread = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(cut, cut_state, REPLICATED, REPLICATED, by_sample(mesh), REPLICATED, REPLICATED),
        out_specs=(cut, cut_state, REPLICATED, REPLICATED, REPLICATED),
        # Unchecked, gradients stay local until the one sum after the last micro-step.
        check_vma=False,
        **manual_axes(mesh),
    )
    put = put_out(mesh, (*plan.specs(), REPLICATED, REPLICATED, REPLICATED))
    whole = _with_state_in_host_memory(spread) if plan.is_offloaded else spread
    return jax.jit(whole, donate_argnums=(0, 1, 2, 3), **put)


def _loss(
    plan: StepPlan,
    together: int,
    parameters: Leaves,
    buffers: Leaves,
    taught_by: Leaves,
    factor: jax.Array,
    batch: Batch[jax.Array],
) -> tuple[jax.Array, tuple[Said, Said]]:
    """That of one call of the model, times `factor`; what the model proposes, and what it measures."""
    gather_layer = plan.sharding.gather_layer if plan.sharding is not None else None
    here = dataclasses.replace(plan.call(batch, together), gather_layer=gather_layer)
    teacher = plan.teacher.assemble(taught_by) if plan.teacher is not None else None
    loss = plan.objective(plan.assemble(parameters, buffers), batch, here, teacher)
    return loss * factor, (here.proposals, here.measured)


def _sampled_hessian(
    plan: StepPlan,
    mean: Callable[..., Any],
    replicas: int,
    together: int,
    parameters: Leaves,
    buffers: Leaves,
    batch: Batch[jax.Array],
    numbers: jax.Array,
) -> Leaves:
    """An estimate of its diagonal if one is due in this step, else zeros."""

    def sampled_loss(parameters: Leaves, buffers: Leaves, batch: Batch[jax.Array]) -> jax.Array:
        model = plan.structure.assemble([*parameters, *buffers])
        return sampled_objective(model, batch, plan.call(batch, together))

    def estimate() -> Leaves:
        sums = _sum_over_micro_steps(functools.partial(jax.grad(sampled_loss), parameters, buffers), batch)
        _, means = mean((), sums, replicas * len(batch.inputs))
        return plan.update.hessian(means, replicas * batch.targets.size)

    is_due = plan.update.named(numbers)["hessian_rate"] > 0
    return jax.lax.cond(is_due, estimate, lambda: [jnp.zeros_like(parameter) for parameter in parameters])


def _with_state_in_host_memory(step: TrainStep) -> TrainStep:
    """`step` whose state is on the devices inside it alone: a part of the program, which XLA overlaps with the rest."""

    def moved(parameters: Leaves, state: list[Leaves], *others: Any) -> Any:
        parameters, state, *rest = step(parameters, on_devices(state), *others)
        return parameters, jax.device_put(state, jax.memory.Space.Host), *rest

    return moved


def on_devices(arrays: Arrays) -> Arrays:
    """`arrays`, or lists of them, that were in the host's memory; inside a compiled function."""
    return jax.device_put(arrays, jax.memory.Space.Device)


def _sum_over_micro_steps(function: Callable[[Batch[jax.Array]], Sums], batch: Batch[jax.Array]) -> Sums:
    """The sum of `function` over the micro-steps of `batch`, one micro-step's activations at a time."""
    micro_steps = len(batch.inputs)
    first = jax.tree.map(lambda array: array[0], batch)
    if micro_steps == 1:
        return function(first)

    def micro_step(sums: Sums, batch: Batch[jax.Array]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, function(batch)), None

    shapes = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), shapes)
    # XLA's CPU backend computes convolutions inside a loop 15 times more slowly than outside one (2 cores, jax 0.10).
    unroll = micro_steps if jax.default_backend() == "cpu" else 1
    sums, _ = jax.lax.scan(micro_step, zeros, batch, unroll=unroll)
    return sums


def _mean_over_replicas(plan: StepPlan, mesh: Mesh, sums: Sums, gradients: Leaves, terms: int) -> tuple[Sums, Leaves]:
    """The sums over all replicas divided by `terms`; of the gradients of experts that replicas share, the sums over
    those that have the same experts, who have met the samples of all others."""
    leaves = plan.structure.leaves[: len(gradients)]
    specs = plan.partition.specs_within_replica(leaves)
    of_shared = [number for number, leaf in enumerate(leaves) if plan.partition.shared_over(leaf)]
    of_all = [number for number in range(len(leaves)) if number not in of_shared]

    def total(sums: Any, specs: Any, axes: Sequence[str]) -> Any:
        def as_one(sums: Any) -> Any:
            # As one array: gloo pays per message, and nobody combines them for it as XLA does for NCCL. 2.7 times
            # faster steps for a CNN of 20 parameters on two processes.
            flat, restore = ravel_pytree(sums)
            return restore(summed(flat, axes, mesh))

        if jax.default_backend() == "cpu" and any(mesh.shape[axis] > 1 for axis in axes):
            sums = on_each_device(as_one, (specs,), specs)(sums)
        else:
            sums = summed(sums, axes, mesh)
        return jax.tree.map(lambda total: total / terms, sums)

    def chosen(values: Any, numbers: list[int]) -> list[Any]:
        return [values[number] for number in numbers]

    everything = REPLICATED, chosen(specs, of_all)
    sums, means = total((sums, chosen(gradients, of_all)), everything, over_replicas(mesh))
    if not of_shared:
        return sums, means
    of_experts = total(chosen(gradients, of_shared), chosen(specs, of_shared), (AXIS,))
    by_number = dict(zip([*of_all, *of_shared], [*means, *of_experts], strict=True))
    return sums, chosen(by_number, list(range(len(leaves))))


def compile_evaluation_step(plan: StepPlan, mesh: Mesh) -> EvaluationStep:
    """`step(values, batch)` over the replicas of this process alone, so nobody waits for others.

    values are the parameters, then the buffers.
    Returns [loss, correct, count], fp32 [3]: sums over samples, or over tokens, each times its sample's weight.
    """

    def step(values: Leaves, batch: Batch[jax.Array]) -> jax.Array:
        together = len(batch.inputs)
        model = plan.structure.assemble(values)

        def sums_of(batch: Batch[jax.Array]) -> jax.Array:
            logits, targets = model(batch.inputs, plan.call(batch, together)), batch.targets
            assert batch.weights is not None
            weights = jnp.broadcast_to(batch.weights.reshape(-1, *[1] * (targets.ndim - 1)), targets.shape)
            loss = jnp.sum(cross_entropy(logits, targets) * weights)
            correct = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights)
            return jnp.stack([loss, correct, jnp.sum(weights)])

        sums = _sum_over_micro_steps(sums_of, plan.micro_steps(batch))
        return summed(sums, over_replicas(mesh), mesh)

    cut = plan.partition.manual_specs([*plan.structure.leaves, *plan.structure.buffers])
    specs: Any = {"in_specs": (cut, by_sample(mesh)), "out_specs": REPLICATED, **manual_axes(mesh)}
    spread = jax.shard_map(step, mesh=mesh, check_vma=False, **specs)
    return jax.jit(spread, **put_out(mesh, REPLICATED))


def compile_gathering(leaves: Sequence[Leaf], sharding: FullSharding, mesh: Mesh) -> Callable[[Leaves], Leaves]:
    """`gather(pieces)`: every leaf whole on every device. Collective."""

    def gather(pieces: Leaves) -> Leaves:
        return [sharding.gather(leaf, piece) for leaf, piece in zip(leaves, pieces, strict=True)]

    specs: Any = {"in_specs": ([sharding.manual_spec(leaf) for leaf in leaves],), "out_specs": REPLICATED}
    spread = jax.shard_map(gather, mesh=mesh, check_vma=False, **specs, **manual_axes(mesh))
    return jax.jit(spread, **put_out(mesh, REPLICATED))
