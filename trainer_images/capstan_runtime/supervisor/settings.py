"""What a supervisor is told by its environment, read once at the start."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import JobConfig, ProgramConfig, RunConfig, read_job_config
from capstan_runtime.errors import ConfigError

_CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")


@dataclass(frozen=True, slots=True)
class Settings:
    """Immutable facts of this pod."""

    pod: str
    address: str
    token: str
    run: JobConfig
    command: tuple[str, ...]
    """Of the trainer."""
    environ: Mapping[str, str]
    """The trainer's environment, but for what changes with the membership."""
    termination_log: Path | None
    """None: nobody reads last words."""
    operator_url: str | None
    """None: nobody is waiting for hints."""
    memory: Path | None = None
    """Folder of the memory tier; None: this pod has none."""
    port: int = env.SUPERVISOR_PORT
    """0: any free one."""
    memory_events: Path = _CGROUP_EVENTS


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Raises ConfigError naming the variable that is missing or wrong."""
    path = Path(_required(environ, env.RUN_CONFIG))
    token_file = Path(_required(environ, env.TOKEN_FILE))
    try:
        run = read_job_config(path.read_bytes())
        token = token_file.read_text().strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the job's Secret is not readable: {error}") from error
    if not token:
        raise ConfigError(f"{env.TOKEN_FILE}: {token_file} is empty; it must hold the job's token")
    log = environ.get(env.TERMINATION_LOG)
    memory = environ.get(env.MEMORY) if run.memory_tier else None
    return Settings(
        pod=_required(environ, env.POD_NAME),
        address=_required(environ, env.POD_IP),
        token=token,
        run=run,
        command=_command(run, environ),
        environ=environ,
        termination_log=Path(log) if log else None,
        operator_url=environ.get(env.OPERATOR_URL) or None,
        memory=Path(memory) if memory else None,
    )


def _command(run: RunConfig | ProgramConfig, environ: Mapping[str, str]) -> tuple[str, ...]:
    if isinstance(run, ProgramConfig):
        return tuple(env.host_path(argument, environ) for argument in run.program.command)
    return (sys.executable, "-m", f"capstan_runtime.{run.framework.kind}_trainer")


def _required(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise ConfigError(f"environment variable {name} is not set; the operator sets it on every pod")
    return environ[name]
