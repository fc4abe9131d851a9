"""What a trial runs on and with."""

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from capstan_runtime.contract.benchmark import Environment

PACKAGES = ("capstan", "numpy", "scipy", "jax", "jaxlib", "flax", "torch", "deepspeed", "ray")
"""What computes or might: those that are installed are named."""
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_SMI_SECONDS = 20.0


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
    """Model of each GPU that the process may see, and the driver's version."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1", "none") or shutil.which("nvidia-smi") is None:
        return (), None
    chosen = ["-i", visible] if visible else []
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", *chosen]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return (), None
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if "," in line]
    return tuple(row[0] for row in rows), rows[0][1] if rows else None


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
