"""One rank of a Flax run: data parallel over all devices of all processes."""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from capstan_runtime.context import TrainContext
from capstan_runtime.decoder_spec import as_served
from capstan_runtime.engine import Array, Batch, EvaluationSums, Hardware, LocalTensor, TensorSource, Trained
from capstan_runtime.errors import GpuOutOfMemory
from capstan_runtime.flax_trainer.custom import CustomStructure
from capstan_runtime.flax_trainer.cuts import cuts_of
from capstan_runtime.flax_trainer.leaves import Leaf, Structure, replicate, whole_weights
from capstan_runtime.flax_trainer.loss_scaling import as_array, as_state
from capstan_runtime.flax_trainer.mesh import AXIS, REPLICATED, Meshes, by_sample
from capstan_runtime.flax_trainer.native_threads import native_threads_seconds
from capstan_runtime.flax_trainer.objective import Objective
from capstan_runtime.flax_trainer.optimizers.update import UpdatePlan
from capstan_runtime.flax_trainer.partition import Partition
from capstan_runtime.flax_trainer.pipeline import stages_of
from capstan_runtime.flax_trainer.recomputation import kept_activations
from capstan_runtime.flax_trainer.result import FlaxStepResult
from capstan_runtime.flax_trainer.sharding import FullSharding
from capstan_runtime.flax_trainer.step import (
    Buffers,
    EvaluationStep,
    StepPlan,
    compile_evaluation_step,
    compile_gathering,
    compile_train_step,
    on_devices,
)
from capstan_runtime.flax_trainer.world import World, cache_of_every_rank, cached_by_every_rank, translated_errors
from capstan_runtime.integers import holds_integers
from capstan_runtime.loss_scaling import ScaleState, read_scale
from capstan_runtime.losses import embedding_width
from capstan_runtime.model_signature import data_spec_of, rank_of
from capstan_runtime.model_spec import STEP_NAME, read_tensor
from capstan_runtime.quantization import export_integers, sees_integers
from capstan_runtime.updates import EMA, StateKind

_DTYPES = {"fp32": jnp.dtype(jnp.float32), "bf16": jnp.dtype(jnp.bfloat16), "fp16": jnp.dtype(jnp.float16)}
_HOST_MEMORY = "pinned_host"
"""JAX's name for pages that a GPU reads by itself."""
_MORE_THAN_THERE_IS = 1 << 56
"""Bytes; beyond what any address space holds."""


