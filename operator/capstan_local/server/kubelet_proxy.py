"""Pod subresources that a node answers: log, exec, attach. The node is asked as kube-apiserver asks a kubelet."""

import asyncio
import ssl
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web

from capstan_local.server.errors import ApiError, bad_request, not_found, not_implemented
from capstan_local.server.storage import Store

Object = dict[str, Any]

_CONNECT_SECONDS = 10.0
_CHUNK_BYTES = 64 << 10
_MOST_MESSAGE_BYTES = 16 << 20
_MOST_ERROR_BYTES = 4096
_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io")
# Names of the streams in a client's query and in that of a kubelet.
_STREAMS = (("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty"))


class KubeletProxy:
    """Passes requests for a pod on to its node, showing it `token`. Nodes make their own certificates, so these are not
    verified; the connection never leaves this machine."""

    def __init__(self, store: Store, token: str) -> None:
        self._store = store
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def log(
        self, request: web.BaseRequest, namespace: str, name: str, query: dict[str, str]
    ) -> web.StreamResponse:
        """The container's log, streamed as long as the node sends it."""
        pod = self._pod(namespace, name)
        container = _container(pod, query.get("container", ""))
        node = (pod.get("spec") or {}).get("nodeName")
        response = web.StreamResponse(headers={"Content-Type": "text/plain", "Cache-Control": "no-cache, private"})
        if not node:
            await response.prepare(request)
            return response
        options = {key: value for key, value in query.items() if key != "container"}
        url = self._url(node, "containerLogs", namespace, name, container) + (
            f"?{urlencode(options)}" if options else ""
        )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
        try:
            async with self._client().get(url, timeout=timeout) as answer:
                if answer.status >= 400:
                    raise await _failure(answer)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
        except (aiohttp.ClientError, TimeoutError) as error:
            if response.prepared:
                return response  # the node went away in the middle of a log: its end is all that can be told
            raise ApiError(500, f'Get "{url}": {error}') from None
        await response.write_eof()
        return response

    async def stream(self, request: web.BaseRequest, what: str, namespace: str, name: str) -> web.StreamResponse:
        """exec and attach: the client's websocket joined to one of the node."""
        pod = self._pod(namespace, name)
        container = _container(pod, request.query.get("container", ""))
        node = (pod.get("spec") or {}).get("nodeName")
        if not node:
            raise bad_request(f"pod {name} does not have a host assigned")
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise not_implemented(f"{what} over {request.headers.get('Upgrade') or 'plain HTTP'} (use websockets)")
        wanted = [item.strip() for item in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if item.strip()]
        offered = [protocol for protocol in wanted if protocol in _PROTOCOLS]
        query = [(there, "1") for here, there in _STREAMS if request.query.get(here) in ("true", "1")]
        query += [("command", part) for part in request.query.getall("command", [])]
        url = self._url(node, what, namespace, name, container) + f"?{urlencode(query)}"
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                upstream = await self._client().ws_connect(url, protocols=offered, max_msg_size=_MOST_MESSAGE_BYTES)
        except aiohttp.WSServerHandshakeError as error:
            raise ApiError(error.status if 400 <= error.status < 600 else 500, error.message) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(500, f"error dialing backend: {error or 'timed out'}") from None
        client = web.WebSocketResponse(
            protocols=[upstream.protocol] if upstream.protocol else [], max_msg_size=_MOST_MESSAGE_BYTES
        )
        try:
            await client.prepare(request)
            await _join(client, upstream)
        finally:
            await upstream.close()
            await client.close()
        return client

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=0),
                headers={"Authorization": f"Bearer {self._token}"},
                read_bufsize=_CHUNK_BYTES,
            )
        return self._session

    def _pod(self, namespace: str, name: str) -> Object:
        entry = self._store.get("pods", namespace, name)
        if entry is None:
            raise not_found("pods", "", name)
        return entry.load()

    def _url(self, node_name: str, what: str, namespace: str, pod: str, container: str) -> str:
        entry = self._store.get("nodes", "", node_name)
        if entry is None:
            raise not_found("nodes", "", node_name)
        status = entry.load().get("status") or {}
        addresses = {address["type"]: address["address"] for address in status.get("addresses") or ()}
        host = addresses.get("InternalIP") or addresses.get("Hostname")
        port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port")
        if not host or not port:
            raise ApiError(500, f"no preferred addresses found; known addresses: {sorted(addresses.items())}")
        return f"https://{host}:{port}/{what}/{quote(namespace)}/{quote(pod)}/{quote(container)}"


def _container(pod: Object, wanted: str) -> str:
    """The container asked for, or the only one. Raises ApiError 400."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    names = [container["name"] for container in spec["containers"]]
    others = [
        container["name"] for field in ("initContainers", "ephemeralContainers") for container in spec.get(field) or ()
    ]
    if wanted:
        if wanted not in names and wanted not in others:
            raise bad_request(f"container {wanted} is not valid for pod {name}")
        return wanted
    if len(names) == 1:
        return str(names[0])
    choices = f"a container name must be specified for pod {name}, choose one of: [{' '.join(names)}]"
    if others:
        choices += f" or one of the init containers: [{' '.join(others)}]"
    raise bad_request(choices)


async def _failure(answer: aiohttp.ClientResponse) -> ApiError:
    """A node answers in plain text; clients expect a Status."""
    text = (await answer.content.read(_MOST_ERROR_BYTES)).decode(errors="replace").strip()
    return ApiError(answer.status, text or answer.reason or "the node refused")


async def _join(client: web.WebSocketResponse, upstream: aiohttp.ClientWebSocketResponse) -> None:
    """Copy messages both ways until either side ends."""

    async def copy(source: Any, target: Any) -> None:
        async for message in source:
            if message.type == aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)
            elif message.type == aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)
            else:
                return

    tasks = [asyncio.create_task(copy(client, upstream)), asyncio.create_task(copy(upstream, client))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
