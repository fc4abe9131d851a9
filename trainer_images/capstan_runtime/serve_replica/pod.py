"""The life of a serving pod: its first process opens the door, has Ray Serve keep a replica behind it, and ends it."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import ConfigError
from capstan_runtime.serve_replica import line
from capstan_runtime.serve_replica.environment import ray_environment
from capstan_runtime.serve_replica.family import adopt_orphans, kill_descendants, reap
from capstan_runtime.serve_replica.front import Front, listening_address, open_door
from capstan_runtime.serve_replica.settings import Settings
from capstan_runtime.serve_replica.tls import open_tls
from capstan_runtime.supervisor.log import Log
from capstan_runtime.supervisor.output import Output, exception_line

DRIVER = (sys.executable, "-m", "capstan_runtime.serve_replica.driver")
DEATHS = 3
"""A replica's process that died so many times dies again."""
_RAY_STARTS = 3
_START_SECONDS = 240.0
"""Until Ray has a new replica's process running: at the start, and after one has died."""
_MARGIN_SECONDS = 5.0
"""For a replica that drains, beyond the time it may take."""
_KILL_SECONDS = 5.0
_LONGEST_FOLDER_BYTES = 107 - len("/1/s/sockets/plasma_store")
"""The path of a Unix socket has at most 107."""
_LAST_WORDS_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Ending:
    code: int
    message: str
    """One line."""


@dataclass(frozen=True, slots=True)
class _Stop:
    """Somebody asked the pod to end."""


@dataclass(frozen=True, slots=True)
class _RayEnded:
    status: int


@dataclass(frozen=True, slots=True)
class _Late:
    """There is no replica's process, and there should be."""


@dataclass(eq=False, slots=True)
class _Attached:
    """A replica's process, as long as its line is open."""

    socket: socket.socket
    output: Output
    pid: int = 0


@dataclass(frozen=True, slots=True)
class _Said:
    replica: _Attached
    word: line.Word | None
    """None: it has died."""


_Event = _Stop | _RayEnded | _Late | _Said


