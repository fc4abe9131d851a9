"""Whom requests go to, and their bytes: made once, so that asking costs one write."""

import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from capstan_runtime.contract.workloads import Request
from capstan_runtime.errors import ConfigError

_VARIABLE = re.compile(r"\$(\$)?\(([A-Za-z_][A-Za-z0-9_]*)\)")
_FORBIDDEN = re.compile(r"[\r\n\0]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Target:
    """A server."""

    host: str
    port: int
    prefix: str
    """Path that those of the scenario are below; no slash at its end."""
    ssl_context: ssl.SSLContext | None
    """None: plain HTTP."""

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.ssl_context else 80
        return host if self.port == usual else f"{host}:{self.port}"


def read_target(url: str) -> Target:
    """The server of `url`. For https its certificate must be one that OpenSSL trusts: for an authority of one's own set
    SSL_CERT_FILE. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"workload.serving.url: {url} is no URL ({error}); write http://HOST:PORT") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ConfigError(
            f"workload.serving.url: {url} must be http:// or https:// with a host, and no user; credentials go into "
            "scenario[].headers"
        )
    context = ssl.create_default_context() if parts.scheme == "https" else None
    if context is not None:
        context.set_alpn_protocols(["http/1.1"])
    return Target(parts.hostname, port or (443 if context else 80), parts.path.rstrip("/"), context)


def request_bytes(request: Request, target: Target, environ: Mapping[str, str]) -> bytes:
    """What is sent for `request`. `$(NAME)` in a header's value is the environment variable NAME, so that a key is in a
    Secret and never in a spec; `$$(NAME)` is the text `$(NAME)`. Raises ConfigError."""
    body = b"" if request.body is None else json.dumps(request.body, separators=(",", ":")).encode()
    headers = {"host": target.authority, "user-agent": "capstan-bench", "accept": "*/*"}
    if request.body is not None:
        headers["content-type"] = "application/json"
    for name, value in request.headers.items():
        where = f"workload.serving.scenario[{request.name}].headers.{name}"
        filled = _fill(value, where, environ)
        if not _TOKEN.fullmatch(name) or _FORBIDDEN.search(filled):
            raise ConfigError(f"{where}: a name is letters, digits and -, and a value has no line end; correct it")
        if name.lower() in ("content-length", "transfer-encoding", "connection"):
            raise ConfigError(f"{where}: is set by what sends the request; remove it")
        headers[name.lower()] = filled
    if body or request.method != "GET":
        headers["content-length"] = str(len(body))
    path = target.prefix + request.path
    if not path.isascii() or not path.isprintable() or " " in path:
        raise ConfigError(f"workload.serving.scenario[{request.name}].path: {request.path} must be percent-encoded")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{request.method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def scenario_bytes(scenario: Sequence[Request], target: Target, environ: Mapping[str, str]) -> list[bytes]:
    """`request_bytes` of each. Raises ConfigError, also for two requests of one name."""
    names = [request.name for request in scenario]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"workload.serving.scenario: {name} is there twice; names tell kinds apart, change one")
    return [request_bytes(request, target, environ) for request in scenario]


def _fill(text: str, where: str, environ: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        escaped, name = found.groups()
        if escaped:
            return f"$({name})"
        if name not in environ:
            raise ConfigError(
                f"{where}: $({name}) is not set in the pod; set it on container bench by pods.podPatch, from a Secret: "
                f"env: [{{name: {name}, valueFrom: {{secretKeyRef: {{name: SECRET, key: KEY}}}}}}]"
            )
        return environ[name].rstrip("\r\n")  # as a file has that a Secret was made of

    return _VARIABLE.sub(value, text)
