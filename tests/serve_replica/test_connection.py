"""What keeps a flood and a dawdler from a replica's port, with real connections."""

from __future__ import annotations

import http.client
import socket
import threading

import pytest

from capstan_runtime.serve_replica import connection, server
from tests.serve_replica.pods import INFER, READY
from tests.serve_replica.servers import BODY, SECONDS, ask, serve, until
from tests.serving.models import Floats, NumpyClassifier


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


@pytest.mark.parametrize("begins", [b"0\r\nX: ", b"0\r\nX: a\r\n", b"1;x="])
def test_neither_are_trailers_and_extensions_of_chunks_without_end(port: int, begins: bytes) -> None:
    post = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % INFER.encode()
    flood = opened(port, post + begins)
    ends = b"\r\n" if begins.endswith(b"\r\n") else b""
    try:
        for number in range(4096):
            flood.sendall(b"X-%d: %s" % (number, b"a" * 1000) + ends)
    except ConnectionError:
        return  # it did not even read it all
    assert rest_of(flood).startswith(b"HTTP/1.1 400 ")


def test_a_body_in_many_small_chunks_is_no_head(port: int) -> None:
    body = BODY.ljust(30_000)
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    client.request(
        "POST",
        INFER,
        iter([body[n : n + 1] for n in range(len(body))]),
        encode_chunked=True,
        headers={"Transfer-Encoding": "chunked"},
    )
    assert client.getresponse().status == 200


@pytest.mark.parametrize("size", [60_000, 66_000, 100_000, 256_000, 500_000, 1_000_000])
def test_bodies_larger_than_any_head_are_answered_time_after_time(port: int, size: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    assert [ask(client, INFER, BODY.ljust(size))[0] for _ in range(20)] == [200] * 20


def test_a_head_behind_a_large_body_is_not_charged_for_it(port: int) -> None:
    body = BODY.ljust(200_000)
    post = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body))
    client = opened(port, post + body + b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n")
    assert client.recv(15) == b"HTTP/1.1 200 OK"
    client.sendall(b"Connection: close\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in rest_of(client)


@pytest.mark.parametrize("early", [b"\r\n", b"GET /v2/health/ready HT"])
def test_what_follows_a_request_early_does_not_cut_its_answer_off(
    early: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    model = NumpyClassifier()
    port = serve(model, drain_seconds=0.0)[0]
    is_computed, has_begun = threading.Event(), threading.Event()

    def compute(_: Floats) -> None:
        has_begun.set()
        assert is_computed.wait(SECONDS)

    model.on_call = compute
    post = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(BODY))
    client = opened(port, post + BODY)
    assert has_begun.wait(SECONDS)
    client.sendall(early)
    dawdler = opened(port, b"GET /v2/health/re")
    assert rest_of(dawdler) == b""  # it came later than `early`, so its time was up later
    is_computed.set()
    assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_blank_lines_keep_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_KEEP_ALIVE_SECONDS", 1)
    client = opened(serve(NumpyClassifier(), drain_seconds=0.0)[0])
    client.settimeout(0.05)

    def is_closed() -> bool:
        try:
            client.sendall(b"\r\n")
            return client.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    until(is_closed)


def test_of_too_many_connections_the_one_that_has_waited_longest_gives_way(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 3)
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
