"""The HTTP server of a replica, without Ray: how it takes leave."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from capstan_runtime.contract.serving import Guards
from capstan_runtime.serve_replica import connection, line
from tests.serve_replica.pods import INFER, READY
from tests.serve_replica.servers import BODY, SECONDS, ask, is_closed, serve, until
from tests.serving.models import NumpyClassifier, NumpyDecoder


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


def test_a_connection_is_kept_for_a_while_only_so_that_new_pods_get_requests_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "CONNECTION_SECONDS", 0.5)
    port, _ = serve(NumpyClassifier(), drain_seconds=0.0)
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    assert ask(kept, INFER, BODY) == (200, False)
    began, answers = time.monotonic(), []
    until(lambda: answers.append(ask(kept, INFER, BODY)) or answers[-1][1])
    assert time.monotonic() - began < SECONDS
    assert {status for status, _ in answers} == {200}
    assert ask(kept, INFER, BODY)[0] == 200, "the client opens the next one by itself"


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


TOKENS, STEP_SECONDS, TIMEOUT_SECONDS = 60, 0.15, 3.0
"""A stream of 9 s, whose pieces each come in time."""


def begin_stream(finish_seconds: float | None) -> tuple[http.client.HTTPResponse, socket.socket]:
    """A stream whose server has been told to drain since, and takes nothing new; the pod's end of its line."""
    model = NumpyDecoder()
    model.step_seconds = STEP_SECONDS
    port, pod = serve(
        model, drain_seconds=0.0, guards=Guards(timeout_seconds=TIMEOUT_SECONDS), finish_seconds=finish_seconds
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    asked = {"model": "digits", "prompt": "a", "max_tokens": TOKENS, "temperature": 0, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(asked))
    response = connection.getresponse()
    assert response.read1().startswith(b"data: ")
    line.say(pod, line.Kind.DRAIN)
    until(lambda: is_closed(port))
    return response, pod


def test_a_stream_that_was_begun_is_finished_although_no_request_may_take_so_long() -> None:
    response, pod = begin_stream(finish_seconds=SECONDS)
    began = time.monotonic()
    assert response.read().endswith(b"data: [DONE]\n\n")
    assert time.monotonic() - began > TIMEOUT_SECONDS
    word = line.hear(pod)
    assert word is not None
    assert word.kind is line.Kind.DRAINED


def test_a_stream_that_is_not_finished_in_the_time_there_is_holds_up_no_drain() -> None:
    response, pod = begin_stream(finish_seconds=1.0)
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    word = line.hear(pod)
    assert word is not None
    assert word.kind is line.Kind.DRAINED


ENDING = """
import ctypes, sys
from tests.serve_replica.servers import serve
from tests.serving.models import NumpyClassifier

libc = ctypes.CDLL(None)
# Once Python is gone, libraries take as long as this to go: sleep(3), of which the argument is the exit status.
libc.on_exit(ctypes.cast(libc.sleep, ctypes.c_void_p), None)
serve(NumpyClassifier(), drain_seconds=0.0)
sys.exit(2)
"""


def test_a_process_that_ends_while_a_server_has_timers_ends_as_it_says() -> None:
    """uvloop calls them from C, into an interpreter that may be gone; uvicorn has one every 0.1 s."""
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=SECONDS)
    assert ended.returncode == 2, ended.stderr
