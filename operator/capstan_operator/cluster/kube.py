"""The operator's Kubernetes client: one pooled session, bytes in and out, a deadline on every call.

It is thin on purpose: callers decode only the fields they need, which is most of the cost of a call.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, Self

import aiohttp
import orjson

from capstan_operator.api.meta import FIELD_MANAGER
from capstan_operator.cluster.credentials import Credentials
from capstan_operator.cluster.errors import ApiError, NotKubernetes, api_error
from capstan_operator.cluster.kinds import Resource
from capstan_operator.cluster.limiter import Lane, Limiter
from capstan_operator.cluster.trail import Trail, named
from capstan_operator.metrics import Metrics

PAGE_SIZE = 500
CALL_SECONDS = 30.0
LIST_SECONDS = 60.0
SILENCE_SECONDS = 70.0
"""A watch that says nothing for so long is taken for dead: servers send a bookmark about once a minute."""
MAX_LINE_BYTES = 8 << 20
"""No watch event is longer: etcd refuses objects over 1.5 MiB. Nor is any answer that is no list."""
MAX_OBJECT_BYTES = 3 << 19
"""etcd refuses larger ones (1.5 MiB): a page of a list is no longer than that for each that was asked for."""
MAX_THROTTLED_TRIES = 5
MAX_RETRY_AFTER = 30.0

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
ANYTHING = "*/*"
METADATA_LIST = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{JSON}"
"""Only metadata where the server can; the whole objects otherwise, of which the reader takes the metadata."""


class KubeClient:
    """Use as `async with KubeClient(...) as client`. Every method raises ApiError. What it writes is noted in `trail`;
    None: nobody asks."""

    def __init__(
        self, credentials: Credentials, limiter: Limiter, metrics: Metrics, trail: Trail | None = None
    ) -> None:
        self._credentials = credentials
        self._limiter = limiter
        self._metrics = metrics
        self._trail = trail
        self._session: aiohttp.ClientSession | None = None
        self.server_date: str | None = None
        """Date of the newest answer (RFC 9110); None: there was none, or it tells no time."""

    async def __aenter__(self) -> Self:
        tls = self._credentials.ssl_context()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=128, keepalive_timeout=75.0, ssl=tls if tls is not None else True),
            headers={"Accept-Encoding": "identity", "User-Agent": FIELD_MANAGER},
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, resource: Resource, namespace: str, name: str, *, lane: Lane = Lane.SYSTEM) -> bytes:
        """The object as JSON."""
        return await self.call("GET", resource.path(namespace, name), lane=lane)

    async def create(self, resource: Resource, namespace: str, body: bytes, *, lane: Lane) -> bytes:
        """The created object. ApiError.is_already_exists when the name is taken."""
        call = self.call("POST", resource.path(namespace), lane=lane, body=body, params={"fieldManager": FIELD_MANAGER})
        return await self._noted("create", resource.kind, namespace, named(body)[0], "", call)

    async def replace(self, resource: Resource, namespace: str, name: str, body: bytes, *, lane: Lane) -> bytes:
        """The object after a PUT; the body's resourceVersion is a precondition."""
        call = self.call(
            "PUT", resource.path(namespace, name), lane=lane, body=body, params={"fieldManager": FIELD_MANAGER}
        )
        return await self._noted("update", resource.kind, namespace, name, "", call)

    async def merge_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
        *,
        lane: Lane,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> bytes:
        """The object after the patch (RFC 7386); `metadata.resourceVersion` in the patch is a precondition. `namespace`
        None: of a cluster-scoped resource."""
        params = {"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        call = self.call(
            "PATCH",
            resource.path(namespace, name, subresource),
            lane=lane,
            body=orjson.dumps(patch),
            content_type=MERGE_PATCH,
            params=params,
        )
        if dry_run:
            return await call
        kind = f"{resource.kind}/{subresource}" if subresource else resource.kind
        return await self._noted("patch", kind, namespace, name, "", call)

    async def apply(
        self, resource: Resource, namespace: str, name: str, manifest: Mapping[str, Any], *, lane: Lane, force: bool
    ) -> bytes:
        """The object after a server-side apply under our field manager."""
        call = self.call(
            "PATCH",
            resource.path(namespace, name),
            lane=lane,
            body=orjson.dumps(manifest),
            content_type=APPLY_PATCH,
            params={"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"},
        )
        return await self._noted("apply", resource.kind, namespace, name, "", call)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, grace_seconds: int | None, lane: Lane
    ) -> bytes:
        """The server's last words about exactly the object with `uid`; a different one is left alone (409)."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        call = self.call("DELETE", resource.path(namespace, name), lane=lane, body=orjson.dumps(options))
        return await self._noted("delete", resource.kind, namespace, name, uid, call)

    async def list_page(
        self, resource: Resource, namespace: str | None, *, selector: str, token: str, accept: str = JSON
    ) -> bytes:
        """One page of at most 500 objects; `token` continues where the page before ended, empty for the first."""
        params = {"limit": str(PAGE_SIZE)}
        if selector:
            params["labelSelector"] = selector
        if token:
            params["continue"] = token
        return await self.call(
            "GET", resource.path(namespace), lane=Lane.SYSTEM, params=params, accept=accept, seconds=LIST_SECONDS
        )

    async def watch(
        self, resource: Resource, namespace: str | None, *, selector: str, version: str
    ) -> AsyncIterator[bytes]:
        """Events after resource version `version`, one JSON line each, until the server ends the stream.

        Raises ApiError: status 410 when the version is too old, status 0 after 70 s of silence or a broken line.
        """
        params = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            # Spread, so that not all watchers of a restarted server come back in the same second.
            "timeoutSeconds": str(random.randint(300, 600)),  # nosec B311  # jitter
        }
        if selector:
            params["labelSelector"] = selector
        path = resource.path(namespace)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=SILENCE_SECONDS)
        try:
            async with self._open().get(
                self._credentials.server + path, params=params, headers=self._headers(JSON), timeout=timeout
            ) as response:
                self._metrics.api_requests.labels("WATCH", str(response.status), Lane.SYSTEM.name.lower()).inc()
                if response.status >= 400:
                    self._note_unauthorized(response.status)
                    raise api_error(response.status, await response.read(), f"WATCH {path}")
                async for line in _lines(response.content):
                    yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "NoAnswer", f"WATCH {path}: {type(error).__name__}: {error}") from error

    async def call(
        self,
        method: str,
        path: str,
        *,
        lane: Lane,
        body: bytes | None = None,
        content_type: str = JSON,
        params: Mapping[str, str] | None = None,
        accept: str = JSON,
        seconds: float = CALL_SECONDS,
    ) -> bytes:
        """The body of the answer. A 429 was not carried out, so it is tried again, up to five times."""
        headers = {"Content-Type": content_type} if body is not None else {}
        for tried in range(1, MAX_THROTTLED_TRIES + 1):
            await self._limiter.acquire(lane)
            started = time.monotonic()
            wait: float | None = None
            try:
                return await self._send(method, path, lane, body, headers | self._headers(accept), params, seconds)
            except ApiError as error:
                if error.status == 401 and tried == 1:
                    self._credentials.forget_token()
                    continue
                if error.status == 429:
                    wait = min(MAX_RETRY_AFTER, 1.0 if error.retry_after is None else error.retry_after)
                if wait is None or tried == MAX_THROTTLED_TRIES:
                    raise
            finally:
                self._limiter.release(lane, time.monotonic() - started, throttled_for=wait)
            await asyncio.sleep(wait * random.uniform(1.0, 1.2))  # nosec B311  # jitter
        raise AssertionError("unreachable: the last try returns or raises")

    async def document(
        self,
        method: str,
        path: str,
        *,
        lane: Lane,
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float = CALL_SECONDS,
    ) -> dict[str, Any]:
        """The JSON object that is the answer. Raises NotKubernetes for one that is none."""
        answer = await self.call(method, path, lane=lane, body=body, params=params, seconds=seconds)
        try:
            found = orjson.loads(answer)
        except orjson.JSONDecodeError as error:
            raise self._stranger(method, path, "what is no JSON") from error
        if not isinstance(found, dict):
            raise self._stranger(method, path, "JSON that is no object")
        return found

    async def _noted(
        self,
        verb: str,
        kind: str,
        namespace: str | None,
        name: str,
        uid: str,
        call: Coroutine[Any, Any, bytes],
    ) -> bytes:
        """What `call` returns or raises, after it was noted. `uid` empty: that of the object in the answer."""
        if self._trail is None:
            return await call
        started = time.monotonic()
        result = "Interrupted"
        """By the loss of the lease, say: it may or may not have been carried out."""
        try:
            answer = await call
            result, uid = "OK", uid or named(answer)[1]
            return answer
        except ApiError as error:
            result = error.reason
            raise
        finally:
            seconds = time.monotonic() - started
            self._trail.note(verb, kind, namespace, name, uid=uid, result=result, seconds=seconds)

    async def _send(
        self,
        method: str,
        path: str,
        lane: Lane,
        body: bytes | None,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None,
        seconds: float,
    ) -> bytes:
        started = time.monotonic()
        code = "none"
        try:
            async with self._open().request(
                method,
                self._credentials.server + path,
                data=body,
                headers=headers,
                params=params,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=10.0),
            ) as response:
                answer = await _read(response, _longest(params), f"{method} {path}")
                code = str(response.status)
                self.server_date = response.headers.get("Date")
        except TimeoutError as error:
            late = f"{self._credentials.server} has not answered {method} {path} within {seconds:g} s"
            raise ApiError(0, "NoAnswer", late) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(0, "NoAnswer", f"{method} {path}: {type(error).__name__}: {error}") from error
        finally:
            self._metrics.api_requests.labels(method, code, lane.name.lower()).inc()
            self._metrics.api_seconds.labels(method).observe(time.monotonic() - started)
        if response.status >= 400:
            raise api_error(response.status, answer, f"{method} {path}", _retry_after(response.headers))
        if headers["Accept"] != ANYTHING and response.content_type != JSON:
            raise self._stranger(method, path, response.content_type)
        return answer

    def _stranger(self, method: str, path: str, what: str) -> NotKubernetes:
        return NotKubernetes(self._credentials.server, f"{method} {path}", what)

    def _headers(self, accept: str) -> dict[str, str]:
        token = self._credentials.current_token()
        return {"Accept": accept} | ({"Authorization": f"Bearer {token}"} if token else {})

    def _note_unauthorized(self, status: int) -> None:
        if status == 401:
            self._credentials.forget_token()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("KubeClient is used before `async with`")
        return self._session


def _longest(params: Mapping[str, str] | None) -> int:
    """Bytes of an answer that may still be one of a Kubernetes API server."""
    return max(MAX_LINE_BYTES, int((params or {}).get("limit", "0")) * MAX_OBJECT_BYTES)


async def _read(response: aiohttp.ClientResponse, most: int, request: str) -> bytes:
    """The whole body. Raises ApiError once it is longer than `most` bytes."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            raise ApiError(0, "AnswerTooLong", f"{request}: the answer is longer than {most} bytes")
    return b"".join(parts)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The complete lines of a stream. A last line without an end is dropped: the connection broke inside it."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(rest) > MAX_LINE_BYTES:
            raise ApiError(0, "LineTooLong", f"a watch event is longer than {MAX_LINE_BYTES} bytes")
