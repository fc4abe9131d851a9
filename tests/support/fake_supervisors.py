"""Supervisors without pods: one small HTTP server per loopback address, all on one port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import State


@dataclass
class FakeSupervisor:
    """What one pod's supervisor says, and what it was told."""

    state: State
    token: str | None = None
    """None: any is fine."""
    memberships: list[Membership] = field(default_factory=list)
    asked: int = 0
    hangs: bool = False
    answer: bytes | None = None
    """Instead of the state."""
    tokens: set[str] = field(default_factory=set)

    def become(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)

    async def get_state(self, request: web.Request) -> web.Response:
        self.asked += 1
        self.tokens.add(request.headers.get("Authorization", ""))
        if self.hangs:
            await asyncio.sleep(3600)
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        return web.Response(body=self.answer or self.state.model_dump_json(by_alias=True).encode())

    async def put_membership(self, request: web.Request) -> web.Response:
        if self.hangs:
            await asyncio.sleep(3600)
        self.memberships.append(Membership.model_validate_json(await request.read(), by_alias=True, by_name=False))
        return web.Response(status=202)


class FakeSupervisors:
    def __init__(self, port: int) -> None:
        self.port = port
        self._runners: list[web.AppRunner] = []

    async def add(self, ip: str, pod: str, job_uid: str) -> FakeSupervisor:
        """Start one at `ip`:port that speaks for `pod`."""
        one = FakeSupervisor(State(pod=pod, uid=job_uid))
        app = web.Application()
        app.add_routes([web.get("/state", one.get_state), web.put("/membership", one.put_membership)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, ip, self.port).start()
        return one

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()


@asynccontextmanager
async def serve_fake_supervisors(port: int) -> AsyncIterator[FakeSupervisors]:
    supervisors = FakeSupervisors(port)
    try:
        yield supervisors
    finally:
        await supervisors.stop()
