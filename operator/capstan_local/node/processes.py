"""The node's side of the launcher: processes as awaitable handles."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from capstan_local.node.launcher import MARK, PACKET_BYTES, all_pids, mark_of

START_SECONDS = 10.0


class StartError(Exception):
    """The program could not be executed; the message is for the container's status."""


@dataclass(frozen=True, slots=True)
class Exit:
    code: int
    """0-255; 128 + N after signal N."""
    signal: int = 0
    """0 when it ended by itself."""


class Process:
    """A process group, started by the launcher."""

    def __init__(self, owner: "Processes", request: int, container: str) -> None:
        self._owner = owner
        self._request = request
        self.container = container
        self.pid = 0
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def send_signal(self, number: int) -> None:
        """To the leader; SIGKILL to the whole group. Nothing happens when it has ended."""
        if not self.exited.done():
            self._owner.tell({"op": "signal", "id": self._request, "signal": number})

    async def wait(self) -> Exit:
        return await asyncio.shield(self.exited)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> Exit:
        """SIGTERM to the leader, and SIGKILL to the group when `grace_seconds` have passed."""
        self.send_signal(signal.SIGTERM)
        await asyncio.wait([self.exited], timeout=grace_seconds)
        self.kill()
        return await self.wait()


class Processes:
    """Starts processes through one launcher, which is started when first needed and again if it dies."""

    def __init__(self, home_mark: str) -> None:
        self._home_mark = home_mark
        self._socket: socket.socket | None = None
        self._launcher: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._next = 0
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        self._alive: dict[int, Process] = {}
        self._started: dict[int, asyncio.Future[int]] = {}

    async def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        container: str,
        *,
        stdout: int,
        stderr: int,
        stdin: int | None = None,
        tty: bool = False,
    ) -> Process:
        """The running process. `container` names whose it is: see `end`. The descriptors stay the caller's.

        Raises StartError when the program cannot be executed or the launcher does not answer.
        """
        await self.open()
        self._next += 1
        request = self._next
        process = Process(self, request, container)
        started = self._started[request] = asyncio.get_running_loop().create_future()
        self._alive[request] = process
        mark = f"{self._home_mark}/{container}"
        spec = {"argv": list(argv), "env": {**env, MARK: mark}, "cwd": str(cwd), "container": mark, "tty": tty}
        try:
            with _sealed(spec) as document, _null() as null:
                descriptors = [document.fileno(), null.fileno() if stdin is None else stdin, stdout, stderr]
                self.tell({"op": "start", "id": request}, descriptors)
                async with asyncio.timeout(START_SECONDS):
                    await started
        except BaseException as error:
            # Refused, or nobody waits for it any more: it must not run unseen.
            self._alive.pop(request, None)
            self.tell({"op": "signal", "id": request, "signal": signal.SIGKILL})
            if isinstance(error, (OSError, TimeoutError)):
                raise StartError(f"the launcher does not answer: {error or type(error).__name__}") from error
            raise
        finally:
            self._started.pop(request, None)
        return process

    def end(self, container: str) -> None:
        """Kills whatever `container` left behind: processes that changed group or session."""
        self.tell({"op": "end", "container": f"{self._home_mark}/{container}"})

    def tell(self, message: dict[str, object], descriptors: Sequence[int] = ()) -> None:
        """Queues a packet. When the launcher dies every handle is told so, by `_lose_launcher`."""
        if self._socket is not None:
            self._outgoing.append((json.dumps(message).encode(), [os.dup(descriptor) for descriptor in descriptors]))
            self._flush()

    async def close(self) -> None:
        """Ends the launcher, which kills all that still runs."""
        if self._socket is None or self._launcher is None:
            return
        self._lose_launcher()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._launcher.wait()

    async def open(self) -> None:
        """Starts the launcher unless it runs; done early, it does not delay the first process."""
        async with self._starting:
            if self._socket is not None:
                return
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            program = Path(__file__).with_name("launcher.py")
            with theirs:
                self._launcher = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-S", str(program), str(theirs.fileno()),
                    pass_fds=[theirs.fileno()], start_new_session=True,
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, env={},
                )  # fmt: skip
            ours.setblocking(False)
            self._socket = ours
            asyncio.get_running_loop().add_reader(ours, self._receive)

    def _flush(self) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._socket)
        while self._outgoing:
            packet, descriptors = self._outgoing[0]
            try:
                if descriptors:
                    socket.send_fds(self._socket, [packet], descriptors)
                else:
                    self._socket.send(packet)
            except BlockingIOError:
                loop.add_writer(self._socket, self._flush)
                return
            except OSError:
                self._lose_launcher()
                return
            self._outgoing.popleft()
            for descriptor in descriptors:
                os.close(descriptor)

    def _receive(self) -> None:
        while self._socket is not None:
            try:
                packet = self._socket.recv(PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._lose_launcher()
                return
            self._note(json.loads(packet))

    def _note(self, message: dict[str, int | str]) -> None:
        request = int(message["id"])
        started = self._started.get(request)
        if started is not None and not started.done():
            if "pid" in message:
                self._alive[request].pid = int(message["pid"])
                started.set_result(self._alive[request].pid)
            else:
                started.set_exception(StartError(str(message["error"])))
        elif "code" in message:
            process = self._alive.pop(request, None)
            if process is not None and not process.exited.done():
                process.exited.set_result(Exit(int(message["code"]), int(message["signal"])))

    def _lose_launcher(self) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()
        self._socket = None
        for _, descriptors in self._outgoing:
            for descriptor in descriptors:
                os.close(descriptor)
        self._outgoing.clear()
        for started in self._started.values():
            if not started.done():
                started.set_exception(ConnectionResetError("the launcher has ended"))
        for process in self._alive.values():
            if not process.exited.done():
                process.exited.set_result(Exit(128 + signal.SIGKILL, signal.SIGKILL))
        self._alive.clear()
        sweep(self._home_mark)


def sweep(home_mark: str) -> int:
    """Kills every process on this machine that was started in a container of the node with this mark; their number."""
    killed = 0
    for pid in all_pids():
        mark = mark_of(pid)
        if mark is not None and mark.startswith(f"{home_mark}/"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def _sealed(spec: dict[str, object]) -> BinaryIO:
    """A file without a name that holds `spec`, to be read from its beginning."""
    document = os.fdopen(os.memfd_create("spec"), "w+b")
    document.write(json.dumps(spec).encode())
    document.flush()
    document.seek(0)
    return document


def _null() -> BinaryIO:
    return Path(os.devnull).open("rb")
