"""What keeps a flood and a dawdler from a replica's port, with real connections."""

from __future__ import annotations

import http.client
import socket

import pytest

from capstan_runtime.serve_replica import connection
from tests.serve_replica.pods import INFER, READY
from tests.serve_replica.servers import BODY, SECONDS, ask, serve
from tests.serving.models import NumpyClassifier


@pytest.fixture
def port() -> int:
    return serve(NumpyClassifier(), drain_seconds=0.0)[0]


def opened(port: int, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    client.sendall(sent)
    return client


def rest_of(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def test_a_request_whose_head_never_ends_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    dawdler = opened(port, b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    assert rest_of(dawdler) == b""
    assert ask(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS), INFER, BODY)[0] == 200


def test_so_is_the_second_one_of_a_connection(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    dawdler = opened(port, whole + b"GET /v2/health/re")
    assert rest_of(dawdler).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_head_without_end_is_refused_before_it_fills_the_memory(port: int) -> None:
    flood = opened(port, b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n")
    try:
        for number in range(4096):
            flood.sendall(b"X-%d: %s\r\n" % (number, b"a" * 1000))
    except ConnectionError:
        return  # it did not even read it all
    assert rest_of(flood).startswith(b"HTTP/1.1 400 ")


def test_of_too_many_connections_the_one_that_has_waited_longest_gives_way(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 3)
    kept = [http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS) for _ in range(3)]
    assert [ask(one, READY)[0] for one in kept] == [200, 200, 200]
    assert ask(kept[0], READY)[0] == 200
    late = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    assert ask(late, READY)[0] == 200
    assert kept[1].sock is not None
    assert rest_of(kept[1].sock) == b""
    assert [ask(one, READY)[0] for one in (kept[0], kept[2], late)] == [200, 200, 200]


def test_metrics_are_held_back_for_who_asks_without_end_and_probes_never(port: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    answers = [ask(client, "/metrics")[0] for _ in range(200)]
    assert set(answers) == {200, 429}
    assert answers[:20] == [200] * 20
    assert {ask(client, READY)[0] for _ in range(100)} == {200}
    client.request("GET", "/metrics")
    response = client.getresponse()
    assert (response.status, response.getheader("retry-after")) in ((429, "1"), (200, None))
