"""A supervisor's state in Prometheus' text format, version 0.0.4."""

from collections.abc import Iterator

from capstan_runtime.contract.state import Phase, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(state: State, restarts: int) -> str:
    """One line per value; what is not known yet is absent, not zero."""
    return "\n".join(_lines(state, restarts)) + "\n"


def _lines(state: State, restarts: int) -> Iterator[str]:
    yield from _gauge("step", "Optimizer steps done.", state.step)
    yield from _gauge("steps", "Optimizer steps in all.", state.steps)
    yield from _gauge("fence", "Number of the newest membership.", state.fence)
    yield from _gauge("rank", "This process's place in the world.", state.rank)
    yield from _gauge("world_size", "Processes in the world.", state.world)
    for name in sorted(state.metrics):
        yield from _gauge(name, f"Newest {name.replace('_', ' ')}.", state.metrics[name])
    if state.checkpoint is not None:
        yield from _gauge("checkpoint_step", "Step of the newest committed checkpoint.", state.checkpoint.step)
        yield from _gauge(
            "checkpoint_timestamp_seconds", "When it was committed, seconds since 1970.", state.checkpoint.at
        )
    yield from _gauge("quarantined_checkpoints", "Checkpoints that failed verification.", len(state.quarantined))
    yield "# HELP capstan_trainer_restarts_total Trainer processes started after the first."
    yield "# TYPE capstan_trainer_restarts_total counter"
    yield f"capstan_trainer_restarts_total {restarts}"
    yield "# HELP capstan_trainer_phase 1 for the phase the trainer is in."
    yield "# TYPE capstan_trainer_phase gauge"
    for phase in Phase:
        yield f'capstan_trainer_phase{{phase="{phase}"}} {int(phase is state.phase)}'


def _gauge(name: str, text: str, value: float | None) -> Iterator[str]:
    if value is not None:
        yield f"# HELP capstan_trainer_{name} {text}"
        yield f"# TYPE capstan_trainer_{name} gauge"
        yield f"capstan_trainer_{name} {value}"
