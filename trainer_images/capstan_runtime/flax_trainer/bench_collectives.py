"""JAX's collectives, as compiled programs call them: one operation under `shard_map`, one device per process."""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capstan_runtime.bench.collectives import Values
from capstan_runtime.contract.run_config import Deadlines, Membership
from capstan_runtime.contract.workloads import Operation
from capstan_runtime.flax_trainer.world import World, translated_errors

_AXIS = "ranks"
_OPERATIONS: dict[Operation, Callable[[jax.Array], jax.Array]] = {
    "allReduce": lambda own: lax.psum(own, _AXIS),
    "allGather": lambda own: lax.all_gather(own, _AXIS, tiled=True),
    "reduceScatter": lambda own: lax.psum_scatter(own, _AXIS, tiled=True),
    "allToAll": lambda own: lax.all_to_all(own, _AXIS, 0, 0, tiled=True),
}


class FlaxRanks:
    """The `Ranks` of JAX processes."""

    def __init__(self, membership: Membership, deadlines: Deadlines) -> None:
        """Waits until all have joined. Raises PeerLost if they have not by `deadlines.form`."""
        self._world = World(membership, deadlines)
        self.rank, self.size = self._world.rank, self._world.size
        self.exchange = self._world.exchange
        self.backend = "gloo" if jax.default_backend() == "cpu" else "nccl"
        first = {device.process_index: device for device in reversed(jax.devices())}
        devices = np.asarray([first[process] for process in range(self.size)])
        self._sharding = NamedSharding(Mesh(devices, (_AXIS,)), PartitionSpec(_AXIS))
        unused = len(jax.local_devices()) - 1
        self.notes = (f"{unused} more devices of this process take no part",) if unused else ()

    def prepare(self, operation: Operation, items: int) -> "_Call":
        return _Call(operation, self._sharding, self.size)

    def leave(self) -> None:
        self._world.leave()


class _Call:
    """What goes in stays as it is: results of JAX are new arrays, as in a training step."""

    def __init__(self, operation: Operation, sharding: NamedSharding, ranks: int) -> None:
        self._sharding, self._ranks = sharding, ranks
        spec = sharding.spec
        self._function = jax.jit(
            jax.shard_map(_OPERATIONS[operation], mesh=sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False)
        )

    def load(self, values: Values) -> None:
        shape = (self._ranks * values.size,)
        self._input = jax.make_array_from_process_local_data(self._sharding, values, shape)

    def run(self) -> None:
        with translated_errors():
            self._output = self._function(self._input).block_until_ready()

    def result(self) -> Values:
        return np.asarray(self._output.addressable_data(0))


join = FlaxRanks
