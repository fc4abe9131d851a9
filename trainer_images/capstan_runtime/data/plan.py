"""The order of the data: a pure function of (seed, step), the same for every number of workers.

Each epoch visits the samples in a pseudo-random order that is *computed*, not stored: a Feistel network is a bijection
on [0, 4^h) whatever its round function is, and walking its cycles until a value falls below N makes it one on [0, N)
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, method 2). So any position of any epoch can
be asked for directly, and the loader's whole state is the step number, with the batches that were left out on purpose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.run_config import Skip
from capstan_runtime.data.spec import Ids
from capstan_runtime.errors import ConfigError

PLAN_VERSION = 1
"""Goes up when the same seed and step no longer mean the same samples. Checkpoints carry it."""

_ROUNDS = 6
"""Four give a strong permutation for an ideal round function (Luby and Rackoff, 1988); two more for a cheap one."""

_IDS_AT_ONCE = 1 << 14


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every input bit moves every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Permutation:
    """A pseudo-random bijection on [0, size), evaluated for any positions without a table."""

    def __init__(self, size: int, *key: int) -> None:
        """Equal `size` and `key` (non-negative integers) give the same bijection on every machine and version."""
        self._size = size
        self._half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        # Unsigned array arithmetic wraps, which is what a hash wants; numpy would warn for scalars.
        state = np.zeros(1, np.uint64)
        for word in (size, *key):
            state = _mix(state + np.uint64(word) + np.uint64(0x9E3779B97F4A7C15))
        rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self._round_keys = _mix(state + rounds)

    def __call__(self, positions: Ids) -> Ids:
        """The values at `positions` (each in [0, size)), same shape. A domain below 4 x size bounds the walk: four
        turns on average, never more than the longest cycle."""
        values = self._encrypt(positions.astype(np.uint64).ravel())
        outside = np.flatnonzero(values >= self._size)
        while outside.size:
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self._size]
        return values.astype(np.int64).reshape(positions.shape)

    def _encrypt(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half_bits) | right


@lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int, first: int, count: int) -> Ids:
    """Positions [first, first + count) of an epoch's order. Kept, because 64 ids at a time cost 20 us each, 16,384 at
    a time 0.13 us."""
    ids = Permutation(size, seed, epoch)(np.arange(first, first + count, dtype=np.int64))
    ids.flags.writeable = False
    return ids


def batch_index(step: int, skips: Sequence[Skip]) -> int:
    """Which batch of the data order optimizer step `step` (from 0) takes, when `skips` are left out of it."""
    index = step
    for skip in skips:
        if index < skip.first:
            break
        index += skip.count
    return index


def skips_before(step: int, skips: Sequence[Skip]) -> tuple[Skip, ...]:
    """Those of `skips` that lie before the newest batch of the first `step` steps."""
    if step == 0:
        return ()
    newest = batch_index(step - 1, skips)
    return tuple(skip for skip in skips if skip.first < newest)


def micro_steps_of_slice(samples: int, splits: int) -> int:
    """In how many micro-steps a virtual rank's `samples` are computed when memory asks for at least `splits`.

    The least number from `splits` on that divides them: all micro-steps are equal then, so that the mean of their means
    is the mean of all, and there is no padding to weigh. Raises ConfigError when there is less than a sample for each.
    """
    if splits > samples:
        raise ConfigError(
            f"spec.training.globalBatchSize: a virtual rank has {samples} samples a step, which cannot be computed in "
            f"{splits} micro-steps, and with fewer the device runs out of memory; choose a smaller model or a larger "
            "device"
        )
    return next(parts for parts in range(splits, samples + 1) if samples % parts == 0)


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """Which samples make up each optimizer step.

    The global batch of B samples is always cut into V virtual ranks of b = B / V; a world of W ranks (W divides V)
    gives each rank M = V / W of them. So neither batch nor order depends on W. The samples left over at the end of an
    epoch, fewer than B, are skipped; every epoch leaves out others.
    """

    seed: int
    num_samples: int
    global_batch_size: int
    virtual_ranks: int
    skips: tuple[Skip, ...] = ()
    """Batches left out, in the order of the data, disjoint. A run does its number of steps all the same."""

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch_size:
            raise ConfigError(
                f"spec.training.globalBatchSize: {self.global_batch_size} is more than the {self.num_samples} training "
                f"samples there are; choose at most {self.num_samples} or add data"
            )
        if self.global_batch_size % self.virtual_ranks:
            raise ConfigError(
                f"spec.training.globalBatchSize: {self.global_batch_size} is not a multiple of virtualRanks "
                f"{self.virtual_ranks}; choose a multiple"
            )

    @property
    def samples_per_slice(self) -> int:
        """b: of one virtual rank in one step."""
        return self.global_batch_size // self.virtual_ranks

    @property
    def steps_per_epoch(self) -> int:
        return self.num_samples // self.global_batch_size

    def ids(self, step: int) -> Ids:
        """The samples of optimizer step `step` (from 0), [B], in the order of the virtual ranks."""
        epoch, step_in_epoch = divmod(batch_index(step, self.skips), self.steps_per_epoch)
        steps_at_once = max(1, _IDS_AT_ONCE // self.global_batch_size)
        block, step_in_block = divmod(step_in_epoch, steps_at_once)
        first = block * steps_at_once * self.global_batch_size
        count = min(steps_at_once * self.global_batch_size, self.num_samples - first)
        ids = _order(self.num_samples, self.seed, epoch, first, count)
        return ids[step_in_block * self.global_batch_size :][: self.global_batch_size]

    def ids_for_rank(self, step: int, rank: int, world: int) -> Ids:
        """This rank's samples of step `step`, [M, b]: one row per micro-step.

        Raises ConfigError if `world` does not divide the virtual ranks.
        """
        micro_steps = self.micro_steps(world)
        slices = self.ids(step).reshape(self.virtual_ranks, -1)
        return slices[rank * micro_steps : (rank + 1) * micro_steps]

    def micro_steps(self, world: int) -> int:
        """M, the virtual ranks that each rank of `world` stands for."""
        if self.virtual_ranks % world:
            sizes = ", ".join(str(size) for size in range(1, self.virtual_ranks + 1) if self.virtual_ranks % size == 0)
            raise ConfigError(
                f"spec.workers: {world} workers do not divide virtualRanks {self.virtual_ranks}; choose {sizes}"
            )
        return self.virtual_ranks // world
