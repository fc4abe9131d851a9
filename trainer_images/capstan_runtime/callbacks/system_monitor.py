"""What a worker uses of its machine: CPU, memory and GPUs, looked at by a thread now and then."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from capstan_runtime.contract import callbacks as contract
from capstan_runtime.voice import Voice

_CGROUP = Path("/sys/fs/cgroup")


def watch_system(plan: contract.SystemMonitor | None, voice: Voice) -> None:
    """Reports what this worker uses from now on, to the end of the process. Nothing where `plan` is None."""
    if plan is None:
        return
    threading.Thread(target=_watch, args=(plan.every_seconds, voice), name="system monitor", daemon=True).start()


def _watch(every_seconds: float, voice: Voice) -> None:
    system: System | None = None
    has_warned = False
    while True:
        figures: dict[str, float] | None = None
        try:
            if system is not None:  # rates are since it was made, or looked
                figures = system.look()
            system = system or System()
        except Exception as error:  # a kernel or a driver that answers as nobody foresaw
            figures = {}  # none are better than old ones
            if not has_warned:
                voice.warn(f"callbacks.systemMonitor: this machine tells nothing: {type(error).__name__}: {error}")
            has_warned = True
        try:
            if figures is not None:
                voice.report_system(figures)
        except BrokenPipeError:
            return  # the supervisor is gone, and this process will be
        time.sleep(every_seconds)


class System:
    """Figures by name and unit, as `supervisor/exposition.py` explains them. What cannot be had is absent, never 0."""

    def __init__(self, cgroup: Path = _CGROUP) -> None:
        """`cgroup` is the folder of the container's own cgroup (version 2)."""
        self._cgroup = cgroup
        self._process = psutil.Process()
        self._gpus = list(_open_gpus())
        self._looked_at = time.monotonic()
        self._cpu_seconds = sum(map(_cpu_seconds, self._family()))
        psutil.cpu_percent()  # of all time; the next one is since this one

    def look(self) -> dict[str, float]:
        """Rates are means since the look before."""
        family = self._family()
        now, cpu_seconds = time.monotonic(), sum(map(_cpu_seconds, family))
        # What a process has used goes with it, if nobody waited for it.
        used = max(0.0, cpu_seconds - self._cpu_seconds) / max(now - self._looked_at, 1e-9)
        self._looked_at, self._cpu_seconds = now, cpu_seconds
        figures = {
            "cpu_cores": used,
            "memory_bytes": float(sum(map(_resident_bytes, family))),
            "machine_cpu_ratio": psutil.cpu_percent() / 100,
            "machine_memory_available_bytes": float(psutil.virtual_memory().available),
            **dict(self._container()),
        }
        for number, gpu in enumerate(self._gpus):
            figures |= {f"{name}/{number}": value for name, value in _look_at_gpu(gpu)}
        return figures

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _container(self) -> Iterator[tuple[str, float]]:
        for name, file in (
            ("container_memory_bytes", "memory.current"),
            ("container_memory_limit_bytes", "memory.max"),
        ):
            (text, *_) = _words(self._cgroup / file) or [""]
            if text.isdecimal():
                yield name, float(text)
        quota, *period = _words(self._cgroup / "cpu.max") or [""]
        if quota.isdecimal() and period:
            yield "cpu_limit_cores", int(quota) / int(period[0])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []  # no container, or cgroups of version 1


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:4]))  # user, system, and both of children that it waited for
    except psutil.Error:
        return 0.0  # it has ended since it was listed


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _open_gpus() -> Iterator[Any]:
    """NVML's handles of the GPUs that this container has; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            yield pynvml.nvmlDeviceGetHandleByIndex(number)
    except pynvml.NVMLError:
        return


def _look_at_gpu(gpu: Any) -> Iterator[tuple[str, float]]:
    import pynvml

    figures = {
        "gpu_utilization_ratio": lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
        "gpu_memory_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used,
        "gpu_memory_limit_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).total,
        "gpu_temperature_celsius": lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
        "gpu_power_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    }
    for name, read in figures.items():
        try:
            yield name, float(read())
        except pynvml.NVMLError:  # a part of a GPU (MIG) does not tell all of it
            continue
