"""A Ray of one node that nobody outside the pod can reach, with no more processes than serving needs."""

import atexit
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray._private.node import Node
from ray._private.parameter import RayParams

_LOOPBACK = "127.0.0.1"
"""Ray listens on all interfaces unless its node has exactly this address."""
_OBJECT_STORE_BYTES = 75 * 2**20
"""The least that Ray accepts. Nothing is put there: requests do not travel through Ray."""
_WORKERS = 2
"""Processes that Ray starts ahead: for Serve's controller and for the replica."""
_REGISTER_SECONDS = 180.0
"""Until the node knows itself. Ray gives up after 30, which is too soon where several pods start on two cores."""
_LOOK_SECONDS = 0.5
_STACK_TRACE = "*** StackTrace"


class _QuietNode(Node):
    def start_api_server(self, **_: Any) -> None:
        """There is none. Ray starts it even without a dashboard, to report usage, which is off: 86 MiB."""

    def start_raylet(self, *arguments: Any, **options: Any) -> None:
        """Watched from here on: Ray goes on asking for a node whose raylet has ended, and its calls take 30 s each."""
        super().start_raylet(*arguments, **options)
        processes = {name: started[0].process for name, started in self.all_processes.items()}
        is_leaving = threading.Event()
        atexit.register(is_leaving.set)  # before Ray's own, which ends them
        look = (processes, Path(self.get_logs_dir_path()), is_leaving)
        threading.Thread(target=_end_with, args=look, name="watch", daemon=True).start()


def start_ray(folder: Path) -> None:
    """Starts all of Ray's processes, with their files in `folder`, and connects. They end with this process, and it
    with each of them: status 1, one line on stderr, at any time from now on.

    Through `ray.init` there would be an autoscaler, a tailer of logs and an API server as well (183 MiB, three Python
    processes to wait for), all listening on every interface. Raises whatever Ray raises.
    """
    plasma = folder / "plasma"
    plasma.mkdir()
    services.get_node = _patient(services.get_node)
    node = _QuietNode(
        RayParams(
            node_ip_address=_LOOPBACK,
            num_cpus=_WORKERS,
            num_gpus=0,
            object_store_memory=_OBJECT_STORE_BYTES,
            plasma_directory=str(plasma),  # a container's /dev/shm may be smaller
            temp_dir=str(folder),
            session_name="s",  # Ray's own has 41 characters, and the paths of its sockets must fit into 107 bytes
            dashboard_agent_listen_port=0,  # one of its own for each pod on this machine
            include_dashboard=False,
            include_log_monitor=False,  # type: ignore[arg-type]  # a bool, whatever Ray's annotation says
            no_monitor=True,
        ),
        head=True,
        shutdown_at_exit=True,
        spawn_reaper=True,
    )
    # `ray.init` would replace the loopback address by one that other machines can reach, where nobody listens.
    services.resolve_ip_for_localhost = lambda host: host
    ray.init(address=node.address, log_to_driver=False, _temp_dir=str(folder))


def _end_with(processes: Mapping[str, subprocess.Popen[bytes]], logs: Path, is_leaving: threading.Event) -> None:
    while not is_leaving.wait(_LOOK_SECONDS):
        for name, process in processes.items():
            if process.poll() is not None:
                said = last_words(logs / f"{name}.err")
                print(f"Ray's {name} ended with status {process.returncode}: {said}", file=sys.stderr, flush=True)
                os._exit(1)  # the main thread may be in a call that does not return for minutes


def last_words(log: Path) -> str:
    """The last line of one of Ray's processes in its `log`, before the stack trace if there is one, without the time,
    place and apology that stand before a check that failed."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        text = ""
    lines = text.partition(_STACK_TRACE)[0].split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return re.sub(r"^\[.*(?=Check failed: )", "", last)


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    def get_node_in_time(*arguments: Any) -> Any:
        deadline = time.monotonic() + _REGISTER_SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    return get_node_in_time