class Pod:
    def __init__(self, settings: Settings, driver: tuple[str, ...] = DRIVER) -> None:
        """`driver` is started with a folder of its own and this process's id, and starts replicas."""
        self._settings = settings
        self._driver = driver
        self._log = Log("serve")
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._replicas: list[_Attached] = []
        self._serving: _Attached | None = None
        self._is_starting = True
        """Whether this Ray has yet to start its first replica's process."""
        self._deaths = 0
        self._ray: subprocess.Popen[bytes] | None = None
        self._ray_output: Output | None = None
        self._ray_starts = 0

    async def run(self) -> Ending:
        """Returns when the pod is to end; nothing that it started is left then."""
        adopt_orphans()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._events.put_nowait, _Stop())
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        folder = Path(tempfile.mkdtemp(prefix="c"))
        try:
            if len(os.fsencode(folder)) > _LONGEST_FOLDER_BYTES:
                short = _LONGEST_FOLDER_BYTES - len(folder.name) - 1
                ending = Ending(
                    ExitCode.CONFIG, f"TMPDIR: {folder.parent} is too long for Ray's sockets: at most {short} bytes"
                )
            else:
                ending = await self._live(folder)
        finally:
            loop.remove_signal_handler(signal.SIGCHLD)
            await asyncio.to_thread(kill_descendants, _KILL_SECONDS)
            shutil.rmtree(folder, ignore_errors=True)
        self._log.say(ending.message)
        await self._log.flush(_LAST_WORDS_SECONDS)
        return ending

    async def _live(self, folder: Path) -> Ending:
        config = self._settings.config
        try:
            tls = open_tls(self._settings, self._log.say)
            door = open_door(listening_address(self._settings.address), env.SERVE_PORT)
        except ConfigError as error:
            return Ending(ExitCode.CONFIG, str(error))
        except (OSError, ValueError) as error:
            return Ending(ExitCode.RETRYABLE, f"cannot listen on {self._settings.address}:{env.SERVE_PORT}: {error}")
        with door, line.listen(str(folder / "line")) as listener:
            front = Front(door, is_live=lambda: self._is_starting or bool(self._replicas), tls=tls)
            await front.stand_in()
            asyncio.get_running_loop().add_reader(listener, self._attach, listener)
            self._log.say(f"{config.service}: waiting for {config.model.name} of {config.model.root}")
            self._start_ray(folder)
            while True:
                match await self._next_event():
                    case _Stop():
                        door.close()  # or who comes after the replica's last accept would wait for an answer
                        return await self._drain()
                    case _RayEnded(status):
                        await asyncio.to_thread(kill_descendants, _KILL_SECONDS)
                        assert self._ray_output is not None
                        self._ray_output.drain(_LAST_WORDS_SECONDS)  # short: nobody holds it open any more
                        last = _last_line(self._ray_output)
                        if self._ray_starts == _RAY_STARTS:
                            return Ending(ExitCode.RETRYABLE, f"Ray ended {_RAY_STARTS} times; it said last: {last}")
                        self._log.say(f"Ray ended with status {status}; starting it again. It said last: {last}")
                        self._start_ray(folder)
                    case _Late():
                        self._log.say(f"Ray has not started a replica for {_START_SECONDS:g} s")
                        self._end_ray()
                    case _Said(replica, None):
                        ending = self._note_death(replica)
                        if ending is not None:
                            return ending
                        if self._serving is None:
                            await front.stand_in()
                    case _Said(_, line.Word(line.Kind.FAILED, facts)):
                        return Ending(facts["code"], facts["message"])
                    case _Said(replica, line.Word(line.Kind.HERE, facts)):
                        replica.pid = facts["pid"]
                        self._is_starting = False
                    case _Said(replica, line.Word(line.Kind.WARM)):
                        front.step_aside()
                        self._hand_over(door, replica)

    async def _next_event(self) -> _Event:
        if self._replicas:
            return await self._events.get()
        try:
            async with asyncio.timeout(_START_SECONDS):
                return await self._events.get()
        except TimeoutError:
            return _Late()

    def _start_ray(self, folder: Path) -> None:
        self._ray_starts += 1
        self._is_starting = True
        ray_folder = folder / str(self._ray_starts)
        ray_folder.mkdir()
        reading, writing = os.pipe()
        self._ray = subprocess.Popen(
            [*self._driver, str(ray_folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,  # a signal to the pod's process group is not meant for Ray
            env={**ray_environment(os.environ), line.PATH: str(folder / "line")},
        )
        os.close(writing)
        self._ray_output = Output(reading)

    def _end_ray(self) -> None:
        """What is left of it. That it ended becomes an event."""
        assert self._ray is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._ray.pid, signal.SIGKILL)

    def _reap(self) -> None:
        for process, status in reap().items():
            if self._ray is not None and process == self._ray.pid:
                self._ray.returncode = status
                self._events.put_nowait(_RayEnded(status))

    def _attach(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            reading, writing = os.pipe()
            replica = _Attached(connection, Output(reading))
            self._replicas.append(replica)
            self._say(replica, line.Kind.OUTPUT, [writing])
            os.close(writing)
            asyncio.get_running_loop().add_reader(connection, self._hear, replica)

    def _hear(self, replica: _Attached) -> None:
        try:
            word = line.hear(replica.socket)
        except BlockingIOError:
            return
        if word is None:
            asyncio.get_running_loop().remove_reader(replica.socket)
            replica.socket.close()
            self._replicas.remove(replica)
        self._events.put_nowait(_Said(replica, word))

    def _say(self, replica: _Attached, kind: line.Kind, descriptors: list[int] | None = None) -> None:
        with contextlib.suppress(OSError):  # it is dead, and the end of its line says so
            line.say(replica.socket, kind, descriptors or [])

    def _hand_over(self, door: socket.socket, replica: _Attached) -> None:
        if self._serving is not None:
            self._say(self._serving, line.Kind.LEAVE)
        self._serving = replica
        self._say(replica, line.Kind.SERVE, [door.fileno()])
        self._log.say(f"ready: process {replica.pid} answers on {self._settings.address}:{env.SERVE_PORT}")

    def _note_death(self, replica: _Attached) -> Ending | None:
        if replica is self._serving:
            self._serving = None
        self._deaths += 1
        replica.output.drain(_LAST_WORDS_SECONDS)
        last = _last_line(replica.output)
        if self._deaths == DEATHS:
            return Ending(ExitCode.APPLICATION, f"the replica's process died {DEATHS} times; it said last: {last}")
        self._log.say(f"the replica's process {replica.pid} died; Ray Serve starts another. It said last: {last}")
        return None

    async def _drain(self) -> Ending:
        """The routes hear that this replica is not ready while it goes on; then what was begun is finished."""
        replica = self._serving
        if replica is None:
            return Ending(ExitCode.OK, "stopped before it was ready")
        config = self._settings.config
        self._log.say(f"draining for {config.drain_seconds:g} s")
        self._say(replica, line.Kind.DRAIN)
        try:
            async with asyncio.timeout(config.drain_seconds + config.longest_finish_seconds + _MARGIN_SECONDS):
                while True:
                    match await self._events.get():
                        case _Said(speaker, line.Word(line.Kind.DRAINED)) if speaker is replica:
                            return Ending(ExitCode.OK, "drained")
                        case _Said(speaker, None) if speaker is replica:
                            last = _last_line(replica.output)
                            return Ending(ExitCode.APPLICATION, f"died while it drained; it said last: {last}")
        except TimeoutError:
            return Ending(ExitCode.HANG, "requests were not finished in time while it drained")


def _last_line(output: Output) -> str:
    lines = output.last_lines()
    said = exception_line(lines) or next((text for text in reversed(lines) if text.strip()), None)
    return said or "nothing"
