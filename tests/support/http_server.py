"""An ASGI application behind a real HTTP server."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import uvicorn


class Server:
    """uvicorn on a free port of the loopback address, in a thread of its own."""

    def __init__(self, app: Any) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([listener])), daemon=True)
        self._thread.start()
        started = threading.Event()
        for _ in range(2000):
            if self._server.started:
                return
            started.wait(0.005)
        raise TimeoutError("the server did not start within 10 s")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server did not stop within 10 s"
