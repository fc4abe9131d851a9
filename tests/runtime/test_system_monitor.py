"""What a worker uses of its machine: figures that can be had, and no others."""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from capstan_runtime.callbacks.system_monitor import System
from capstan_runtime.callbacks.system_monitor import _watch as watch_for_ever
from capstan_runtime.contract.state import State
from capstan_runtime.report import Reporter
from capstan_runtime.supervisor.exposition import SYSTEM, Facts, render
from capstan_runtime.voice import Voice
from tests.support.training_runs import Run, run_trainers

ALWAYS = {"cpu_cores", "memory_bytes", "machine_cpu_ratio", "machine_memory_available_bytes"}


def spin(seconds: float) -> None:
    """Uses so much processor time."""
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def held() -> int:
    """Bytes of this process and its children, of which tests before this one may have left some."""
    process = psutil.Process()
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def test_what_the_process_and_its_children_use_is_counted(tmp_path: Path) -> None:
    system = System(cgroup=tmp_path)
    began, used = time.monotonic(), 0.5
    spin(used)
    figures = system.look()
    elapsed = time.monotonic() - began
    # The kernel counts in hundredths of a second, and other threads of this process may have worked as well.
    assert 0.8 * used / elapsed < figures["cpu_cores"] < 1.0 + used / elapsed
    alone = figures["memory_bytes"]
    assert alone == pytest.approx(held(), rel=0.2)
    hold = "import sys; block = bytearray(b'x') * 50_000_000; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert system.look()["memory_bytes"] > alone + 50_000_000
        child.communicate()
    assert system.look()["memory_bytes"] < alone + 50_000_000


def test_limits_are_those_of_the_container_and_absent_where_there_are_none(tmp_path: Path) -> None:
    assert set(System(cgroup=tmp_path).look()) == ALWAYS
    for name, text in {"memory.current": "1048576\n", "memory.max": "max\n", "cpu.max": "max 100000\n"}.items():
        (tmp_path / name).write_text(text)
    assert set(System(cgroup=tmp_path).look()) == ALWAYS | {"container_memory_bytes"}
    (tmp_path / "memory.max").write_text("2097152\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    figures = System(cgroup=tmp_path).look()
    told = {name: figures[name] for name in figures.keys() - ALWAYS}
    assert told == {
        "container_memory_bytes": 1_048_576,
        "container_memory_limit_bytes": 2_097_152,
        "cpu_limit_cores": 1.5,
    }


class FakeNvml:
    """A driver that knows two GPUs, of which the second does not tell what it draws. No GPU is at hand."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus

    def nvmlInit(self) -> None:
        if self._gpus == 0:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return self._gpus

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> "FakeNvml":
        self.gpu = 50 + gpu
        return self

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> "FakeNvml":
        self.used, self.total = 1000 + gpu, 2000
        return self

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> int:
        return 60 + gpu

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if gpu == 1:
            raise self.NVMLError("Not Supported")
        return 350_500


def test_each_gpu_tells_what_it_can_and_none_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(2))
    figures = System(cgroup=tmp_path).look()
    assert {name: figures[name] for name in figures.keys() - ALWAYS} == {
        "gpu_utilization_ratio/0": 0.5,
        "gpu_memory_bytes/0": 1000.0,
        "gpu_memory_limit_bytes/0": 2000.0,
        "gpu_temperature_celsius/0": 60.0,
        "gpu_power_watts/0": 350.5,
        "gpu_utilization_ratio/1": 0.51,
        "gpu_memory_bytes/1": 1001.0,
        "gpu_memory_limit_bytes/1": 2000.0,
        "gpu_temperature_celsius/1": 61.0,
    }
    shown = render(State(pod="p", uid="u", system=figures), Facts(0, False, False)).splitlines()
    assert 'capstan_trainer_system_gpu_temperature_celsius{gpu="0"} 60.0' in shown
    assert 'capstan_trainer_system_gpu_temperature_celsius{gpu="1"} 61.0' in shown
    assert f"# HELP capstan_trainer_system_gpu_power_watts {SYSTEM['gpu_power_watts']}" in shown
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(0))
    assert set(System(cgroup=tmp_path).look()) == ALWAYS


class Silent(Voice):
    """Hears what is reported, and ends the watch after three times."""

    def __init__(self) -> None:
        super().__init__(Reporter(None), rank=0, steps=1)
        self.told: list[dict[str, float]] = []
        self.warned: list[str] = []

    def report_system(self, figures: Mapping[str, float]) -> None:
        self.told.append(dict(figures))
        if len(self.told) == 3:
            raise BrokenPipeError

    def warn(self, line: str) -> None:
        self.warned.append(line)


def test_a_machine_that_answers_as_nobody_foresaw_has_no_figures_and_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = iter([OSError("no /proc/stat"), OSError("no /proc/stat"), {"cpu_cores": 1.0}])

    def look(system: System) -> dict[str, float]:
        answer = next(looks)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(System, "look", look)
    voice = Silent()
    watch_for_ever(0.001, voice)
    assert voice.told == [{}, {}, {"cpu_cores": 1.0}]
    assert voice.warned == ["callbacks.systemMonitor: this machine tells nothing: OSError: no /proc/stat"]


def test_every_rank_tells_what_it_uses_and_rank_0_its_trackers_too(tmp_path: Path) -> None:
    watched = {"callbacks": {"systemMonitor": {"everySeconds": 1}}, "tracking": {"csv": {}}}
    ended = run_trainers(Run(tmp_path, steps=4, overrides=watched), world=2, STEP_SECONDS="0.6")
    assert [each.code for each in ended] == [0, 0], ended[0].output
    for each in ended:
        told = [progress.system for progress in each.progress if progress.system]
        assert told
        assert all(set(figures) >= ALWAYS and set(figures) <= {*SYSTEM} for figures in told)
    head = (tmp_path / "store" / "tracking" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {f"system/{name}" for name in ALWAYS} <= set(head)
