"""Clients of an InferenceService: one that asks once, and many that ask at a constant rate and never try again."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from capstan_local.node.proxy import Address
from capstan_runtime.data.digits import open_digits

REQUEST_SECONDS = 90.0
"""Far beyond the deadline of any service: who waits that long is not late, but forgotten."""


def digits(count: int) -> npt.NDArray[np.float32]:
    """The first of the images that the model was trained on."""
    samples, _ = open_digits()
    return samples.fetch(np.arange(count))[0]


def request_body(images: npt.NDArray[np.float32]) -> bytes:
    """Of the Open Inference Protocol."""
    shape = list(images.shape)
    tensor = {"name": "input", "shape": shape, "datatype": "FP32", "data": images.reshape(-1).tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        return self.status, self.document["error"]

    def output(self, name: str) -> list[Any]:
        found: list[Any] = next(entry["data"] for entry in self.document["outputs"] if entry["name"] == name)
        return found


class Client:
    """One persistent connection of a client with an API key; None: it has none."""

    def __init__(self, address: Address, key: str | None) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=REQUEST_SECONDS)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Header names are given with _ for -. Of a body whose length a header says, nothing is sent."""
        sent = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request("GET" if body is None else "POST", path, body, sent)
        return self.answer()

    def begin(self, path: str, length: int) -> None:
        """Announces a body of `length` bytes and sends none of it."""
        self._connection.putrequest("POST", path)
        for name, value in (self._headers | {"content-length": str(length)}).items():
            self._connection.putheader(name, value)
        self._connection.endheaders()

    def answer(self) -> Answer:
        """To what was begun last."""
        answer = self._connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, headers, answer.read())

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Answered:
    """One request of the load that was answered with 200."""

    sent: float
    received: float
    is_fresh: bool
    """It came over a connection of its own."""
    revision: str


@dataclass
class Load:
    """While it is entered: `per_second` requests a second whatever becomes of those before, half of them each over a
    fresh connection, half over persistent ones."""

    address: Address
    path: str
    bodies: Sequence[bytes]
    """Sent in turn."""
    keys: Sequence[str] = ("",)
    """API keys, in turn; an empty one is none."""
    per_second: float = 20.0
    answered: list[Answered] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Everything but an answer 200, in words."""

    def __post_init__(self) -> None:
        self._idle: deque[_Connection] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self.answered and not self.failed and self._thread.is_alive():
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(REQUEST_SECONDS + 10)
        assert not self._thread.is_alive()

    def revisions(self) -> set[str]:
        """Of all answers."""
        return {one.revision for one in self.answered}

    async def _run(self) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                await asyncio.sleep(max(0.0, began + number / self.per_second - time.monotonic()))
                if self._stop.is_set():
                    break
                group.create_task(self._ask(number))
        for connection in self._idle:
            connection.close()

    async def _ask(self, number: int) -> None:
        is_fresh = number % 2 == 0
        sent = time.monotonic()
        connection = None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                connection = await (_connect(self.address) if is_fresh else self._persistent())
                key, body = self.keys[number % len(self.keys)], self.bodies[number % len(self.bodies)]
                answer = await connection.ask(self.path, body, key, close=is_fresh)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self._note_failure(sent, f"{'fresh' if is_fresh else 'persistent'}: {error!r}")
            if connection is not None:
                connection.close()
            return
        if answer.status == 200:
            self.answered.append(Answered(sent, time.monotonic(), is_fresh, answer.headers["x-model-version"]))
        else:
            self._note_failure(sent, f"{answer.status} {answer.body[:200]!r}")
        if is_fresh or answer.headers.get("connection") == "close":
            connection.close()
        else:
            self._idle.append(connection)

    def _note_failure(self, sent: float, what: str) -> None:
        self.failed.append(f"after {time.monotonic() - sent:.2f} s: {what}")

    async def _persistent(self) -> _Connection:
        """The one that was idle longest, so that none is for long; a new one if all are busy or were closed."""
        while self._idle:
            connection = self._idle.popleft()
            if not connection.is_over():
                return connection
            connection.close()
        return await _connect(self.address)


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def is_over(self) -> bool:
        """Whether the other side has closed it."""
        return self.reader.at_eof()

    async def ask(self, path: str, body: bytes, key: str, *, close: bool) -> Answer:
        head = [f"POST {path} HTTP/1.1", "host: digits", f"content-length: {len(body)}"]
        head += [f"x-api-key: {key}"] if key else []
        head += ["connection: close"] if close else []
        self.writer.write("\r\n".join([*head, "", ""]).encode() + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        content = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(lines[0].split()[1]), headers, content)

    def close(self) -> None:
        self.writer.close()


async def _connect(address: Address) -> _Connection:
    return _Connection(*await asyncio.open_connection(*address))
