"""The application called without a network: requests as a server would hand them over, to the byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from capstan_runtime.contract.serving import Guards
from capstan_runtime.serving.app import Application, make_app
from tests.serving.models import NumpyClassifier, NumpyDecoder, serve_config


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    is_complete: bool = True

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> str:
        """The message, whatever the protocol."""
        error = self.json["error"]
        return str(error["message"] if isinstance(error, dict) else error)


@dataclass
class Client:
    """One client of `app`. `gone` set: it has disconnected."""

    app: Application
    address: str = "192.0.2.1"
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | Sequence[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        *,
        is_truncated: bool = False,
    ) -> Response:
        """`body` in parts comes without Content-Length. `is_truncated`: the client goes away before its end."""
        parts = [body] if isinstance(body, bytes) else list(body)
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": (self.address, 40000)}
        incoming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if not is_truncated:
            incoming[-1]["more_body"] = False
        sent: list[Any] = []

        async def receive() -> Any:
            if incoming:
                return incoming.pop(0)
            if not is_truncated:
                await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        if not sent:
            return Response(0, {}, b"", is_complete=False)
        pairs = [(name.decode(), value.decode("latin-1")) for name, value in sent[0]["headers"]]
        assert len({name for name, _ in pairs}) == len(pairs), f"a header came twice: {pairs}"
        whole = b"".join(message["body"] for message in sent[1:])
        return Response(sent[0]["status"], dict(pairs), whole, not sent[-1].get("more_body", False))

    async def infer(self, rows: Any, headers: Mapping[str, str] | None = None, **parameters: Any) -> Response:
        """`rows`: a list of samples of the four features that `NumpyClassifier` has by itself."""
        tensor = {"name": "input", "shape": [len(rows), 4], "datatype": "FP32", "data": rows}
        body = orjson.dumps({"inputs": [tensor], **parameters})
        return await self.request("POST", "/v2/models/digits/infer", body, headers)

    async def complete(self, headers: Mapping[str, str] | None = None, **fields: Any) -> Response:
        body = orjson.dumps({"model": "digits", **fields})
        return await self.request("POST", "/v1/completions", body, headers)


@asynccontextmanager
async def running(app: Application) -> AsyncIterator[Client]:
    await app.start()
    try:
        yield Client(app)
    finally:
        await app.stop()


def classifier_app(guards: Guards | None = None, model: NumpyClassifier | None = None, **more: Any) -> Application:
    return make_app(serve_config(guards), model or NumpyClassifier(), **more)


def decoder_app(guards: Guards | None = None, model: NumpyDecoder | None = None, **more: Any) -> Application:
    config = serve_config(guards, protocols=["OpenInference", "OpenAI"])
    return make_app(config, model or NumpyDecoder(), **more)


def metric(text: bytes, name: str) -> float:
    """The value of one sample, named as in the exposition format: `name{label="x"}`."""
    for line in text.decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    raise KeyError(name)
