"""Probes, as a kubelet makes them."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from capstan_local.node.checks import Target, run_handler
from tests.support.certificates import Authority, MountedSecret


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    """A container that answers over TLS alone, with a certificate that nobody knows and that is for another host."""
    secret = MountedSecret(tmp_path / "tls", Authority().issue(names=("somewhere.else",)).files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secret.folder / "tls.crt", secret.folder / "tls.key")

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(status=200 if request.path == "/fine" else 503)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as http:
        yield Target("127.0.0.1", {"http": port}, http, execute=None)  # type: ignore[arg-type]
    await runner.cleanup()


async def look(target: Target, path: str, **action: str) -> str | None:
    return await run_handler({"httpGet": {"path": path, "port": "http", **action}}, target, 10.0)


async def test_a_probe_over_https_does_not_ask_who_answers(target: Target) -> None:
    assert await look(target, "/fine", scheme="HTTPS") is None
    assert await look(target, "/bad", scheme="HTTPS") == "HTTP probe failed with statuscode: 503"


async def test_a_probe_without_a_scheme_is_plain_and_fails_where_tls_is_spoken(target: Target) -> None:
    failure = await look(target, "/fine")
    assert failure is not None
    assert failure.startswith("Get 'http://127.0.0.1:")
