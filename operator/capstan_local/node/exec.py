"""`kubectl exec` over a WebSocket: Kubernetes' channel protocol, versions 4 and 5.

Each binary message begins with the number of its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final Status, 4 the size
of the terminal, and in version 5 a message [255, n] closes channel n.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import pty
import signal
import struct
import termios
from typing import Any

from aiohttp import WSMsgType, web

from capstan_local.node.container import Container
from capstan_local.node.processes import Exit, Process, StartError

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
READ_BYTES = 32 * 1024
DRAIN_SECONDS = 2.0
HEARTBEAT_SECONDS = 30.0


async def serve_exec(request: web.Request, container: Container) -> web.StreamResponse:
    """Runs the command of the request in `container`, connected to the request's WebSocket."""
    query = request.query
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise web.HTTPBadRequest(text="exec: upgrade to a WebSocket with sub-protocol v5.channel.k8s.io is needed")
    argv = query.getall("command", [])
    if not argv:
        raise web.HTTPBadRequest(text="exec: you must specify at least 1 command for the container")
    if not container.state.is_running:
        raise web.HTTPBadRequest(text=f'exec: container "{container.name}" is not running')
    # kube-apiserver asks its nodes for input, output, error and tty; clients ask API servers for stdin, stdout, stderr.
    wants = {
        name: query.get(name, query.get(other, "")).lower() in ("1", "true")
        for name, other in (("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty"))
    }
    socket = web.WebSocketResponse(protocols=PROTOCOLS, heartbeat=HEARTBEAT_SECONDS)
    await socket.prepare(request)
    session = Session(socket, wants)
    try:
        process = await session.start(container, argv)
    except StartError as error:
        await session.finish(_failure("InternalError", str(error)))
        return socket
    finally:
        session.close_theirs()
    try:
        ended = await session.run(process)
        await session.finish(_outcome(ended))
    finally:
        process.kill()
        session.close()
    return socket


class Session:
    """The pipes of one command, or its terminal, and the socket they are joined to."""

    def __init__(self, socket: web.WebSocketResponse, wants: dict[str, bool]) -> None:
        self._socket = socket
        self._wants = wants
        self._ours: set[int] = set()
        self._theirs: set[int] = set()
        self._stdin: int | None = None
        self._outputs: dict[int, int] = {}
        """descriptor -> channel"""

    async def start(self, container: Container, argv: list[str]) -> Process:
        if self._wants["tty"]:
            ours, theirs = pty.openpty()
            self._ours.add(ours)
            self._theirs.add(theirs)
            self._stdin, self._outputs = ours, {ours: STDOUT}
            stdin: int | None = theirs
            stdout = stderr = theirs
        else:
            stdin = self._pipe(STDIN) if self._wants["stdin"] else None
            stdout, stderr = self._pipe(STDOUT), self._pipe(STDERR)
        for descriptor in self._ours:
            os.set_blocking(descriptor, False)
        return await container.execute(argv, stdin=stdin, stdout=stdout, stderr=stderr, tty=self._wants["tty"])

    def _pipe(self, channel: int) -> int:
        """The command's end of a new pipe."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        if channel == STDIN:
            ours, theirs = writer, reader
            self._stdin = ours
        else:
            ours, theirs = reader, writer
            self._outputs[ours] = channel
        self._ours.add(ours)
        self._theirs.add(theirs)
        return theirs

    async def run(self, process: Process) -> Exit:
        """How the command ended. When the client goes away before that, the command is killed."""
        outputs = [asyncio.create_task(self._send(fd, channel)) for fd, channel in self._outputs.items()]
        listener = asyncio.create_task(self._listen())
        exited = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({listener, exited}, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                process.send_signal(signal.SIGHUP)
                await process.stop(DRAIN_SECONDS)
            await asyncio.wait(outputs, timeout=DRAIN_SECONDS)  # a background child may keep them open for ever
            return await exited
        finally:
            for task in (*outputs, listener):
                task.cancel()
            await asyncio.gather(*outputs, listener, return_exceptions=True)

    async def _send(self, descriptor: int, channel: int) -> None:
        while chunk := await _read(descriptor):
            if self._wants["stdout" if channel == STDOUT else "stderr"] or self._wants["tty"]:
                await self._socket.send_bytes(bytes([channel]) + chunk)

    async def _listen(self) -> None:
        """Until the client closes the socket."""
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == STDIN and self._stdin is not None:
                await _write(self._stdin, data)
            elif channel == RESIZE and self._wants["tty"] and self._stdin is not None:
                _resize(self._stdin, data)
            elif channel == CLOSE and data[:1] == bytes([STDIN]):
                self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin is not None and self._stdin in self._ours and not self._wants["tty"]:
            self._ours.discard(self._stdin)
            os.close(self._stdin)
            self._stdin = None

    async def finish(self, status: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionResetError):  # the client did not wait for the outcome
            await self._socket.send_bytes(bytes([ERROR]) + json.dumps(status).encode())
            await self._socket.close()

    def close_theirs(self) -> None:
        _close_all(self._theirs)

    def close(self) -> None:
        _close_all(self._ours)


def _close_all(descriptors: set[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


async def _read(descriptor: int) -> bytes:
    """The next bytes; none at the end."""
    while True:
        try:
            return os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            await _ready(descriptor, is_reader=True)
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal whose other side is closed
                return b""
            raise


async def _write(descriptor: int, data: bytes) -> None:
    """All of `data`; nothing when the command does not read any more."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            await _ready(descriptor, is_reader=False)
        except (BrokenPipeError, ConnectionResetError):
            return


async def _ready(descriptor: int, *, is_reader: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    add, remove = (loop.add_reader, loop.remove_reader) if is_reader else (loop.add_writer, loop.remove_writer)
    add(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        remove(descriptor)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _resize(terminal: int, data: bytes) -> None:
    with contextlib.suppress(ValueError, KeyError):  # a client that sends no size keeps the one there is
        size = json.loads(data)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size["Height"], size["Width"], 0, 0))


def _outcome(ended: Exit) -> dict[str, Any]:
    if ended.code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: {ended.code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(ended.code)}]},
    }


def _failure(reason: str, message: str) -> dict[str, Any]:
    return {"metadata": {}, "status": "Failure", "reason": reason, "message": message, "code": 500}
