"""What a trainer is told by its supervisor, in variables and the files that they name."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership, ProgramConfig, RunConfig, read_job_config
from capstan_runtime.errors import ConfigError

Kind = TypeVar("Kind", RunConfig, ProgramConfig)


def required(environ: Mapping[str, str], name: str) -> str:
    """The variable. Raises ConfigError."""
    if not environ.get(name):
        raise ConfigError(f"environment variable {name} is not set; a trainer is started by its supervisor, which does")
    return environ[name]


def read_run(environ: Mapping[str, str]) -> RunConfig:
    """The run of one of Capstan's own trainers, the same in every attempt. Raises ConfigError."""
    return _read(environ, RunConfig)


def read_program(environ: Mapping[str, str]) -> ProgramConfig:
    """The run of a user's own program, the same in every attempt. Raises ConfigError."""
    return _read(environ, ProgramConfig)


def _read(environ: Mapping[str, str], kind: type[Kind]) -> Kind:
    path = Path(required(environ, env.RUN_CONFIG))
    try:
        found = read_job_config(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{env.RUN_CONFIG}: {path} is no run configuration: {error}") from error
    if not isinstance(found, kind):
        started = "a program" if isinstance(found, ProgramConfig) else "one of Capstan's own trainers"
        raise ConfigError(f"{env.RUN_CONFIG}: {path} is the run of {started}, and something else was started for it")
    return found


def read_membership(environ: Mapping[str, str]) -> Membership:
    """This rank's place in this attempt. Raises ConfigError."""
    text = required(environ, env.MEMBERSHIP)
    try:
        return Membership.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{env.MEMBERSHIP}: {text[:200]} is no membership: {error}") from error
