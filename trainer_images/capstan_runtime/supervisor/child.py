"""The trainer as a child process: started, listened to, signalled, reaped."""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Collection

from pydantic import ValidationError

from capstan_runtime.beat import Page
from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Progress
from capstan_runtime.notices import Notices
from capstan_runtime.supervisor.output import Output
from capstan_runtime.supervisor.settings import Settings

_PR_SET_PDEATHSIG = 1
_LONGEST_LINE_BYTES = 256 * 1024
_prctl = ctypes.CDLL(None, use_errno=True).prctl  # found here: between fork and exec the loader's lock may be held


class Child:
    """One trainer process, leader of its own process group. It dies when this process dies."""

    def __init__(self, settings: Settings, membership: Membership | None, niceness: int | None = None) -> None:
        """Starts it: for `membership` or, with None, as a spare that waits for one, and whose imports have `niceness`;
        None: no other than a trainer's.

        Raises OSError when the command cannot be run.
        """
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as passed_on:
            report_read, report_write = os.pipe()
            output_read, output_write = os.pipe()
            for descriptor in (report_write, output_write):
                passed_on.callback(os.close, descriptor)
            for descriptor in (report_read, output_read):
                on_failure.callback(os.close, descriptor)
            self.page = Page()
            on_failure.callback(self.page.close)
            self._notices = Notices()
            on_failure.callback(self._notices.close)
            facts = {
                env.REPORT_FD: str(report_write),
                env.PAGE: str(self.page.descriptor),
                env.NOTICES: str(self._notices.descriptor),
                "PYTHONUNBUFFERED": "1",
            }
            inherited = [report_write, self.page.descriptor, self._notices.descriptor]
            self._line: socket.socket | None = None
            if membership is not None:
                self.notify(membership)
                facts[env.MEMBERSHIP] = membership.model_dump_json(by_alias=True)
            else:
                self._line, theirs = socket.socketpair()
                on_failure.enter_context(self._line)
                passed_on.enter_context(theirs)
                self._line.setblocking(False)
                facts[env.SPARE] = str(theirs.fileno())
                if niceness is not None:
                    facts[env.SPARE_NICENESS] = str(niceness)
                inherited.append(theirs.fileno())
            parent = os.getpid()
            self._process = subprocess.Popen(
                settings.command,
                stdin=subprocess.DEVNULL,
                stdout=output_write,
                stderr=output_write,
                pass_fds=inherited,
                process_group=0,
                env={**settings.environ, **facts},
                preexec_fn=lambda: _die_with(parent),
            )
            on_failure.pop_all()
        self._report_read: int | None = report_read
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.is_ready = membership is not None
        """Whether a spare has all that it needs but its membership, as far as it was heard. True for a trainer."""
        self.output = Output(output_read)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_exited(self) -> bool:
        return self._exited.done()

    def when_ready(self, call: Callable[[], None]) -> None:
        """`call` is called once, when a spare that waits has become ready."""
        assert self._line is not None
        asyncio.get_running_loop().add_reader(self._line, self._hear, self._line, call)

    def _hear(self, line: socket.socket, call: Callable[[], None]) -> None:
        self._stop_hearing()
        with contextlib.suppress(OSError):  # the process is gone
            self.is_ready = bool(line.recv(64))
        if self.is_ready:
            call()

    def _stop_hearing(self) -> None:
        if self._line is not None:
            asyncio.get_running_loop().remove_reader(self._line)

    def become_trainer(self, membership: Membership) -> bool:
        """Gives a spare its membership; what it printed before was not a trainer's. False when it cannot be reached."""
        assert self._line is not None
        self._stop_hearing()
        self.output.forget()
        self.notify(membership)
        with self._line:
            try:
                self._line.sendall(membership.model_dump_json(by_alias=True).encode() + b"\n")
            except OSError:
                return False
        self._line = None
        return not self.has_exited

    def notify(self, membership: Membership) -> None:
        """Tells the trainer what of its membership may change while it runs. Raises OSError."""
        self._notices.write(membership.keep_roots or (), membership.profile_request)

    async def progress(self) -> AsyncIterator[Progress | str]:
        """What the trainer reports, until it closes the pipe. A line that is no Progress comes as the complaint."""
        assert self._report_read is not None
        reader = asyncio.StreamReader(limit=_LONGEST_LINE_BYTES)
        pipe, self._report_read = os.fdopen(self._report_read, "rb", buffering=0), None
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:
                    yield f"a report of more than {_LONGEST_LINE_BYTES} bytes was dropped"
                    continue
                if not line.endswith(b"\n"):
                    return  # the end, or half a line of a process that was killed while writing it
                try:
                    yield Progress.model_validate_json(line)
                except ValidationError as error:
                    yield f"a report could not be read: {error.errors()[0]['msg']}: {line[:200]!r}"
        finally:
            transport.close()

    def reap(self) -> None:
        """Takes note of the child's end, if it has ended. Called on SIGCHLD; harmless at any other time."""
        if self._exited.done():
            return
        status = self._process.poll()
        if status is not None:
            self._exited.set_result(status)

    async def wait(self) -> int:
        """The exit status: 0-255, or -N after signal N."""
        return await asyncio.shield(self._exited)

    def signal_leader(self, number: signal.Signals) -> None:
        """Signals the trainer itself, if it is still there."""
        if not self.has_exited:
            self._process.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL to the trainer and everything it started that stayed in its group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # all gone already

    def close(self) -> None:
        """Lets go of what this process held open for it. Nothing can be asked of it afterwards."""
        self.page.close()
        self._notices.close()
        if self._line is not None:
            self._stop_hearing()
            self._line.close()
        if self._report_read is not None:
            os.close(self._report_read)


def _die_with(parent: int) -> None:
    """Runs in the child between fork and exec: no trainer outlives its supervisor."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def reap_orphans(children: Collection[int]) -> None:
    """As PID 1, collects processes that lost their parent; the status of `children` is left for `Child.reap`."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in children:
            return
        os.waitpid(found.si_pid, os.WNOHANG)
