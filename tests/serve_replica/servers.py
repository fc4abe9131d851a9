"""HTTP servers of a replica in this process, without Ray, and a client of them."""

import http.client
import socket
import ssl
import threading
from collections.abc import Callable

import orjson

from capstan_runtime.contract.serving import Guards
from capstan_runtime.serve_replica.front import open_door
from capstan_runtime.serve_replica.server import Server
from capstan_runtime.serving.app import make_app
from tests.serving.models import NumpyClassifier, NumpyDecoder, serve_config

BODY = orjson.dumps({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 2, 3]}]})
SECONDS = 60.0
LINES: list[socket.socket] = []
"""Both ends: a server whose line ends, ends its process."""


def serve(
    model: NumpyClassifier | NumpyDecoder,
    drain_seconds: float,
    tls: ssl.SSLContext | None = None,
    guards: Guards | None = None,
    finish_seconds: float | None = None,
) -> tuple[int, socket.socket]:
    """A server's port, and the pod's end of its line."""
    protocols = ("OpenAI",) if isinstance(model, NumpyDecoder) else ("OpenInference", "KServeV1")
    drain = {"drain_seconds": drain_seconds, "finish_seconds": finish_seconds}
    config = serve_config(guards, protocols).model_copy(update=drain)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    LINES.extend((ours, theirs))
    ours.settimeout(SECONDS)
    server = Server(make_app(config, model), config, theirs, tls)
    server.warm()
    door = open_door("127.0.0.1", 0)
    port = door.getsockname()[1]
    server.start(door)
    server.check().result(SECONDS)
    return port, ours


def ask(connection: http.client.HTTPConnection, path: str, body: bytes | None = None) -> tuple[int, bool]:
    """Status, and whether it is the last answer over this connection."""
    connection.request("GET" if body is None else "POST", path, body)
    response = connection.getresponse()
    response.read()
    return response.status, response.getheader("connection") == "close"


def until(holds: Callable[[], bool]) -> None:
    limit = threading.Event()
    timer = threading.Timer(SECONDS, limit.set)
    timer.start()
    while not holds():
        assert not limit.is_set()
    timer.cancel()


def is_closed(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionError:  # refused, or reset while the door was being closed
        return True
    return False
