"""A supervisor's state in Prometheus' text format, version 0.0.4."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from capstan_runtime.contract.state import Phase, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TAG = 'tag="CHAOS"'
"""On everything that is there on purpose: no alert should fire, no dashboard should blame the hardware."""


SYSTEM = {
    "cpu_cores": "Cores that the trainer and what it started kept busy, on average since the look before.",
    "cpu_limit_cores": "Cores that the container may use.",
    "memory_bytes": "Resident memory of the trainer and what it started.",
    "container_memory_bytes": "Memory that counts against the container's limit, caches included.",
    "container_memory_limit_bytes": "Memory that the container may use.",
    "machine_cpu_ratio": "Share of the machine's cores that were busy, whoever kept them so.",
    "machine_memory_available_bytes": "Memory of the machine that could be had at once.",
    "gpu_utilization_ratio": "Share of the last second or less in which a kernel ran.",
    "gpu_memory_bytes": "Memory of the GPU that is taken.",
    "gpu_memory_limit_bytes": "Memory of the GPU.",
    "gpu_temperature_celsius": "Its temperature.",
    "gpu_power_watts": "What it draws.",
}
"""What the system monitor tells (`callbacks/system_monitor.py`); a figure that cannot be had is absent."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a supervisor shows besides its State."""

    restarts: int
    """Trainer processes started after the first."""
    has_warm_spare: bool
    """The next trainer would not have to import anything."""
    is_under_chaos: bool
    """A fault that was injected here lasts, or the trainer has not come back from it."""


def render(state: State, facts: Facts) -> str:
    """One line per value; what is not known yet is absent, not zero."""
    return "\n".join(_lines(state, facts)) + "\n"


def _lines(state: State, facts: Facts) -> Iterator[str]:
    yield from _gauge("step", "Optimizer steps done.", state.step)
    yield from _gauge("steps", "Optimizer steps in all.", state.steps)
    yield from _gauge("fence", "Number of the newest membership.", state.fence)
    yield from _gauge("rank", "This process's place in the world.", state.rank)
    yield from _gauge("world_size", "Processes in the world.", state.world)
    yield from _gauge("micro_splits", "Micro-steps for the samples of one virtual rank.", state.micro_splits)
    for name in sorted(state.metrics):
        yield from _gauge(name, f"Newest {name.replace('_', ' ')}.", state.metrics[name])
    yield from _system(state.system)
    if state.checkpoint is not None:
        yield from _gauge("checkpoint_step", "Step of the newest committed checkpoint.", state.checkpoint.step)
        yield from _gauge(
            "checkpoint_timestamp_seconds", "When it was committed, seconds since 1970.", state.checkpoint.at
        )
    if state.staged is not None:
        yield from _gauge("staged_step", "Step of the newest save in this pod's memory.", state.staged.step)
    yield from _gauge("quarantined_checkpoints", "Checkpoints that failed verification.", len(state.quarantined))
    if (restored := state.restored) is not None:
        source = f'source="{restored.source}"'
        yield from _family("restored_bytes", "Read by this rank when it resumed.", {source: restored.bytes})
        yield from _family("restore_seconds", "Until its state was in place.", {source: restored.seconds})
        yield from _family(
            "restore_verify_seconds", "Of these, hashing, threads added up.", {source: restored.verify_seconds}
        )
    yield from _family("restarts_total", "Trainer processes started after the first.", {"": facts.restarts}, "counter")
    yield from _gauge("warm_spare", "Processes that wait with their imports done.", int(facts.has_warm_spare))
    yield from _family(
        "phase", "1 for the phase the trainer is in.", {_phase(phase): int(phase is state.phase) for phase in Phase}
    )
    yield from _family(
        "phase_seconds",
        "Seconds of this attempt by phase, up to the trainer's newest report.",
        {_phase(phase): seconds for phase, seconds in state.seconds.items()},
    )
    yield from _family("chaos_active", "1 while a fault injected here lasts.", {_TAG: int(facts.is_under_chaos)})
    yield from _family(
        "injected_faults",
        "Faults injected here on purpose, of the newest twenty.",
        {f'fault="{fault}",{_TAG}': count for fault, count in Counter(each.fault for each in state.injected).items()},
    )


def _system(system: Mapping[str, float]) -> Iterator[str]:
    """What the worker uses of its machine; figures of several GPUs are one metric."""
    by_name: dict[str, dict[str, float]] = {}
    for key in sorted(system):
        name, _, gpu = key.partition("/")
        by_name.setdefault(name, {})[f'gpu="{gpu}"' if gpu else ""] = system[key]
    for name, values in by_name.items():
        yield from _family(f"system_{name}", SYSTEM.get(name, name.replace("_", " ")), values)


def _phase(phase: Phase) -> str:
    return f'phase="{phase}"'


def _gauge(name: str, text: str, value: float | None) -> Iterator[str]:
    if value is not None:
        yield from _family(name, text, {"": value})


def _family(name: str, text: str, values: Mapping[str, float], kind: str = "gauge") -> Iterator[str]:
    """One metric: `values` by their labels, `""` for none. Nothing at all when there are no values."""
    if not values:
        return
    yield f"# HELP capstan_trainer_{name} {text}"
    yield f"# TYPE capstan_trainer_{name} {kind}"
    for labels, value in values.items():
        yield f"capstan_trainer_{name}{f'{{{labels}}}' if labels else ''} {value}"
