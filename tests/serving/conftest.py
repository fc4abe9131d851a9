"""The application behind a real HTTP server, and without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from capstan_runtime.serving.app import Application
from tests.support.http_server import Server

Serve = Callable[[Application], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(app: Any) -> str:
        servers.append(Server(app))
        return servers[-1].url

    yield start
    for server in servers:
        server.stop()
