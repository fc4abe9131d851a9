"""The devices of a run as meshes: all of them, and those that hold the replicas of which this process has a part.

Without `parallelism` there is the axis "data" alone. Only that and, where replicas share experts, "expert" are manual
(`jax.shard_map`); the others are left to XLA's partitioner (GSPMD, 2105.04663), which computes what the program says of
whole arrays wherever these are cut.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from capstan_runtime.context import TrainContext
from capstan_runtime.errors import ConfigError
from capstan_runtime.parallel.layout import AXES, Layout

AXIS: Final = "data"
REPLICATED = PartitionSpec()
EXPERT: Final = "expert"
"""The second of two axes over the replicas, where they share experts; those of one group are next to each other."""


@dataclass(frozen=True, slots=True)
class Meshes:
    """Of one process of a run."""

    everybody: Mesh
    own: Mesh
    """Of the replicas that this process's devices hold, or take part in, and of those that share experts with them."""
    local: Mesh
    """Of this process's devices alone: over "data", and over the rest of a replica, which has the same samples."""
    is_first: bool
    """Whether this is the first of the processes that hold the devices of `own`."""
    shares: int
    """How many shares of a batch the processes of `own` have, each of its own."""

    @classmethod
    def of(cls, context: TrainContext) -> Self:
        """Raises ConfigError if devices or samples cannot be divided as the run asks."""
        parallelism, local = context.run.parallelism, jax.local_devices()
        try:
            layout = Layout.of(parallelism, jax.device_count())
        except ValueError as error:
            raise ConfigError(
                f"spec.parallelism: {error}; choose other degrees, or another number of workers"
            ) from None
        replica = layout.devices // layout.size(AXIS)
        processes = max(1, replica // len(local))
        if processes != context.workers_per_replica or max(replica, len(local)) % min(replica, len(local)):
            raise ConfigError(
                f"spec.parallelism: a replica is spread over {replica} devices, and each worker has {len(local)}, not "
                f"as many as make {context.workers_per_replica} workers a replica; set workers.gpus to what they have"
            )
        replicas = max(1, len(local) // replica)
        _require_even_samples(context, replicas)
        if parallelism is None:
            here = _mesh(local, (len(local),))
            return cls(_mesh(jax.devices(), (layout.devices,)), here, here, is_first=True, shares=1)
        if max(replicas, layout.expert) % min(replicas, layout.expert):
            raise ConfigError(
                f"spec.parallelism.expert: {layout.expert} replicas share the experts, and each worker holds {replicas}"
                "; choose a divisor or a multiple"
            )
        together = max(replicas, layout.expert)
        group, number = divmod(jax.process_index(), together * replica // len(local))
        own = jax.devices()[group * together * replica : (group + 1) * together * replica]
        return cls(
            everybody=_mesh(jax.devices(), _shape(layout, layout.size(AXIS))),
            own=_mesh(own, _shape(layout, together)),
            local=_mesh(local, (replicas, len(local) // replicas)),
            is_first=number == 0,
            shares=together // replicas,
        )

    def by_sample(self, mesh: Mesh) -> NamedSharding | None:
        """How batches are spread over `mesh`. None: as over `local`, which is the same."""
        return None if mesh == self.local else NamedSharding(mesh, by_sample(mesh))


def manual_axes(mesh: Mesh) -> dict[str, Any]:
    """What `jax.shard_map` is told beside the mesh: that replicas are its own business, and other axes that cut
    something are not."""
    if mesh.axis_names == (AXIS,):
        return {}
    return {"axis_names": {*over_replicas(mesh), *(axis for axis in ("pipeline",) if mesh.shape[axis] == 1)}}


def put_out(mesh: Mesh, specs: Any) -> dict[str, Any]:
    """What `jax.jit` is told of the function's results: how the devices share them. Nothing, where "data" is the only
    axis and `jax.shard_map` says it all."""
    if mesh.axis_names == (AXIS,):
        return {}
    return {"out_shardings": jax.tree.map(functools.partial(NamedSharding, mesh), specs)}


def over_replicas(mesh: Mesh) -> tuple[str, ...]:
    """The axes over the replicas."""
    return tuple(axis for axis in (AXIS, EXPERT) if axis in mesh.axis_names)


def by_sample(mesh: Mesh) -> PartitionSpec:
    """Of [M, G, …]: each replica has its share of every micro-step."""
    return PartitionSpec(None, over_replicas(mesh))


def summed(sums: Any, axes: Sequence[str], mesh: Mesh) -> Any:
    """Over the replicas along `axes`."""
    several = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    return jax.lax.psum(sums, several) if several else sums


def on_each_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` of what each device has of its arguments, inside `jax.shard_map` over replicas."""
    mesh = jax.sharding.get_abstract_mesh()
    others = set(mesh.axis_names) - set(mesh.manual_axes)
    if not others:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, axis_names=others, check_vma=False)


def _mesh(devices: Sequence[jax.Device], shape: tuple[int, ...]) -> Mesh:
    names = {1: (AXIS,), 2: (AXIS, "rest"), 4: AXES, 5: (AXIS, EXPERT, *AXES[1:])}[len(shape)]
    return Mesh(np.asarray(devices).reshape(shape), names, axis_types=(AxisType.Auto,) * len(names))


def _shape(layout: Layout, replicas: int) -> tuple[int, ...]:
    """Of a mesh of so many replicas."""
    if layout.expert == 1:
        return (replicas, *layout.shape[1:])
    return (replicas // layout.expert, layout.expert, *layout.shape[1:])


def _require_even_samples(context: TrainContext, replicas: int) -> None:
    training, samples = context.run.training, context.samples_per_micro_step
    if samples % replicas:
        what = "devices" if context.run.parallelism is None else "replicas"
        raise ConfigError(
            f"spec.training.globalBatchSize: {training.global_batch_size} over {training.virtual_ranks} virtual "
            f"ranks is {samples} samples a micro-step, which {replicas} {what} per worker do not divide; choose a "
            "multiple"
        )
    context.require_whole_slices(replicas)
