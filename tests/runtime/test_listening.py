"""What keeps a flood, a dawdler and a bomb from the operator's port and the supervisors', with real connections."""

from __future__ import annotations

import asyncio
import gzip
import logging
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from capstan_runtime import listening
from capstan_runtime.listening import BURST, MOST_CLIENTS, Allowance, Listener

DEADLINE = 20.0


class Gate(asyncio.Event):
    waiters = 0


@asynccontextmanager
async def listen(**options: Any) -> AsyncIterator[tuple[str, Gate]]:
    """The URL of a server, and what `/slow` waits for."""
    go_on = Gate()

    async def quick(_: web.Request) -> web.Response:
        return web.Response(text="here\n")

    async def slow(_: web.Request) -> web.Response:
        go_on.waiters += 1
        await go_on.wait()
        return web.Response(text="here\n")

    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    app = web.Application(client_max_size=4096)
    app.add_routes([web.get("/healthz", quick), web.get("/", quick), web.get("/slow", slow), web.post("/", echo)])
    listener = Listener(app, is_known=lambda request: request.headers.get("Authorization") == "Bearer t", **options)
    (url,) = await listener.open("127.0.0.1", 0)
    try:
        yield url, go_on
    finally:
        go_on.set()
        await listener.close()


async def statuses(url: str, times: int, source: str = "127.0.0.1", **options: Any) -> list[int]:
    """Of so many requests over one connection of the client at `source`."""
    connector = aiohttp.TCPConnector(limit=1, local_addr=(source, 0))
    async with aiohttp.ClientSession(connector=connector) as session:
        return [(await session.get(url, **options)).status for _ in range(times)]


class Raw:
    """A connection on which anything can be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> Raw:
        host, _, port = url.removeprefix("http://").partition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def ends(self) -> bytes:
        """What came until the server closed it."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def ask(self, path: str = "/healthz") -> bytes:
        """The first line of the answer."""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            return await self.reader.readline()


async def test_a_flood_of_one_client_is_held_back_and_says_when_to_come_again() -> None:
    async with listen(allowance=Allowance(0.0, 3.0)) as (url, _), aiohttp.ClientSession() as session:
        assert await statuses(url, 5) == [200, 200, 200, 429, 429]
        async with session.get(url) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")


async def test_others_probes_and_who_shows_the_token_are_answered_all_the_same() -> None:
    async with listen(allowance=Allowance(0.0, 1.0)) as (url, _):
        assert await statuses(url, 2) == [200, 429]
        assert await statuses(url, 2, source="127.0.0.2") == [200, 429]
        assert await statuses(f"{url}/healthz", 30) == [200] * 30
        assert await statuses(url, 30, headers={"Authorization": "Bearer t"}) == [200] * 30
        assert await statuses(url, 1, headers={"Authorization": "Bearer x"}) == [429]


def test_an_allowance_fills_again_and_remembers_a_bounded_number_of_clients() -> None:
    allowance = Allowance(2.0, 3.0)
    assert [allowance.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.take("a", 1.0) for _ in range(3)] == [True, True, False]
    assert [allowance.take("a", 100.0) for _ in range(4)] == [True, True, True, False]
    for number in range(2 * MOST_CLIENTS):
        allowance.take(str(number), 100.0)
    assert len(allowance._buckets) == MOST_CLIENTS
    assert BURST >= 1


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_a_connection_whose_request_never_comes_to_its_end_is_closed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(listening, "SWEEP_SECONDS", 0.1)
    async with listen() as (url, go_on):
        worked_on, dawdler = await Raw.open(url), await Raw.open(url)
        answer = asyncio.create_task(worked_on.ask("/slow"))
        dawdler.writer.write(sent)
        assert await dawdler.ends() == b""
        go_on.set()
        assert await answer == b"HTTP/1.1 200 OK\r\n"


async def test_of_too_many_connections_the_one_that_has_waited_longest_gives_way() -> None:
    async with listen(connections=3) as (url, _):
        kept = [await Raw.open(url) for _ in range(3)]
        for one in (kept[1], kept[2]):
            assert await one.ask() == b"HTTP/1.1 200 OK\r\n"
        late = await Raw.open(url)
        assert await late.ask() == b"HTTP/1.1 200 OK\r\n"
        assert await kept[0].ends() == b""
        later = await Raw.open(url)
        assert await later.ask() == b"HTTP/1.1 200 OK\r\n"
        assert (await kept[1].ends()).endswith(b"here\n")


async def test_where_all_connections_are_worked_on_a_new_one_is_refused() -> None:
    async with listen(connections=2) as (url, go_on):
        busy = [await Raw.open(url) for _ in range(2)]
        answers = [asyncio.create_task(one.ask("/slow")) for one in busy]
        async with asyncio.timeout(DEADLINE):
            while go_on.waiters < 2:
                await asyncio.sleep(0.01)
        assert await (await Raw.open(url)).ends() == b""
        go_on.set()
        assert await asyncio.gather(*answers) == [b"HTTP/1.1 200 OK\r\n"] * 2


@pytest.mark.parametrize(
    ("files", "connections"),
    [(1_048_576, 1024), (1024, 512), (resource.RLIM_INFINITY, 1024)],
)
def test_connections_are_bounded_however_many_files_may_be_open(
    files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert Listener(web.Application())._most_connections == connections


MALFORMED = {
    "no HTTP": b"garbage\r\n\r\n",
    "a long line": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 5000 + b"\r\n\r\n",
    "many lines": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(40)) + b"\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_no_request_is_refused_without_a_word_in_the_log(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with listen() as (url, _):
        for _ in range(3):
            stranger = await Raw.open(url)
            stranger.writer.write(sent)
            assert (await stranger.ends()).startswith(b"HTTP/1.0 400 ")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_error_of_our_own_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: web.Request) -> web.Response:
        raise ZeroDivisionError

    app = web.Application()
    app.add_routes([web.get("/", broken)])
    listener = Listener(app)
    (url,) = await listener.open("127.0.0.1", 0)
    assert await statuses(url, 1) == [500]
    await listener.close()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_what_a_compressed_body_would_unpack_to_is_not_looked_at() -> None:
    bomb = gzip.compress(bytes(100 << 20))[:4000]
    async with listen() as (url, _), aiohttp.ClientSession() as session:
        async with session.post(url, data=bomb, headers={"Content-Encoding": "gzip"}) as response:
            assert (response.status, await response.text()) == (200, str(len(bomb)))
        async with session.post(url, data=bytes(5000)) as response:
            assert response.status == 413
