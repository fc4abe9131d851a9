"""What a trainer is told by its supervisor, in variables and the files that they name."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership, RunConfig
from capstan_runtime.errors import ConfigError


def required(environ: Mapping[str, str], name: str) -> str:
    """The variable. Raises ConfigError."""
    if not environ.get(name):
        raise ConfigError(f"environment variable {name} is not set; a trainer is started by its supervisor, which does")
    return environ[name]


def read_run(environ: Mapping[str, str]) -> RunConfig:
    """The run, the same in every attempt. Raises ConfigError."""
    path = Path(required(environ, env.RUN_CONFIG))
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{env.RUN_CONFIG}: {path} is no run configuration: {error}") from error


def read_membership(environ: Mapping[str, str]) -> Membership:
    """This rank's place in this attempt. Raises ConfigError."""
    text = required(environ, env.MEMBERSHIP)
    try:
        return Membership.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{env.MEMBERSHIP}: {text[:200]} is no membership: {error}") from error
