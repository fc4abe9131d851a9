"""The HTTP server in the replica's process: on a thread and an event loop of its own, beside Ray's."""

import asyncio
import atexit
import gc
import math
import os
import socket
import ssl
import threading
import traceback
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, cast

import uvicorn
import uvloop

from capstan_runtime.contract.serving import ServeConfig
from capstan_runtime.serve_replica import line
from capstan_runtime.serve_replica.connection import RETIRING, Connection
from capstan_runtime.serve_replica.tls import server_options
from capstan_runtime.serving.app import Application
from capstan_runtime.serving.exchange import Message, Receive, Scope, Send

_KEEP_ALIVE_SECONDS = 120
"""An idle connection is kept longer than usual clients and balancers keep theirs (60-90 s): who closes first can never
meet a request on its way."""
_END_SECONDS = 5.0
"""For what runs in the event loop to give way when the process ends."""


class _Loop(uvloop.Loop):
    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """Called by uvicorn, which knows no bounds for handshakes."""
        bounded = options | server_options(options.get("ssl"))
        return cast(asyncio.Server, await super().create_server(*args, **bounded))


class Server:
    def __init__(
        self, app: Application, config: ServeConfig, pod: socket.socket, tls: ssl.SSLContext | None = None
    ) -> None:
        """`pod` is the line to the pod's first process, from which no word is expected any more but `start`'s.
        `tls` None: plain HTTP."""
        self._app = app
        self._config = config
        self._pod = pod
        self._loop = _Loop()
        self._is_draining = False
        self._serving: asyncio.Task[None] | None = None
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                self._answer,
                interface="asgi3",
                http=Connection,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=math.ceil(config.longest_finish_seconds),
                ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()
        # uvloop calls its timers from C: one that is due while the interpreter ends would crash the process.
        atexit.register(self._end)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _soon(self, work: Coroutine[Any, Any, None]) -> "Future[None]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def warm(self) -> None:
        """Raises what keeps the model from answering."""
        self._soon(self._app.start()).result()
        gc.collect()
        gc.freeze()  # what lives as long as the process is not looked at again in every collection

    def start(self, door: socket.socket) -> None:
        """Accepts from `door`, and does what the pod says."""
        self._soon(self._start(door)).result()

    def check(self) -> "Future[None]":
        """Fails when the model or the server does not answer."""
        return self._soon(self._app.check())

    async def _start(self, door: socket.socket) -> None:
        self._pod.setblocking(False)
        self._loop.add_reader(self._pod, self._hear)
        self._serving = self._loop.create_task(self._serve(door))

    async def _serve(self, door: socket.socket) -> None:
        """Until all is answered after `_stop_accepting`. If it ends sooner, nothing here can mend it."""
        try:
            await self._uvicorn.serve(sockets=[door])
            if not self._uvicorn.should_exit:
                raise RuntimeError("the HTTP server ended by itself")
            await self._app.stop()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        line.say(self._pod, line.Kind.DRAINED)

    def _hear(self) -> None:
        word = line.hear(self._pod)
        if word is None:
            os._exit(1)  # the pod's first process is gone: nobody would ever stop this one
        match word.kind:
            case line.Kind.DRAIN:
                self._is_draining = True
                self._app.drain()
                self._loop.call_later(self._config.drain_seconds, self._stop_accepting)
            case line.Kind.LEAVE:
                self._app.drain()
                self._stop_accepting()

    def _stop_accepting(self) -> None:
        self._uvicorn.should_exit = True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_draining and RETIRING not in scope.get("extensions", ()):
            await self._app(scope, receive, send)
            return

        async def send_last(message: Message) -> None:
            """Who asks again shall do so over another connection, and find another replica if there is one."""
            if message["type"] == "http.response.start":
                kept = [header for header in message["headers"] if header[0] != b"connection"]
                message = {**message, "headers": [*kept, (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_last)
