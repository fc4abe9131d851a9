"""What the pod's first process answers while no replica does: it lives, and it is not ready."""

import asyncio
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable

from capstan_runtime.serve_replica.tls import server_options

LIVE = "/v2/health/live"
_REQUEST_SECONDS = 5.0
_HEAD_BYTES = 65536
_BACKLOG = 2048
"""Connections that wait to be accepted: while a replica is busy, and for the moment between two of them."""


def listening_address(pod_ip: str) -> str:
    """Every address of a pod that has a network of its own, since `kubectl port-forward` connects to localhost in
    there. Pods whose address is a loopback one share a machine, and each keeps to its own. Raises ValueError."""
    ip = ipaddress.ip_address(pod_ip)
    if ip.is_loopback:
        return pod_ip
    if ip.version == 6:
        return "::"
    return "0.0.0.0"  # nosec B104  # a pod's


def open_door(address: str, port: int) -> socket.socket:
    """The listening socket, which lives as long as the pod: replicas accept from it and leave it to the next one.
    Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind((address, port))
    door.listen(_BACKLOG)
    door.setblocking(False)
    return door


class Front:
    """Answers from `door` between `stand_in` and `step_aside`."""

    def __init__(self, door: socket.socket, is_live: Callable[[], bool], tls: ssl.SSLContext | None = None) -> None:
        """`tls` None: plain HTTP."""
        self._door = door
        self._is_live = is_live
        self._tls = tls
        self._server: asyncio.Server | None = None

    async def stand_in(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._meet, sock=self._door.dup(), limit=_HEAD_BYTES, backlog=_BACKLOG, **server_options(self._tls)
            )

    def step_aside(self) -> None:
        """Who was accepted is still answered."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head.split(b" ", 2)[1]))
                if writer.can_write_eof():  # TLS has no half-closed connections
                    writer.write_eof()
                while await reader.read(_HEAD_BYTES):  # closing before all was read would take the answer back
                    pass
        except (OSError, TimeoutError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever cannot ask gets no answer
        finally:
            writer.close()

    def _answer(self, path: bytes) -> bytes:
        if path.split(b"?", 1)[0] == LIVE.encode():
            is_live = self._is_live()
            return _response("200 OK" if is_live else "503 Service Unavailable", {"live": is_live})
        return _response("503 Service Unavailable", {"error": "the model is not ready yet; try again"})


def _response(status: str, document: object) -> bytes:
    body = json.dumps(document).encode()
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "retry-after: 1\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
