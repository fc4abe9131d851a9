"""The API of the cluster that this pod is in, with the rights of its service account: as little of it as a measurement
needs. The operator's client is not ours to import, and the package `kubernetes` costs more than what is measured."""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from capstan_runtime.contract.env import ACCOUNT_FOLDER, host_path

REQUEST_SECONDS = 30.0
_TRIES = 5
_CONNECTIONS = 64
_PAUSE_SECONDS = 0.05
"""Before a watch that the server has ended is taken up again."""


class Refused(Exception):
    """The API server says no. One line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is, and who asks."""

    server: str
    """Base URL."""
    token: Callable[[], str]
    """Bearer token to send now: mounted ones are renewed about every hour."""
    ca_pem: str
    namespace: str
    """The pod's own."""


def read_account(environ: Mapping[str, str]) -> Access | None:
    """What the pod's service account gives; None: this pod has none, or is in no cluster."""
    folder = Path(host_path(ACCOUNT_FOLDER, environ))
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        _, ca_pem, namespace = [(folder / name).read_text() for name in ("token", "ca.crt", "namespace")]
    except OSError:
        return None
    if not host:
        return None
    server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    return Access(server, lambda: (folder / "token").read_text().strip(), ca_pem, namespace.strip())


class Cluster:
    """Use as `async with`. Everything raises Refused for an answer that says no, and OSError or TimeoutError when there
    is none; 429 is asked again, as often as `_TRIES` allow."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def __aenter__(self) -> Self:
        is_plain = self._access.server.startswith("http:")
        context = None if is_plain else ssl.create_default_context(cadata=self._access.ca_pem)
        self._session = aiohttp.ClientSession(
            self._access.server,
            connector=aiohttp.TCPConnector(ssl=context or True, limit=_CONNECTIONS),
            headers={"User-Agent": "capstan-bench"},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @property
    def _identity(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._access.token()}"}

    async def ask(self, method: str, path: str, body: Any = None, **query: str) -> dict[str, Any]:
        """The parsed answer."""
        for attempt in range(1, _TRIES + 1):
            async with self._session.request(method, path, json=body, params=query, headers=self._identity) as answer:
                content = await answer.read()
                if answer.status == 429 and attempt < _TRIES:
                    pause = min(5.0, float(answer.headers.get("Retry-After", "1")))
                elif answer.status >= 400:
                    raise Refused(answer.status, _message(content))
                else:
                    document: dict[str, Any] = json.loads(content)
                    return document
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def watch(self, path: str, version: str, **query: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """(ADDED, MODIFIED or DELETED; object) of every change after resource version `version`, without an end."""
        while True:
            params = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", **query}
            timeout = aiohttp.ClientTimeout(sock_connect=REQUEST_SECONDS)
            async with self._session.get(path, params=params, timeout=timeout, headers=self._identity) as answer:
                if answer.status >= 400:
                    raise Refused(answer.status, _message(await answer.read()))
                rest = b""
                async for piece in answer.content.iter_any():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        change = json.loads(line)
                        if change["type"] == "ERROR":
                            status = change["object"]
                            raise Refused(status.get("code", 500), status.get("message", ""))
                        version = change["object"]["metadata"]["resourceVersion"]
                        if change["type"] != "BOOKMARK":
                            yield change["type"], change["object"]
            await asyncio.sleep(_PAUSE_SECONDS)


def _message(content: bytes) -> str:
    try:
        text = str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        text = content[:300].decode(errors="replace")
    return " ".join(text.split())