class FlaxEngine:
    """Parameters and their state are flat lists of arrays, replicated or, with `fsdp`, cut over the devices; one
    donated compiled call is one step."""

    def __init__(self, context: TrainContext) -> None:
        """Joins the world. Raises PeerLost if others do not, ConfigError if model, data and devices do not fit."""
        training = context.run.training
        configure_jax(training.precision, context.environ)
        self._architecture = context.run.model
        self._world = World(context.membership, context.deadlines)
        self.rank, self.world = self._world.rank, self._world.size
        self._structure = self._structure_of(context)
        meshes = Meshes.of(context)
        self.devices = meshes.local.shape[AXIS]
        self.hardware = Hardware(
            jax.device_count(), None if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
        )
        self._device_memory = context.device_memory
        self._finds_sums, self._data_world, self._own_shares = meshes.is_first, context.data_world, meshes.shares
        self._replicated, self._own_mesh = NamedSharding(meshes.everybody, REPLICATED), meshes.own
        self._by_sample, self._own_by_sample = map(meshes.by_sample, (meshes.everybody, meshes.own))
        self._state_memory = None if context.run.framework.value.offload is None else _HOST_MEMORY
        self._scaling = training.loss_scaling
        drops_non_finite = context.run.numerical.non_finite == "ignore" or self._scaling is not None
        leaves = self._structure.leaves
        self._partition = Partition(leaves, meshes.everybody, context.run.model)
        # As every device has a model that is not the run's own.
        self._whole = Partition([], meshes.local, context.run.model)
        is_fully_sharded = context.run.framework.value.fsdp is not None
        self._sharding = FullSharding(leaves, meshes.everybody) if is_fully_sharded else None
        cut_over = [self._sharding.axis if self._sharding else self._partition.shared_over(leaf) for leaf in leaves]
        compression = context.run.compression
        prune, self._quantize = (compression.prune, compression.quantize) if compression is not None else (None, None)
        self._update = UpdatePlan(
            context.run.optimizer, training, leaves, drops_non_finite, cut_over, prune, self._quantize
        )
        distill = compression.distill if compression is not None else None
        embedding = embedding_width(context.run.model)
        objective = Objective(context.run.loss, context.run.regularization, embedding, distill)
        self._teacher = context.teacher
        self._taught_by: list[jax.Array] = []
        keeps = kept_activations(training.activation_checkpointing)
        dtype = _DTYPES[training.precision]
        plan = self._plan = StepPlan(
            self._structure,
            self._update,
            objective,
            dtype,
            self._partition,
            keeps,
            self._scaling,
            cuts_of(context.run.parallelism, context.data),
            stages_of(context.run.parallelism),
            self._sharding,
            self._state_memory is not None,
            None if context.teacher is None else _served(context.teacher),
        )
        if self._sharding is not None:
            self._gather = cached_by_every_rank(compile_gathering(leaves, self._sharding, meshes.everybody))
        self._program = compile_train_step(plan, meshes.everybody)
        self._train_step = cached_by_every_rank(self._program)
        self._zeros = jax.jit(self._update.zeros, out_shardings=NamedSharding(meshes.own, REPLICATED))
        self._as_if_integers = jax.jit(self._update.as_if_integers)
        self._is_quantized = False
        self._evaluation_step = cached_by_every_rank(compile_evaluation_step(plan, meshes.own))
        self._on_devices = jax.jit(on_devices)
        self._to_devices = _placing(NamedSharding(meshes.local, by_sample(meshes.local)))
        self._seconds_in_steps = self._seconds_in_evaluations = 0.0
        self._loss_factor = 1.0
        self._step = 0
        self._parameters = [self._place_leaf(leaf, leaf.initial_value(training.seed)) for leaf in leaves]
        self.parameters = sum(math.prod(leaf.shape) for leaf in leaves)
        buffers = self._structure.buffers
        self._averaged_buffers = [leaf for leaf in buffers if leaf.is_averaged] if training.ema is not None else []
        self._buffers: Buffers = (
            [self._place(leaf.initial_value(training.seed)) for leaf in buffers],
            [self._place(leaf.initial_value(training.seed)) for leaf in self._averaged_buffers],
        )
        self._state = [
            [self._place_leaf(leaf, leaf.initial_state(kind, training.seed), self._state_memory) for leaf in leaves]
            for kind in self._update.kinds
        ]
        self._scale = None if self._scaling is None else self._place(as_array(ScaleState(self._scaling.initial)))

    def _structure_of(self, context: TrainContext) -> Structure | CustomStructure:
        custom = context.run.model.custom
        if custom is None:
            return Structure(context.run.model, context.data, rank_of(context.run))
        structure = CustomStructure(custom, context.data, context.run.training.seed)
        structure.require_same_weights(self.exchange)
        return structure

    def read_teacher(self) -> None:
        if self._teacher is not None and self._plan.teacher is not None:
            self._taught_by = self._placed(self._plan.teacher, self._teacher)

    def _placed(self, structure: Structure, trained: Trained) -> list[jax.Array]:
        """A model that is asked and not trained: whole on every device, and no part of the state."""
        return [self._place(value) for value in structure.read_served(trained.tensors)]

    def memory_limit(self) -> int | None:
        limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
        return self._device_memory or min((limit for limit in limits if limit is not None), default=None)

    def step_memory(self, batch: Batch) -> int | None:
        """As the compiler has laid it out. It is the program that the steps run: nothing is compiled twice."""
        numbers = self._update.numbers(0.0, self._step + 1, self._loss_factor)
        try:
            with translated_errors(), cache_of_every_rank():
                spread = self._spread(batch._replace(weights=None))
                state = self._parameters, self._state, self._buffers, self._scale
                lowered = self._program.lower(*state, spread, numbers, self._taught_by)
                used = lowered.compile().memory_analysis()
        except GpuOutOfMemory:
            return None
        if used is None:  # by a compiler that does not say
            return 0
        kept = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
        return kept + used.temp_size_in_bytes

    def train_step(self, batch: Batch, learning_rate: float) -> FlaxStepResult:
        began = time.thread_time()
        self._step += 1
        numbers = self._update.numbers(learning_rate, self._step, self._loss_factor)
        self._loss_factor = 1.0
        with translated_errors():
            spread = self._spread(batch._replace(weights=None))
            self._parameters, self._state, self._buffers, self._scale, values = self._train_step(
                self._parameters, self._state, self._buffers, self._scale, spread, numbers, self._taught_by
            )
        self._seconds_in_steps += time.thread_time() - began
        return FlaxStepResult(self._architecture, values, self._scale is not None)

    def evaluate(self, batches: Iterable[Batch], trained: Trained | None = None) -> EvaluationSums:
        began = native_threads_seconds()
        with translated_errors():
            step, values = self._own_evaluation() if trained is None else self._evaluation_of(trained)
            sums: list[jax.Array] = []
            for batch in batches:
                sums.append(step(values, self._spread_here(batch._replace(keys=None))))
                # One batch ahead of the device and no more: the loop tells of it, and hears of a stop, between two.
                jax.block_until_ready(sums[-2:-1])
            found = [np.asarray(each.addressable_data(0), np.float64) for each in sums]
            loss, correct, count = np.sum(found, axis=0).tolist()
        self._seconds_in_evaluations += native_threads_seconds() - began
        return EvaluationSums(loss, correct, count) if self._finds_sums else EvaluationSums(0.0, 0.0, 0.0)

    def _own_evaluation(self) -> tuple[EvaluationStep, list[jax.Array]]:
        parameters, buffers = self._evaluated()
        if self._sharding is not None:
            parameters = self._gather(parameters)
        parameters = [self._of_own_replicas(value) for value in parameters]
        if sees_integers(self._quantize, self._step):
            parameters = self._as_if_integers(parameters)
        return self._evaluation_step, [*parameters, *map(self._of_own_replicas, buffers)]

    def _evaluation_of(self, trained: Trained) -> tuple[EvaluationStep, list[jax.Array]]:
        is_teacher = self._teacher is not None and trained.root == self._teacher.root
        structure = self._plan.teacher if is_teacher else _served(trained)
        assert structure is not None
        values = self._taught_by if is_teacher else self._placed(structure, trained)
        plan = StepPlan(structure, self._update, self._plan.objective, self._plan.dtype, self._whole)
        step = cached_by_every_rank(compile_evaluation_step(plan, self._own_mesh))
        return step, [self._of_own_replicas(value) for value in values]

    def quantize(self) -> None:
        with translated_errors():
            parameters, buffers = self._evaluated()
            self._parameters, self._buffers = self._as_if_integers(parameters), (buffers, self._buffers[1])
        self._is_quantized = True

    def sparsity(self) -> float | None:
        sizes = [math.prod(self._structure.leaves[number].shape) for number in self._update.pruned]
        if not sizes:
            return None
        with translated_errors():
            counts = self._zeros([self._of_own_replicas(weights) for weights in self._parameters])
            whole = [np.asarray(count.addressable_data(0)) for count in counts]
        return sum(int(count.sum(dtype=np.int64)) for count in whole) / sum(sizes)

    def export_state(self) -> Iterator[LocalTensor]:
        with translated_errors():
            if self._is_quantized:
                yield from self._export_quantized()
                return
            everywhere, cut = self._values(), []
            if self._sharding is not None:
                cut, everywhere = everywhere[:-2], everywhere[-2:]
                yield from self._sharding.export(cut)
            yield from self._partition.export(everywhere, self.rank)
            if self.rank == 0:
                yield LocalTensor(STEP_NAME, (), 0, np.asarray([self._step], np.int64))
            if self._scale is not None and self.rank == 0:
                yield from as_state(np.asarray(self._scale.addressable_data(0))).export()

    def import_state(self, source: TensorSource) -> None:
        self._is_quantized = holds_integers(source)
        # One by one in place of the old: the device need not hold the state twice.
        for number, leaf in enumerate(self._structure.leaves):
            self._parameters[number] = self._read_leaf(leaf, source, None)
            for kind, arrays in () if self._is_quantized else self._states():
                arrays[number] = self._read_leaf(leaf, source, kind)
        averages = self._buffers[1]
        if not self._is_quantized:
            averages = [self._place(leaf.read(source, EMA)) for leaf in self._averaged_buffers]
        self._buffers = (
            [self._place(leaf.read(source, None)) for leaf in self._structure.buffers],
            averages,
        )
        if self._scaling is not None and not self._is_quantized:
            self._scale = self._place(as_array(read_scale(source, self._scaling)))
        self._step = int(read_tensor(source, STEP_NAME, ()))

    def exchange(self, payload: bytes) -> list[bytes]:
        return self._world.exchange(payload)

    def busy_seconds(self) -> float | None:
        """On CPUs, processor time: of the steps in this thread and in XLA's, which wait for peers without using any. On
        GPUs a step's kernels cannot be told from its collectives."""
        if jax.default_backend() != "cpu":
            return None
        return self._seconds_in_steps + native_threads_seconds() - self._seconds_in_evaluations

    def trace(self, folder: Path) -> Callable[[], None]:
        """For TensorBoard's profile plugin, XProf and Perfetto."""
        jax.profiler.start_trace(str(folder))
        return jax.profiler.stop_trace

    def poison_next_step(self) -> None:
        self._loss_factor = math.nan

    def exhaust_memory(self) -> NoReturn:
        with translated_errors():
            jnp.zeros(_MORE_THAN_THERE_IS, jnp.uint8).block_until_ready()
        raise AssertionError(f"there were {_MORE_THAN_THERE_IS} bytes to be had")

    def close(self) -> None:
        self._world.leave()

    def _values(self) -> list[tuple[str | None, list[Leaf], list[jax.Array]]]:
        """The arrays by kind of state, None for parameters and buffers, with what each is."""
        structure = self._structure
        return [
            (None, structure.leaves, self._parameters),
            *((kind.name, structure.leaves, arrays) for kind, arrays in self._states()),
            (None, structure.buffers, self._buffers[0]),
            (EMA, self._averaged_buffers, self._buffers[1]),
        ]

    def _export_quantized(self) -> Iterator[LocalTensor]:
        assert self._quantize is not None
        structure = self._structure
        stored = zip([*structure.leaves, *structure.buffers], [*self._parameters, *self._buffers[0]], strict=True)
        weights = [weight for leaf, array in stored for weight in whole_weights(leaf, array)]
        return export_integers(weights, self._step, self._quantize.bits, self.rank, self.world)

    def _states(self) -> Iterable[tuple[StateKind, list[jax.Array]]]:
        return zip(self._update.kinds, self._state, strict=True)

    def _evaluated(self) -> tuple[list[jax.Array], list[jax.Array]]:
        """Parameters and buffers, or their averages, where the run keeps them; on the devices."""
        if self._is_quantized:  # of whichever of the two
            return self._parameters, self._buffers[0]
        parameters = next((arrays for kind, arrays in self._states() if kind.name == EMA), None)
        if parameters is None:
            return self._parameters, self._buffers[0]
        if self._state_memory is not None:
            parameters = self._on_devices(parameters)
        averages = dict(zip((leaf.name for leaf in self._averaged_buffers), self._buffers[1], strict=True))
        named = zip(self._structure.buffers, self._buffers[0], strict=True)
        return parameters, [averages.get(leaf.name, own) for leaf, own in named]

    def _spread(self, batch: Batch[Array]) -> Batch[jax.Array]:
        """This rank's [M, b, …] as its part of [M, G, …], which is spread over all replicas."""
        return self._as_part(self._to_devices(batch), self._by_sample, self._data_world)

    def _spread_here(self, batch: Batch[Array]) -> Batch[jax.Array]:
        """This rank's [M, b, …] over its own replicas."""
        return self._as_part(self._to_devices(batch), self._own_by_sample, self._own_shares)

    def _as_part(self, local: Batch[jax.Array], sharding: NamedSharding | None, parts: int) -> Batch[jax.Array]:
        if sharding is None:
            return local

        def part(array: jax.Array) -> jax.Array:
            shape = (array.shape[0], array.shape[1] * parts, *array.shape[2:])
            shards = [shard.data for shard in array.addressable_shards]
            return jax.make_array_from_single_device_arrays(shape, sharding, shards)

        return jax.tree.map(part, local)

    def _place(self, value: np.ndarray) -> jax.Array:
        with translated_errors():
            return replicate(value, self._replicated)

    def _place_leaf(self, leaf: Leaf, whole: np.ndarray, memory: str | None = None) -> jax.Array:
        with translated_errors():
            return (self._sharding or self._partition).place(leaf, whole, memory)

    def _read_leaf(self, leaf: Leaf, source: TensorSource, kind: StateKind | None) -> jax.Array:
        """Parameters, or their state of a kind, as they are kept here."""
        memory = None if kind is None else self._state_memory
        with translated_errors():
            return (self._sharding or self._partition).read(leaf, source, kind, memory)

    def _of_own_replicas(self, array: jax.Array) -> jax.Array:
        """A view of an array as one that only the processes of this replica know."""
        shards = [shard.data for shard in array.addressable_shards]
        assert isinstance(array.sharding, NamedSharding)
        sharding = NamedSharding(self._own_mesh, array.sharding.spec)
        return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)


def _served(trained: Trained) -> Structure:
    signature = trained.signature
    return Structure(as_served(signature.model), data_spec_of(signature), signature.low_rank)


def _placing(sharding: NamedSharding) -> Callable[[Batch[Array]], Batch[jax.Array]]:
    """What takes a batch to this process's devices."""
    if sharding.mesh.size > 1:  # which a compiled function does no faster, and not at all beside other processes
        return functools.partial(jax.device_put, device=sharding)
    # A compiled function that does nothing takes arrays to the device in 15 us; `device_put` takes 100.
    return jax.jit(lambda batch: batch, in_shardings=sharding)


def configure_jax(precision: str, environ: Mapping[str, str]) -> None:
    """Settings of the whole process, before JAX looks at its devices."""
    if precision == "fp32":
        # On GPUs JAX would round the inputs of fp32 products to 10 bits (TF32): fp32 means fp32.
        jax.config.update("jax_default_matmul_precision", "highest")
    if environ.get("JAX_COMPILATION_CACHE_DIR"):
        # Worth keeping from 0.2 s on: a restart compiles only the two functions of step.py and some trifles.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
