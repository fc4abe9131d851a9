"""torch.distributed's collectives, in place or into memory that is there already, one process per rank."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from capstan_runtime.bench.collectives import Values
from capstan_runtime.contract.run_config import Deadlines, Membership
from capstan_runtime.contract.workloads import Operation
from capstan_runtime.deepspeed_trainer.world import World, choose_device, translated_errors

_OPERATIONS: dict[Operation, Callable[[Tensor, Tensor], object]] = {
    "allReduce": lambda output, _: dist.all_reduce(output),
    "allGather": dist.all_gather_single,
    "reduceScatter": dist.reduce_scatter_single,
    "allToAll": dist.all_to_all_single,
}
_GLOO_NOTES = (
    "torch's gloo has no reduce-scatter of its own: it sums everything everywhere and keeps a part, so it moves twice "
    "what its bus bandwidth counts (pytorch/pytorch pull request 118911)",
)


class TorchRanks:
    """The `Ranks` of torch processes."""

    def __init__(self, membership: Membership, deadlines: Deadlines) -> None:
        """Waits until all have joined. Raises PeerLost if they have not by `deadlines.form`, ConfigError if this
        process sees several GPUs."""
        self._device = choose_device()
        self._world = World(membership, deadlines, self._device)
        self.rank, self.size = self._world.rank, self._world.size
        self.exchange = self._world.exchange
        self.backend = dist.get_backend()
        self.notes = _GLOO_NOTES if self.backend == "gloo" else ()

    def prepare(self, operation: Operation, items: int) -> "_Call":
        sizes = {"allGather": (items // self.size, items), "reduceScatter": (items, items // self.size)}
        return _Call(operation, *sizes.get(operation, (items, items)), self._device)

    def leave(self) -> None:
        self._world.leave()


class _Call:
    def __init__(self, operation: Operation, incoming: int, outgoing: int, device: torch.device) -> None:
        self._function = _OPERATIONS[operation]
        self._output = torch.empty(outgoing, device=device)
        self._input = self._output if operation == "allReduce" else torch.empty(incoming, device=device)
        self._device = device

    def load(self, values: Values) -> None:
        self._input.copy_(torch.from_numpy(values))

    def run(self) -> None:
        with translated_errors():
            self._function(self._output, self._input)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

    def result(self) -> Values:
        return self._output.cpu().numpy()


join = TorchRanks
