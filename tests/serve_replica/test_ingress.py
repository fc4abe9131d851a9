"""The application behind Ray Serve's own HTTP proxy, with real Ray and a real checkpoint of a language model."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from capstan_runtime.contract import env
from tests.serve_replica.pods import READY, SECONDS, config_of
from tests.support.checkpoints import save
from tests.support.predictors import signature_of, state_of

COMPLETIONS = "/v1/completions"
ASKED = {"model": "digits", "prompt": "a", "max_tokens": 5, "temperature": 0}
SIGNATURE = signature_of({"transformer": {"layers": 1, "dim": 16, "heads": 2}}, (64,), 256).model_copy(
    update={"text": True}
)


@contextlib.contextmanager
def ray_serve(folder: Path) -> Iterator[int]:
    """The port of its proxy, once it serves."""
    root = save(folder / "store", 10, arrays=state_of(SIGNATURE), signature=SIGNATURE).root
    (folder / "serve.json").write_text(config_of(root, protocols=["OpenAI"]).model_dump_json(by_alias=True))
    (folder / "r").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    facts = {env.SERVE_CONFIG: folder / "serve.json", env.POD_IP: "127.0.0.1", env.STORE: folder / "store"}
    command = (sys.executable, "-m", "tests.serve_replica.ray_ingress", str(folder / "r"), str(port))
    log = folder / "log"
    with log.open("wb") as out:
        environ = {**os.environ, **{name: str(value) for name, value in facts.items()}}
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + SECONDS
        while "it serves" not in (said := log.read_text(errors="replace")):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        yield port
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def ask(port: int, path: str, document: Any = None, **headers: str) -> tuple[int, str, str]:
    """(status, content type, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        body = None if document is None else json.dumps(document)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, sent)
        response = connection.getresponse()
        return response.status, response.headers["content-type"], response.read().decode()
    finally:
        connection.close()


def test_behind_serves_proxy_the_same_application_answers_streams_and_heeds_no_word_to_ray(tmp_path: Path) -> None:
    with ray_serve(tmp_path) as port:
        assert ask(port, READY)[0] == 200
        status, _, body = ask(port, COMPLETIONS, ASKED)
        assert status == 200, body
        whole = json.loads(body)["choices"][0]["text"]

        status, kind, body = ask(port, COMPLETIONS, {**ASKED, "stream": True})
        assert (status, kind.partition(";")[0]) == (200, "text/event-stream")
        events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == whole

        # Serve's proxy would take it at its word, and answer 408.
        assert ask(port, COMPLETIONS, ASKED, x_request_timeout_seconds="0.000001")[0] == 200
        # Guards are the application's: what it refuses, it refuses in its own words.
        status, _, body = ask(port, COMPLETIONS, {**ASKED, "model": "other"})
        assert (status, json.loads(body)["error"]["type"]) == (404, "invalid_request_error")
