"""The trainer as a child process: started, listened to, signalled, reaped."""

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import AsyncIterator

from pydantic import ValidationError

from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Progress
from capstan_runtime.supervisor.output import Output
from capstan_runtime.supervisor.settings import Settings

_PR_SET_PDEATHSIG = 1
_LONGEST_LINE_BYTES = 256 * 1024
_prctl = ctypes.CDLL(None, use_errno=True).prctl  # found here: between fork and exec the loader's lock may be held


class Child:
    """One trainer process, leader of its own process group. It dies when this process dies."""

    def __init__(self, settings: Settings, membership: Membership) -> None:
        """Starts it. Raises OSError when the command cannot be run."""
        report_read, report_write = os.pipe()
        output_read, output_write = os.pipe()
        parent = os.getpid()
        try:
            self._process = subprocess.Popen(
                settings.command,
                stdin=subprocess.DEVNULL,
                stdout=output_write,
                stderr=output_write,
                pass_fds=[report_write],
                process_group=0,
                env={
                    **settings.environ,
                    env.MEMBERSHIP: membership.model_dump_json(by_alias=True),
                    env.REPORT_FD: str(report_write),
                    "PYTHONUNBUFFERED": "1",
                },
                preexec_fn=lambda: _die_with(parent),
            )
        except OSError:
            os.close(report_read)
            os.close(output_read)
            raise
        finally:
            os.close(report_write)
            os.close(output_write)
        self._report_read = report_read
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.output = Output(output_read)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_exited(self) -> bool:
        return self._exited.done()

    async def progress(self) -> AsyncIterator[Progress | str]:
        """What the trainer reports, until it closes the pipe. A line that is no Progress comes as the complaint."""
        reader = asyncio.StreamReader(limit=_LONGEST_LINE_BYTES)
        pipe = os.fdopen(self._report_read, "rb", buffering=0)
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


def _die_with(parent: int) -> None:
    """Runs in the child between fork and exec: no trainer outlives its supervisor."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def reap_orphans(trainer: int | None) -> None:
    """As PID 1, collects processes that lost their parent; the trainer's own status is left for `Child.reap`."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == trainer:
            return
        os.waitpid(found.si_pid, os.WNOHANG)
