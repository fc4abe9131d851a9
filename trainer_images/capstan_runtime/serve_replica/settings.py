"""What a serving pod is told by its environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from capstan_runtime.contract import env
from capstan_runtime.contract.serving import API_KEYS_FOLDER, TLS_FOLDER, ServeConfig
from capstan_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    config: ServeConfig
    address: str
    """Where requests and probes are answered."""
    store: str
    """Folder or URL of the checkpoints."""
    api_keys: Path | None
    """Folder of the keys that `guards.auth` asks for; None: no keys are asked for."""
    tls: Path | None
    """Folder of the certificate and the key that `guards.tls` asks for; None: plain HTTP."""


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Raises ConfigError naming the variable or the field that is missing or wrong."""
    path = Path(_required(environ, env.SERVE_CONFIG))
    try:
        config = ServeConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{env.SERVE_CONFIG}: {path} is not readable: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{env.SERVE_CONFIG}: {path}: {field}: {first['msg']}") from error
    return Settings(
        config=_reachable(config, environ),
        address=_required(environ, env.POD_IP),
        store=_required(environ, env.STORE),
        api_keys=Path(env.host_path(API_KEYS_FOLDER, environ)) if config.guards.auth else None,
        tls=Path(env.host_path(TLS_FOLDER, environ)) if config.guards.tls else None,
    )


def _reachable(config: ServeConfig, environ: Mapping[str, str]) -> ServeConfig:
    """`config` with the address of the proven revision's Service where there is one in the environment: a cluster on
    one machine has no DNS for its Services."""
    if config.compare is None:
        return config
    url = urlsplit(config.compare.url)
    service = (url.hostname or "").partition(".")[0]
    host = environ.get(f"{service.upper().replace('-', '_')}_SERVICE_HOST")
    if not host:
        return config
    found = url._replace(netloc=f"{host}:{url.port}").geturl()
    return config.model_copy(update={"compare": config.compare.model_copy(update={"url": found})})


def _required(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise ConfigError(f"environment variable {name} is not set; the operator sets it on every pod")
    return environ[name]
