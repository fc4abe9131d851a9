"""Serving replicas without models: one small HTTP server per loopback address, all on one port, with real metrics."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from capstan_runtime.contract.serving import ServedModel
from capstan_runtime.serving.metrics import Metrics
from capstan_runtime.serving.refusal import Outcome, Shed


class FakeReplica:
    """What one pod says of itself, and how often it was asked."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.asked = 0
        self.hangs = False
        self.ongoing = 0
        self.answer: web.Response | None = None
        """Instead of the metrics."""
        self.restart()

    def restart(self) -> None:
        """The container starts again: all is counted from zero."""
        self.metrics = Metrics(ServedModel(name="digits", version=self.revision, run="run-uid", root="blake3:5e"))
        self.metrics.show("ongoing_requests", "Requests that are worked on or wait for it.", lambda: self.ongoing)

    def serve(self, requests: int, outcome: Outcome = Outcome.OK, shed: Shed | None = None, ms: float = 3.0) -> None:
        """So many requests end like this after so many milliseconds."""
        for _ in range(requests):
            self.metrics.note_end(outcome, shed, ms / 1000)

    async def show(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(3600)
        if self.answer is not None:
            return web.Response(status=self.answer.status, body=self.answer.body, headers=self.answer.headers)
        return web.Response(body=self.metrics.render(), headers={"content-type": "text/plain; version=0.0.4"})


class FakeReplicas:
    def __init__(self, port: int) -> None:
        self.port = port
        self._runners: list[web.AppRunner] = []

    async def add(self, ip: str, revision: str, tls: ssl.SSLContext | None = None) -> FakeReplica:
        """Start one at `ip`:port."""
        one = FakeReplica(revision)
        app = web.Application()
        app.add_routes([web.get("/metrics", one.show)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, ip, self.port, ssl_context=tls).start()
        return one

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()


@asynccontextmanager
async def serve_fake_replicas(port: int) -> AsyncIterator[FakeReplicas]:
    replicas = FakeReplicas(port)
    try:
        yield replicas
    finally:
        await replicas.stop()
