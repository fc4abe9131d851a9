"""Starts processes on behalf of the node, and outlives neither the node nor them. Standard library only.

A process of its own for three reasons: forking a small single-threaded process is quick and safe whatever the node has
loaded; as *subreaper* it inherits what containers leave behind, even daemons that left their session; and when the node
dies in any way its socket closes, upon which everything started here is killed. Should the launcher itself be killed,
the kernel kills the leader of each container (PR_SET_PDEATHSIG) and the node sweeps up the rest.

Protocol: one JSON object per packet of a SOCK_SEQPACKET socket pair, file descriptors attached.
    {"op": "start", "id": 7}  + [spec, stdin, stdout, stderr]   -> {"id": 7, "pid": 123} | {"id": 7, "error": "..."}
    {"op": "signal", "id": 7, "signal": 15}                      to the leader; 9 goes to its whole process group
    {"op": "end", "container": "..."}                            kills whatever still carries this mark
    and, unasked, when a process ends                            -> {"id": 7, "code": 0, "signal": 0}
`spec` is an open file with {"argv", "env", "cwd", "container", "tty"}: an environment may be larger than a packet.
"""

# ruff: noqa: PTH123, PTH208
# (pathlib would double memory and start-up of this process)

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import termios
import time
from typing import Any

MARK = "LOCAL_NODE_CONTAINER"
"""Environment variable by which a process is known to belong to a container."""

PACKET_BYTES = 64 * 1024
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LAST_SWEEP_SECONDS = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


class Launcher:
    def __init__(self, node: socket.socket) -> None:
        self.node = node
        self.ids: dict[int, int] = {}
        """pid of a leader -> id of its request."""
        self.pids: dict[int, int] = {}
        self.containers: dict[int, str] = {}
        """pid of a leader -> mark of its container."""
        self.ended: set[str] = set()
        """Containers of which nothing may live any more."""

    def serve(self) -> None:
        """Until the node closes its end."""
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select([self.node.fileno(), woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                self.reap()
            if self.node.fileno() in ready and not self.handle():
                return

    def handle(self) -> bool:
        """Does what the next packet asks; False when there will be none."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self.node, PACKET_BYTES, 4)
        except ConnectionResetError:
            return False
        if not packet:
            return False
        request = json.loads(packet)
        match request["op"]:
            case "start":
                self.start(request["id"], descriptors)
            case "signal":
                self.signal(request["id"], request["signal"])
            case "end":
                self.ended.add(request["container"])
                self.kill_ended()
        return True

    def start(self, request: int, descriptors: list[int]) -> None:
        spec_fd, *standard = descriptors
        with open(spec_fd, encoding="utf-8") as file:
            spec = json.load(file)
        try:
            pid = spawn(spec, standard)
        except OSError as error:
            self.tell({"id": request, "error": str(error)})
            return
        finally:
            for descriptor in standard:
                os.close(descriptor)
        self.ids[pid], self.pids[request], self.containers[pid] = request, pid, spec["container"]
        self.tell({"id": request, "pid": pid})

    def signal(self, request: int, number: int) -> None:
        pid = self.pids.get(request)  # known means not reaped, so the number cannot belong to somebody else
        if pid is None:
            return
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)

    def reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            if ended.si_pid in self.ids:
                # While the leader is a zombie its number is taken, so the group is surely its own.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(ended.si_pid, signal.SIGKILL)
            _, status = os.waitpid(ended.si_pid, 0)
            self.forget(ended.si_pid, status)
        self.kill_ended()

    def forget(self, pid: int, status: int) -> None:
        request = self.ids.pop(pid, None)
        if request is None:
            return
        del self.pids[request], self.containers[pid]
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = 128 + number if number else os.WEXITSTATUS(status)
        self.tell({"id": request, "code": code, "signal": number})

    def kill_ended(self) -> None:
        """Kills leaders and adopted children of ended containers. Their own children are adopted then, and met when
        their death is reaped."""
        if not self.ended:
            return
        alive = set()
        for pid in children():
            container = self.containers.get(pid) or mark_of(pid)
            if container in self.ended:
                alive.add(container)
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if pid in self.ids else os.kill)(pid, signal.SIGKILL)
        self.ended &= alive

    def tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the node died: `serve` sees it next
            self.node.send(json.dumps(message).encode())

    def kill_all(self) -> None:
        """Nothing that was started here survives, short of a process the kernel cannot kill."""
        deadline = time.monotonic() + LAST_SWEEP_SECONDS
        while time.monotonic() < deadline:
            for pid in children():
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if pid in self.ids else os.kill)(pid, signal.SIGKILL)
            try:
                pid, _ = os.waitpid(-1, 0)  # blocks only for processes that were just sent SIGKILL
            except ChildProcessError:
                return
            self.ids.pop(pid, None)


def spawn(spec: dict[str, Any], standard: list[int]) -> int:
    """Pid of the new leader of a new session that runs `argv`. OSError, with the reason, when it cannot be executed."""
    parent = os.getpid()
    failure, report = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            become(spec, standard, parent)
        except BaseException as error:
            os.write(report, str(error).encode()[:1000] or b"unknown failure")
        finally:
            os._exit(127)
    os.close(report)
    with open(failure, encoding="utf-8", errors="replace") as file:
        reason = file.read()  # empty once exec has closed the pipe
    if reason:
        os.waitpid(pid, 0)
        raise OSError(reason)
    return pid


def become(spec: dict[str, Any], standard: list[int], parent: int) -> None:
    """Turns this child into the program; returns only by exception."""
    os.setsid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise OSError("the launcher is gone")
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for target, source in enumerate(standard):  # received descriptors are numbered above 2
        os.dup2(source, target)
    for descriptor in standard:
        os.close(descriptor)
    if spec["tty"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.umask(0o022)
    # Memory limits are not imposed: RLIMIT_AS counts address space, of which CUDA and XLA reserve terabytes.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        os.chdir(spec["cwd"])
    except OSError as error:
        raise OSError(f"workingDir {spec['cwd']}: {error.strerror}") from error
    program = spec["argv"][0]
    try:
        os.execvpe(program, spec["argv"], spec["env"])
    except FileNotFoundError as error:
        raise OSError(f'exec "{program}": executable file not found in $PATH') from error
    except OSError as error:
        raise OSError(f'exec "{program}": {error.strerror}') from error


def children() -> list[int]:
    """Pids of all direct children, adopted ones included."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [pid for pid in all_pids() if parent_of(pid) == os.getpid()]


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent_of(pid: int) -> int:
    """0 when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def mark_of(pid: int) -> str | None:
    """The container a process was started in; None when it carries no mark or may not be looked at."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError:
        return None
    for entry in environment.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == MARK.encode():
            return value.decode(errors="replace")
    return None


def main() -> None:
    # Ctrl-C in the terminal is for the node, which then stops containers in good order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    node = socket.socket(fileno=int(sys.argv[1]))
    node.set_inheritable(False)  # a container holding it would keep the node's death from being noticed
    launcher = Launcher(node)
    try:
        launcher.serve()
    finally:
        launcher.kill_all()


if __name__ == "__main__":
    main()
