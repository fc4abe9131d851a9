"""The HTTP side: authentication, discovery, and from each resource request to its verb and back."""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiohttp import web

from capstan_local.server import discovery
from capstan_local.server.api import Answer, Api
from capstan_local.server.codec import dumps
from capstan_local.server.errors import ApiError, path_not_found, unauthorized
from capstan_local.server.identity import Authenticator
from capstan_local.server.openapi_cache import OpenApiDocuments
from capstan_local.server.requests import ResourceRequest, bearer_token, parse_path, too_large
from capstan_local.server.storage import StorageFailed
from capstan_local.server.watch import Watch, error_frame

log = logging.getLogger(__name__)

_OPEN_PATHS = ("/livez", "/readyz", "/healthz", "/version")
_MOST_BODY_BYTES = 3 << 20  # kube-apiserver's own limit
_ROOTS = ("/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version")
_STOP_SECONDS = 2.0
# A client that neither reads nor writes for so long has hung; its connection is given up.
_STALLED_SECONDS = 60.0
_COMMON = {"Cache-Control": "no-cache, private"}


class HttpServer:
    """Serves `api` over TLS on a loopback port."""

    def __init__(self, api: Api, authenticator: Authenticator) -> None:
        self._api = api
        self._authenticator = authenticator
        self._documents = OpenApiDocuments(api.catalog, api.store)
        self._watches: set[Watch] = set()
        self._runner: web.ServerRunner | None = None
        self._stopping = False
        self.port = 0
        self.url = ""

    async def start(self, context: ssl.SSLContext, port: int) -> None:
        """Listen on 127.0.0.1; port 0 takes a free one. Raises OSError when the port is taken; may be tried again."""
        server = web.Server(self._handle, request_factory=_make_request, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=_STOP_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=context, backlog=1024)
        try:
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        self.port = self._runner.addresses[0][1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._api.store.global_listeners.append(self._end_outdated_watches)

    async def stop(self) -> None:
        """End the watches, answer what is under way, stop listening."""
        self._stopping = True
        for watch in self._watches:
            watch.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        await self._api.kubelets.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._route(request)
        except ApiError as error:
            return _respond(error.code, dumps(error.status()), headers=error.headers)
        except StorageFailed as error:
            return _failure(ApiError(500, f"Internal error occurred: {error}"))
        except (ConnectionError, TimeoutError):
            # The client went away or stalled: there is nobody to answer, only a connection to give up.
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        except web.HTTPRequestEntityTooLarge:
            return _failure(too_large(_MOST_BODY_BYTES))
        except Exception:
            log.exception("%s %s", request.method, request.path)
            return _failure(ApiError(500, "Internal error occurred: see the server's log"))

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path.startswith(_OPEN_PATHS):
            return self._open(path)
        user = self._authenticator.user_of(bearer_token(request.headers.get("Authorization", "")))
        if user is None:
            raise unauthorized()
        described = self._describe(request, path)
        if described is not None:
            return described
        if path.startswith("/openapi/"):
            return await self._open_api(request, path)
        query = dict(request.query.items())
        asked = parse_path(self._api.catalog, request.method, path, query)
        if asked.subresource == "log":
            return await self._api.kubelets.log(request, asked.namespace, asked.name, query)
        if asked.verb == "connect":
            return await self._api.connect(request, asked)
        if asked.verb == "watch":
            return await self._watch(request, asked, query)
        body = b""
        if request.method not in ("GET", "HEAD"):
            async with asyncio.timeout(_STALLED_SECONDS):
                body = await request.read()
        return _answered(await self._api.answer(asked, query, request.headers, body, user))

    def _open(self, path: str) -> web.Response:
        if path == "/version" or path == "/version/":
            return _respond(200, dumps(discovery.VERSION))
        if self._stopping:
            return web.Response(status=500, text="the server is stopping")
        return web.Response(text="ok")

    def _describe(self, request: web.BaseRequest, path: str) -> web.Response | None:
        """Discovery documents; None when the path is none."""
        catalog = self._api.catalog
        path = path.rstrip("/")
        if path in ("/api", "/apis"):
            version = discovery.aggregated_version(request.headers.get("Accept", ""))
            if version:
                document = discovery.aggregated(catalog, version, core=path == "/api")
                return _respond(200, dumps(document), discovery.aggregated_content_type(version))
            return _respond(
                200, dumps(discovery.api_versions(self.url) if path == "/api" else discovery.group_list(catalog))
            )
        if path == "":
            return _respond(200, dumps({"paths": list(_ROOTS)}))
        parts = path.split("/")[1:]
        found: dict[str, Any] | None = None
        if parts[0] == "api" and len(parts) == 2:
            found = discovery.resource_list(catalog, "", parts[1])
        elif parts[0] == "apis" and len(parts) == 2:
            found = discovery.api_group(catalog, parts[1])
        elif parts[0] == "apis" and len(parts) == 3:
            found = discovery.resource_list(catalog, parts[1], parts[2])
        else:
            return None
        if found is None:
            raise path_not_found()
        return _respond(200, dumps(found))

    async def _open_api(self, request: web.BaseRequest, path: str) -> web.Response:
        document = await self._documents.find(path, request.headers.get("Accept", ""))
        if request.headers.get("If-None-Match") == document.etag:
            return web.Response(status=304, headers={"ETag": document.etag})
        return _respond(200, document.body, document.content_type, {"ETag": document.etag})

    async def _watch(
        self, request: web.BaseRequest, asked: ResourceRequest, query: dict[str, str]
    ) -> web.StreamResponse:
        try:
            watch = self._api.open_watch(asked, query, request.headers.get("Accept", ""))
        except ApiError as error:
            if error.code != 410:
                raise
            # Clients look for the end of a watch inside the stream: 200, then one ERROR event.
            return _respond(200, error_frame(error.status()))
        self._watches.add(watch)
        response = web.StreamResponse(headers={"Content-Type": "application/json", **_COMMON})
        try:
            await response.prepare(request)
            await response.write(b"")
            await self._send(response, watch.frames())
        finally:
            self._watches.discard(watch)
            watch.close()
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, frames: AsyncGenerator[bytes, None]) -> None:
        async with aclosing(frames):
            async for frame in frames:
                async with asyncio.timeout(_STALLED_SECONDS):
                    await response.write(frame)

    def _end_outdated_watches(self, storage_key: str, _change: Any) -> None:
        """After a change of a CRD its clients must come back to see the new schema, or that there is none."""
        if storage_key != "customresourcedefinitions.apiextensions.k8s.io":
            return
        for watch in list(self._watches):
            if not self._api.is_current(watch.resource):
                watch.stop()


def _make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MOST_BODY_BYTES)


def _respond(
    code: int, body: bytes, content_type: str = "application/json", headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(status=code, body=body, headers={"Content-Type": content_type, **_COMMON, **(headers or {})})


def _failure(error: ApiError) -> web.Response:
    return _respond(error.code, dumps(error.status()))


def _answered(answer: Answer) -> web.Response:
    response = _respond(answer.code, answer.body, answer.content_type)
    for warning in answer.warnings:
        quoted = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response
