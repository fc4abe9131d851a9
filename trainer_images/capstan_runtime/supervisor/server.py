"""The pod's HTTP face: `/state` and `/membership` for the operator, `/memory` for the job's other pods, `/metrics` and
`/healthz` for everybody."""

import asyncio
import hmac
from collections.abc import Mapping
from typing import Protocol

from aiohttp import web
from pydantic import ValidationError

from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import State
from capstan_runtime.listening import Handler, Listener
from capstan_runtime.supervisor.exposition import CONTENT_TYPE, Facts, render
from capstan_runtime.supervisor.memory_tier import SECONDS as MEMORY_SECONDS
from capstan_runtime.supervisor.memory_tier import MemoryFiles, MemoryTier

_MOST_BODY_BYTES = 65536
"""A membership names every rank's supervisor: 64 KiB are 2,000 ranks, and half of what Linux lets a variable hold."""
_MEMORY = "/memory/"
_KEPT_HEADERS = ("Allow", "Content-Range")
"""Of an error: they say what would not have been one."""
_REQUEST_SECONDS = 5.0


class Refused(Exception):
    """A membership that cannot be accepted; the message says why."""


class Supervised(Protocol):
    """What the server shows and passes on."""

    @property
    def state(self) -> State: ...

    @property
    def facts(self) -> Facts: ...

    def accept(self, membership: Membership) -> None:
        """Raises Refused."""
        ...

    def refuse(self, reason: str) -> None:
        """Takes note of a membership that could not even be read."""
        ...


def make_listener(supervised: Supervised, token: str, memory: MemoryTier | None) -> Listener:
    """All but `/metrics` and `/healthz` ask for `token`; requests are small and must arrive within five seconds. Those
    of who shows the token are not counted."""
    memory_files = MemoryFiles(memory)
    app = web.Application(middlewares=[_bounded], client_max_size=_MOST_BODY_BYTES)
    expected = f"Bearer {token}".encode()

    def shows_token(request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, expected)

    def for_the_job(handler: Handler) -> Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            if not shows_token(request):
                return _status(401, "Unauthorized", "the job's bearer token is missing or wrong")
            return await handler(request)

        return checked

    async def get_state(_: web.Request) -> web.Response:
        return web.json_response(text=supervised.state.model_dump_json(by_alias=True, exclude_none=True))

    async def put_membership(request: web.Request) -> web.Response:
        try:
            membership = Membership.model_validate_json(await request.read(), by_alias=True, by_name=False)
        except web.HTTPRequestEntityTooLarge as error:
            supervised.refuse(error.text or error.reason)
            raise
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "membership"
            reason = f"{where}: {first['msg']}"
            supervised.refuse(reason)
            return _status(422, "Invalid", reason)
        try:
            supervised.accept(membership)
        except Refused as error:
            return _status(409, "Conflict", str(error))
        return await get_state(request)

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(text=render(supervised.state, supervised.facts), headers={"Content-Type": CONTENT_TYPE})

    async def get_healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app.add_routes(
        [
            web.get("/state", for_the_job(get_state)),
            web.put("/membership", for_the_job(put_membership)),
            web.get(_MEMORY + "{key:.+}", for_the_job(memory_files.answer), allow_head=False),
            web.get("/metrics", get_metrics),
            web.get("/healthz", get_healthz),
        ]
    )
    return Listener(app, is_known=shows_token, close_seconds=_REQUEST_SECONDS)


@web.middleware
async def _bounded(request: web.Request, handler: Handler) -> web.StreamResponse:
    seconds = MEMORY_SECONDS if request.path.startswith(_MEMORY) else _REQUEST_SECONDS
    try:
        async with asyncio.timeout(seconds):
            return await handler(request)
    except TimeoutError:
        return _status(408, "Timeout", f"request and answer took more than {seconds:g} s")
    except web.HTTPException as error:
        headers = {name: error.headers[name] for name in _KEPT_HEADERS if name in error.headers}
        return _status(error.status, error.reason.replace(" ", ""), error.text or error.reason, headers)


def _status(code: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error in the form that Kubernetes' API uses."""
    document = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return web.json_response(document, status=code, headers=headers)
