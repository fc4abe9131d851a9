"""A client that hides nothing: what was asked, and what came over the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.support.control_planes import ControlPlane

Json = dict[str, Any]

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

VOLATILE_METADATA = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "namespace")


@dataclass(frozen=True)
class Answer:
    """A finished response. `body` is the parsed JSON, or the text of anything else."""

    request: str
    status: int
    headers: dict[str, str]
    body: Any

    def expect(self, status: int) -> Any:
        """The body, if the status is the one expected."""
        assert self.status == status, f"{self.request}: {self.status} instead of {status}: {self.body}"
        return self.body


class Watch:
    """An open watch, read line by line."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self, deadline_seconds: float = 10) -> Json | None:
        """The next event; None when the server has ended the stream; TimeoutError when nothing comes in time."""
        line = await asyncio.wait_for(self.response.content.readline(), deadline_seconds)
        event: Json | None = json.loads(line) if line else None
        return event

    async def take(self, count: int) -> list[Json]:
        return [event for _ in range(count) if (event := await self.next()) is not None]

    async def is_silent(self, seconds: float = 0.3) -> bool:
        """Whether nothing arrives for a while. Ends the watch's use."""
        try:
            await self.next(seconds)
        except TimeoutError:
            return True
        return False


@dataclass(frozen=True)
class Api:
    session: aiohttp.ClientSession
    url: str
    token: str

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        token: str | None = None,
        **query: Any,
    ) -> Answer:
        headers = {"Accept": accept, "Authorization": f"Bearer {self.token if token is None else token}"}
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = body if isinstance(body, str | bytes) else json.dumps(body)
        params = {name: str(value) for name, value in query.items()}
        async with self.session.request(method, self.url + path, data=data, headers=headers, params=params) as response:
            text = await response.text()
            is_json = "json" in response.headers.get("Content-Type", "")
            return Answer(
                request=f"{method} {response.url.raw_path_qs}",
                status=response.status,
                headers=dict(response.headers),
                body=json.loads(text) if is_json and text else text,
            )

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any, **options: Any) -> Answer:
        return await self.call("POST", path, body, **options)

    async def put(self, path: str, body: Any, **options: Any) -> Answer:
        return await self.call("PUT", path, body, **options)

    async def patch(self, path: str, body: Any, content_type: str = MERGE, **options: Any) -> Answer:
        return await self.call("PATCH", path, body, content_type=content_type, **options)

    async def apply(self, path: str, body: Json, manager: str, **options: Any) -> Answer:
        """Server-side apply as field manager `manager`."""
        return await self.call("PATCH", path, body, content_type=APPLY, fieldManager=manager, **options)

    async def delete(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("DELETE", path, body, **options)

    @asynccontextmanager
    async def watch(self, path: str, **query: Any) -> AsyncIterator[Watch]:
        params = {name: str(value) for name, value in {"watch": "true", **query}.items()}
        headers = {"Accept": "application/json", "Authorization": f"Bearer {self.token}"}
        async with self.session.get(self.url + path, params=params, headers=headers) as response:
            assert response.status == 200, await response.text()
            yield Watch(response)


@asynccontextmanager
async def connect(plane: ControlPlane) -> AsyncIterator[Api]:
    connector = aiohttp.TCPConnector(ssl=plane.ssl_context())
    # No test waits longer than a minute for one answer; a server that hangs fails the test instead of the run.
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield Api(session, plane.url, plane.token)


async def eventually(check: Callable[[], Awaitable[Any]], what: str, deadline_seconds: float = 20) -> Any:
    """The first true answer of `check`, asked every 50 ms; fails the test naming `what` when time is up."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_seconds
    while not (answer := await check()):
        assert loop.time() < deadline, f"still not after {deadline_seconds:.0f} s: {what}"
        await asyncio.sleep(0.05)
    return answer


async def gone(api: Api, path: str, deadline_seconds: float = 20) -> None:
    """Returns once GET says 404."""

    async def is_gone() -> bool:
        return (await api.get(path)).status == 404

    await eventually(is_gone, f"{path} is gone", deadline_seconds)


def stable(item: Json) -> Json:
    """A copy without what differs from run to run, for comparing whole objects."""
    copy = deepcopy(item)
    for name in VOLATILE_METADATA:
        copy["metadata"].pop(name, None)
    return copy


def names(listing: Json) -> list[str]:
    return [item["metadata"]["name"] for item in listing["items"]]


def failure(code: int, reason: str, message: str, **details: Any) -> Json:
    """The Status object of a refused request."""
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return {**status, "message": message, "reason": reason, "code": code} | ({"details": details} if details else {})
