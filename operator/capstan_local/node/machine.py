"""What all pods of a node share: the means to run processes, and what the machine has to give."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from capstan_local.client import Client
from capstan_local.node.events import EventRecorder
from capstan_local.node.images import ImageRule
from capstan_local.node.memory import MemoryVolumes
from capstan_local.node.processes import Processes

POD_BLOCK = (127 << 24) + (64 << 16)
"""127.64.0.0: pods get addresses up to 127.95.255.255; 127.96.0.0/12 is left to Services."""
SUBNETS = 32
ADDRESSES = 1 << 16
DETECT_SECONDS = 10.0


class Addresses:
    """One loopback address per pod. Each node on this machine takes a /16 of its own."""

    def __init__(self, home: Path) -> None:
        self._claim, self._base = _claim_subnet(home)
        self._taken: dict[str, str] = {}
        """address -> pod uid"""
        self._next = 1

    def take(self, uid: str, wanted: str | None = None) -> str:
        """An address that can be bound; `wanted` again if that is possible. RuntimeError when there is none left."""
        if wanted is not None and wanted not in self._taken and _can_bind(wanted):
            self._taken[wanted] = uid
            return wanted
        for _ in range(ADDRESSES):
            number = self._next
            self._next = self._next % (ADDRESSES - 2) + 1
            address = socket.inet_ntoa((self._base + number).to_bytes(4, "big"))
            if address not in self._taken and _can_bind(address):
                self._taken[address] = uid
                return address
        raise RuntimeError("no loopback address is left for another pod")

    def release(self, address: str) -> None:
        self._taken.pop(address, None)

    def close(self) -> None:
        self._claim.close()


def _claim_subnet(home: Path) -> tuple[socket.socket, int]:
    """A socket whose abstract name stands for the subnet and is free again when this process ends, however it ends."""
    first = sum(str(home).encode()) % SUBNETS
    for offset in range(SUBNETS):
        number = (first + offset) % SUBNETS
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0local-node-pod-subnet-{number}")
        except OSError:
            claim.close()
            continue
        return claim, POD_BLOCK + (number << 16)
    raise RuntimeError(f"{SUBNETS} nodes run on this machine already: no loopback subnet is left for another one")


def _can_bind(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


class Devices:
    """The accelerators of the machine, each given to one container at a time."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = list(ids)
        self._owners: dict[str, str] = {}

    def take(self, uid: str, count: int) -> list[str] | None:
        """`count` devices for a pod, the same ones when it asks again; None when there are not enough."""
        mine = [device for device, owner in self._owners.items() if owner == uid]
        free = [device for device in self.ids if device not in self._owners]
        if len(mine) + len(free) < count:
            return None
        for device in free[: max(0, count - len(mine))]:
            self._owners[device] = uid
            mine.append(device)
        return mine

    def release(self, uid: str) -> None:
        self._owners = {device: owner for device, owner in self._owners.items() if owner != uid}


async def detect_gpus() -> list[str]:
    """Ids of the NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; none without nvidia-smi."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        process = await asyncio.create_subprocess_exec(
            "nvidia-smi",
            "--list-gpus",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return []
    try:
        async with asyncio.timeout(DETECT_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return []
    count = sum(line.startswith(b"GPU ") for line in output.splitlines()) if process.returncode == 0 else 0
    if visible is not None and count:
        return [name for name in visible.split(",") if name.strip()]
    return [str(index) for index in range(count)]


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class OomCounter:
    """Whether the kernel killed something for lack of memory since the last look."""

    def __init__(self, vmstat: Path = Path("/proc/vmstat")) -> None:
        self._vmstat = vmstat
        self._last = self._read()

    def look(self) -> bool:
        """True when the count rose since the last call."""
        before, self._last = self._last, self._read()
        return self._last > before

    def _read(self) -> int:
        with contextlib.suppress(OSError), self._vmstat.open() as lines:
            for line in lines:
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        return 0


@dataclass
class Machine:
    """The shared means of one node."""

    client: Client
    home: Path
    node_name: str
    host_ip: str
    processes: Processes
    events: EventRecorder
    images: Sequence[ImageRule]
    addresses: Addresses
    devices: Devices
    memory: MemoryVolumes
    http: aiohttp.ClientSession
    """For probes."""
    service_variables: Callable[[str], Mapping[str, str]]
    """Namespace -> the variables that tell its pods of its Services."""
    allocatable: Mapping[str, str]
    backoff_seconds: float = 10.0
    """First pause before a container is started again; doubles up to 30 times this."""
    oom: OomCounter = field(default_factory=OomCounter)
