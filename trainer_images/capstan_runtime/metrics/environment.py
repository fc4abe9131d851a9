"""What a trial runs on and with."""

import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from capstan_runtime.contract.benchmark import UNKNOWN_GPU, Environment

PACKAGES = ("capstan", "numpy", "scipy", "jax", "jaxlib", "flax", "torch", "deepspeed", "ray")
"""What computes or might: those that are installed are named."""
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_SMI_SECONDS = 20.0
_DEVICES = Path("/dev")
_GPU = re.compile(r"GPU (\d+): (.+) \(UUID: (GPU-\S+)\)")
_PART = re.compile(r"MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-\S+)\)")


def observe_environment(environ: Mapping[str, str], packages: Iterable[str] = PACKAGES) -> Environment:
    """The machine and the libraries of this process. Starts no framework and touches no GPU; nvidia-smi is asked where
    there is one."""
    gpus, driver = _gpus(environ)
    return Environment(
        node=environ.get("CAPSTAN_NODE_NAME") or socket.gethostname(),
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=gpus,
        driver=driver,
        governor=_read(_GOVERNOR),
        threads=_whole_number(environ.get("OMP_NUM_THREADS")),
        kernel=platform.release(),
        python=platform.python_version(),
        packages={name: found for name in packages if (found := _version(name)) is not None},
        image=environ.get("CAPSTAN_IMAGE") or None,
    )


def _cpu_model() -> str:
    """The kernel's name for it, or the architecture where it names none (ARM)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus(environ: Mapping[str, str]) -> tuple[tuple[str, ...], str | None]:
    """Model of each GPU, or part of one, that the process may see, and the driver's version. UNKNOWN_GPU where there
    are some and nvidia-smi does not tell which: none at all would make the machine like one without."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1", "none", "void"):
        return (), None
    names = _visible(_devices(_ask("-L")), visible)
    driver = _ask("--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0].strip()
    if names and driver:
        return names, driver
    are_there = visible is not None or any(_DEVICES.glob("nvidia[0-9]*"))
    return ((UNKNOWN_GPU,) if are_there else ()), None


def _ask(*arguments: str) -> str:
    """What nvidia-smi says; empty: there is none, or it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return ""
    try:
        command = ["nvidia-smi", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass(frozen=True, slots=True)
class _Device:
    """A GPU; or one of the parts that it was divided into (MIG), which then are what programs see."""

    gpu: str
    """Index of the GPU."""
    name: str
    uuid: str


def _devices(listed: str) -> list[_Device]:
    """What can be computed on, from the lines of `nvidia-smi -L`."""
    found: list[_Device] = []
    for line in listed.splitlines():
        if gpu := _GPU.fullmatch(line.strip()):
            found.append(_Device(*gpu.groups()))
        elif (part := _PART.fullmatch(line.strip())) and found:
            before = found[-1] if found[-1].uuid.startswith("MIG-") else found.pop()
            name = before.name.partition(" MIG ")[0]
            found.append(_Device(before.gpu, f"{name} MIG {part[1]}", part[2]))
    return found


def _visible(devices: Sequence[_Device], visible: str | None) -> tuple[str, ...]:
    """Names of those that `visible` names, by index or the beginning of a UUID; empty where one cannot be told."""
    if visible is None:
        return tuple(device.name for device in devices)
    names = []
    for wanted in visible.split(","):
        token = wanted.strip()
        # A part has no index of its own: that of its GPU names it only where there is one.
        fitting = [one for one in devices if one.gpu == token or (len(token) > 4 and one.uuid.startswith(token))]
        if len(fitting) != 1:
            return ()
        names.append(fitting[0].name)
    return tuple(names)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
