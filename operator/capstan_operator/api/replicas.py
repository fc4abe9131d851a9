"""How many workers hold one replica of a model together, and which numbers of workers make whole replicas.

`spec` is a Run: anything with `parallelism`, `training` and `workers`. The texts are the same in CEL.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from capstan_runtime.contract.parallelism import Parallelism

_CEL_DEVICES = (
    "(has(self.parallelism) ? self.parallelism.tensor * self.parallelism.sequence * self.parallelism.pipeline : 1)"
)
_CEL_OWN = "(self.workers.gpus > 1 ? self.workers.gpus : 1)"
CEL_WORKERS_PER_REPLICA = f"[{_CEL_DEVICES} / {_CEL_OWN}].map(n, n > 1 ? n : 1)[0]"
CEL_RANKS = (
    f"(has(self.training.virtualRanks) ? self.training.virtualRanks : self.workers.max / {CEL_WORKERS_PER_REPLICA})"
)
"""`virtual_ranks` of a Run."""
CEL_MIN = "(has(self.workers.min) ? self.workers.min : self.workers.max)"
"""`min_workers` of a Run."""
_CEL_ENDS = f"[{CEL_MIN}, self.workers.max]"
_CEL_UNEVEN = f"{_CEL_ENDS}.filter(w, w % {CEL_WORKERS_PER_REPLICA} != 0)"
_CEL_REPLICAS = f"{_CEL_ENDS}.map(w, w * {_CEL_OWN} / {_CEL_DEVICES})"

REPLICA_RULES: tuple[tuple[str, str], ...] = (
    (
        f"!has(self.parallelism) || {_CEL_DEVICES} < 1"
        f" || {_CEL_DEVICES} % {_CEL_OWN} == 0 || {_CEL_OWN} % {_CEL_DEVICES} == 0",
        f"'parallelism: tensor x sequence x pipeline is ' + string({_CEL_DEVICES}) + ', and workers.gpus '"
        f" + string({_CEL_OWN}) + ' neither divides it nor is a multiple of it; choose degrees that fit'",
    ),
    (
        f"!has(self.parallelism) || size({_CEL_UNEVEN}) == 0",
        f"'workers: ' + string({_CEL_UNEVEN}[0]) + ' is not a multiple of the ' + string({CEL_WORKERS_PER_REPLICA})"
        " + ' workers over which parallelism spreads one replica; choose a multiple'",
    ),
    (
        f"!has(self.parallelism) || self.parallelism.expert < 1 || {_CEL_DEVICES} < 1"
        f" || [{_CEL_OWN} / {_CEL_DEVICES}].all(n, n < 1 || self.parallelism.expert % n == 0"
        " || n % self.parallelism.expert == 0)",
        "'parallelism: of expert ' + string(self.parallelism.expert) + ' and the '"
        f" + string({_CEL_OWN} / {_CEL_DEVICES})"
        " + ' replicas of each worker neither divides the other; choose degrees that fit'",
    ),
    (
        "!has(self.parallelism) || self.parallelism.expert <= 1"
        f" || {_CEL_DEVICES} < 1 || {_CEL_REPLICAS}.all(n, n % self.parallelism.expert == 0)",
        "'parallelism: expert ' + string(self.parallelism.expert) + ' does not divide the '"
        f" + string({_CEL_REPLICAS}.filter(n, n % self.parallelism.expert != 0)[0])"
        " + ' replicas that the workers hold; choose a divisor'",
    ),
)
"""The twins of `require_whole_replicas` in CEL."""


class Replicas(NamedTuple):
    """How the workers of a run make replicas of its model."""

    workers: int
    """With consecutive ranks, that hold one replica together; 1: each holds one, or several."""
    multiple: int
    """Their number is a multiple of it, where several share experts."""


def replicas_of(spec: Any) -> Replicas:
    devices, own = _devices(spec), _own(spec)
    each = max(1, own // devices)
    expert = (spec.parallelism or Parallelism()).expert
    return Replicas(max(1, devices // own), expert // math.gcd(expert, each))


def whole_worlds(replicas: Replicas, largest: int, virtual_ranks: int) -> Iterator[int]:
    """Numbers of workers up to `largest` that make whole replicas whose number divides the virtual ranks, so that each
    computes as many of these; smallest first."""
    step = replicas.workers * replicas.multiple
    for world in range(step, largest + 1, step):
        if virtual_ranks % (world // replicas.workers) == 0:
            yield world


def require_whole_replicas(spec: Any) -> None:
    """Raises ValueError unless the fewest and the most workers make whole replicas."""
    devices, own = _devices(spec), _own(spec)
    if devices % own and own % devices:
        raise ValueError(
            f"parallelism: tensor x sequence x pipeline is {devices}, and workers.gpus {own} neither divides it nor is "
            "a multiple of it; choose degrees that fit"
        )
    ends, per_replica = (spec.min_workers, spec.workers.max), replicas_of(spec).workers
    for size in ends:
        if size % per_replica:
            raise ValueError(
                f"workers: {size} is not a multiple of the {per_replica} workers over which parallelism spreads one "
                "replica; choose a multiple"
            )
    expert = (spec.parallelism or Parallelism()).expert
    each = own // devices
    if each and expert % each and each % expert:
        raise ValueError(
            f"parallelism: of expert {expert} and the {each} replicas of each worker neither divides the other; choose "
            "degrees that fit"
        )
    for replicas in (size * own // devices for size in ends):
        if replicas % expert:
            raise ValueError(
                f"parallelism: expert {expert} does not divide the {replicas} replicas that the workers hold; choose a "
                "divisor"
            )


def _devices(spec: Any) -> int:
    """That hold one replica."""
    return 1 if spec.parallelism is None else int(spec.parallelism.devices)


def _own(spec: Any) -> int:
    """Devices of one worker."""
    return max(1, int(spec.workers.gpus))
