"""The HTTP server of a replica, without Ray: how it takes leave."""

import http.client
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import orjson

from capstan_runtime.serve_replica import line
from capstan_runtime.serve_replica.front import open_door
from capstan_runtime.serve_replica.server import Server
from capstan_runtime.serving.app import make_app
from tests.serve_replica.pods import INFER, READY
from tests.serving.models import NumpyClassifier, serve_config

BODY = orjson.dumps({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 2, 3]}]})
SECONDS = 60.0
LINES: list[socket.socket] = []
"""Both ends: a server whose line ends, ends its process."""


def serve(model: NumpyClassifier, drain_seconds: float) -> tuple[int, socket.socket]:
    """A server's port, and the pod's end of its line."""
    config = serve_config().model_copy(update={"drain_seconds": drain_seconds})
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    LINES.extend((ours, theirs))
    ours.settimeout(SECONDS)
    server = Server(make_app(config, model), config, theirs)
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


def test_while_it_drains_it_answers_everybody_once_more() -> None:
    port, pod = serve(NumpyClassifier(), drain_seconds=SECONDS)
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    assert [ask(kept, READY), ask(kept, INFER, BODY)] == [(200, False), (200, False)]
    line.say(pod, line.Kind.DRAIN)
    until(lambda: ask(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS), READY) == (503, True))
    fresh = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    assert [ask(kept, INFER, BODY), ask(fresh, INFER, BODY)] == [(200, True), (200, True)]
    line.say(pod, line.Kind.LEAVE)
    word = line.hear(pod)
    assert word is not None
    assert word.kind is line.Kind.DRAINED


def test_what_was_begun_is_finished_before_it_says_that_it_has_drained() -> None:
    model, begun, go_on = NumpyClassifier(), threading.Event(), threading.Event()
    port, pod = serve(model, drain_seconds=0.0)
    model.on_call = lambda inputs: (begun.set(), go_on.wait(SECONDS))[0]
    with ThreadPoolExecutor(1) as client:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        answer: Future[tuple[int, bool]] = client.submit(ask, connection, INFER, BODY)
        assert begun.wait(SECONDS)
        line.say(pod, line.Kind.DRAIN)
        until(lambda: is_closed(port))
        assert not answer.done()
        go_on.set()
        assert answer.result(SECONDS)[0] == 200
    word = line.hear(pod)
    assert word is not None
    assert word.kind is line.Kind.DRAINED


def is_closed(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False
