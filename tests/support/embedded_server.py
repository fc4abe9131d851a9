"""The embedded API server inside a test's own event loop, and a session that talks to it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import orjson

from capstan_local.cluster import LocalControlPlane
from tests.support.schemas import share_schemas

T = TypeVar("T")

SECONDS = 20.0


@dataclass
class Embedded:
    """A running server with its administrator's session."""

    plane: LocalControlPlane
    session: aiohttp.ClientSession

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        code: int,
        content_type: str = "application/json",
        **headers: str,
    ) -> Any:
        """The parsed answer; AssertionError with the answer when its code is another one."""
        data = body if isinstance(body, bytes | None) else orjson.dumps(body)
        sent = {"Content-Type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with self.session.request(method, path, data=data, headers=sent) as answer:
            content = await answer.read()
            assert answer.status == code, f"{method} {path}: {answer.status} {content[:500]!r}"
            is_json = answer.headers["Content-Type"].startswith("application/json")
            return orjson.loads(content) if is_json else content.decode()

    async def gone(self, path: str) -> None:
        """Returns once GET `path` says 404; AssertionError when it does not in time."""

        async def look() -> bool:
            async with self.session.get(path) as answer:
                return answer.status == 404

        await eventually(look)


async def eventually(look: Callable[[], Awaitable[T | None]]) -> T:
    deadline = time.monotonic() + SECONDS
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, f"it did not come to pass within {SECONDS:.0f} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def embedded(home: Path) -> AsyncIterator[Embedded]:
    share_schemas(home)
    async with LocalControlPlane(home) as plane:
        tls = ssl.create_default_context(cafile=str(plane.ca_path))
        headers = {"Authorization": f"Bearer {plane.token}"}
        connector = aiohttp.TCPConnector(ssl=tls)
        async with aiohttp.ClientSession(plane.url, headers=headers, connector=connector) as session:
            yield Embedded(plane, session)


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def pod(name: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "example.com/i:1"}
    labels = {"app": "x"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [container], **spec},
    }
