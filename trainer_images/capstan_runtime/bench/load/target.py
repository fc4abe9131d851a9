"""Whom requests go to, and their bytes: made once, so that asking costs one write."""

import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
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
    if parts.query or parts.fragment:
        raise ConfigError(
            f"workload.serving.url: {url} has a query or a fragment, which belong to one request; put the query into "
            "scenario[].path"
        )
    context = ssl.create_default_context() if parts.scheme == "https" else None
    if context is not None:
        context.set_alpn_protocols(["http/1.1"])
    return Target(parts.hostname, port or (443 if context else 80), parts.path.rstrip("/"), context)


def request_bytes(request: Request, target: Target, environ: Mapping[str, str], service: str | None = None) -> bytes:
    """What is sent for `request`. `$(NAME)` in a header's value is the environment variable NAME, so that a key is in a
    Secret and never in a spec. `$(SERVICE)` in the path and in texts of the body is `service`, the InferenceService
    that was made; None: none was. `$$(NAME)` is the text `$(NAME)`. Raises ConfigError."""
    where = f"workload.serving.scenario[{request.name}]"
    made = {} if service is None else {"SERVICE": service}
    missing = "is not known: only SERVICE is, with workload.serving.service; write the name itself"
    path = target.prefix + _fill(request.path, f"{where}.path", made, missing)
    if not path.isascii() or not path.isprintable() or " " in path:
        raise ConfigError(f"{where}.path: {request.path} must be percent-encoded")
    filled = _fill_all(request.body, f"{where}.body", made, missing)
    body = b"" if request.body is None else json.dumps(filled, separators=(",", ":")).encode()
    headers = {"host": target.authority, "user-agent": "capstan-bench", "accept": "*/*"}
    if request.body is not None:
        headers["content-type"] = "application/json"
    headers |= _own_headers(request, f"{where}.headers", environ)
    if body or request.method != "GET":
        headers["content-length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{request.method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def _own_headers(request: Request, where: str, environ: Mapping[str, str]) -> dict[str, str]:
    missing = (
        "is not set in the pod; set it on container bench by pods.podPatch, from a Secret: "
        "env: [{name: NAME, valueFrom: {secretKeyRef: {name: SECRET, key: KEY}}}]"
    )
    headers = {}
    for name, value in request.headers.items():
        # A file that a Secret was made of ends with a line end.
        filled = _fill(value, f"{where}.{name}", environ, missing).rstrip("\r\n")
        if not _TOKEN.fullmatch(name) or _FORBIDDEN.search(filled):
            raise ConfigError(
                f"{where}.{name}: a name is letters, digits and -, and a value has no line end; correct it"
            )
        if name.lower() in ("content-length", "transfer-encoding", "connection"):
            raise ConfigError(f"{where}.{name}: is set by what sends the request; remove it")
        headers[name.lower()] = filled
    return headers


def scenario_bytes(
    scenario: Sequence[Request], target: Target, environ: Mapping[str, str], service: str | None = None
) -> list[bytes]:
    """`request_bytes` of each. Raises ConfigError."""
    return [request_bytes(request, target, environ, service) for request in scenario]


def _fill_all(value: Any, where: str, known: Mapping[str, str], missing: str) -> Any:
    """In every text of a JSON value."""
    if isinstance(value, str):
        return _fill(value, where, known, missing)
    if isinstance(value, list):
        return [_fill_all(each, where, known, missing) for each in value]
    if isinstance(value, dict):
        return {name: _fill_all(each, where, known, missing) for name, each in value.items()}
    return value


def _fill(text: str, where: str, known: Mapping[str, str], missing: str) -> str:
    def value(found: re.Match[str]) -> str:
        escaped, name = found.groups()
        if escaped:
            return f"$({name})"
        if name not in known:
            raise ConfigError(f"{where}: $({name}) {missing}")
        return known[name]

    return _VARIABLE.sub(value, text)
