"""Which device of a run holds and computes what, where one model is spread over several.

Devices are numbered over all ranks, a rank's own one after the other. The tensor coordinate changes fastest, for its
devices talk most: device = ((data x pipeline + stage) x sequence + part) x tensor + slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from capstan_runtime.contract.parallelism import Parallelism

Axis = Literal["data", "pipeline", "sequence", "tensor"]
AXES: tuple[Axis, ...] = ("data", "pipeline", "sequence", "tensor")
"""Slowest to fastest."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A grid of all devices. `expert` of the data coordinates after each other share the experts."""

    shape: tuple[int, int, int, int]
    """Devices along each of `AXES`."""
    expert: int = 1

    @classmethod
    def of(cls, parallelism: Parallelism | None, devices: int) -> "Layout":
        """That of a run on so many devices. Raises ValueError if they are no whole number of replicas, or of groups
        that share the experts."""
        asked = parallelism or Parallelism()
        if devices % asked.devices:
            raise ValueError(f"{devices} devices are no multiple of the {asked.devices} that hold one replica")
        data = devices // asked.devices
        if data % asked.expert:
            raise ValueError(f"{data} replicas are no multiple of the {asked.expert} that share the experts")
        return cls((data, asked.pipeline, asked.sequence, asked.tensor), asked.expert)

    @property
    def devices(self) -> int:
        data, pipeline, sequence, tensor = self.shape
        return data * pipeline * sequence * tensor

    def size(self, axis: Axis) -> int:
        return self.shape[AXES.index(axis)]

    def coordinate(self, device: int, axis: Axis) -> int:
        """Where `device` stands along `axis`."""
        place = AXES.index(axis)
        for size in reversed(self.shape[place + 1 :]):
            device //= size
        return device % self.shape[place]

    def groups(self, axes: Sequence[Axis]) -> list[tuple[int, ...]]:
        """All devices in groups whose members differ along `axes` alone, in order; each device is in one."""
        found: dict[tuple[int, ...], list[int]] = {}
        others = [axis for axis in AXES if axis not in axes]
        for device in range(self.devices):
            found.setdefault(tuple(self.coordinate(device, axis) for axis in others), []).append(device)
        return [tuple(group) for group in found.values()]

    def expert_groups(self) -> list[tuple[int, ...]]:
        """All devices in groups that share the experts of a layer, in the order of the experts."""
        return [
            group[first : first + self.expert]
            for group in self.groups(["data"])
            for first in range(0, len(group), self.expert)
        ]

    def same_expert_groups(self) -> list[tuple[int, ...]]:
        """All devices in groups whose members hold the same experts of the same layers."""
        return [group[first :: self.expert] for group in self.groups(["data"]) for first in range(self.expert)]
