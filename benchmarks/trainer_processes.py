"""The trainers of one job on this machine, as processes."""

from __future__ import annotations

import psutil

from capstan_runtime.contract import env


def find(uid: str) -> dict[int, list[psutil.Process]]:
    """Worker index -> its processes, oldest first: the trainer, then perhaps its warm spare."""
    found: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            command, environ = " ".join(process.cmdline()), process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        is_trainer = "capstan_runtime." in command and "_trainer" in command and env.REPORT_FD in environ
        if is_trainer and uid in environ.get(env.STORE, ""):
            index = int(environ[env.POD_NAME].split("-worker-")[1].split("-")[0])
            found.setdefault(index, []).append(process)
    for processes in found.values():
        processes.sort(key=lambda process: process.create_time())
    return found


def trainer(uid: str, index: int) -> psutil.Process:
    """The one that trains. Raises LookupError when there is none."""
    processes = find(uid).get(index)
    if not processes:
        raise LookupError(f"worker {index} has no trainer")
    return processes[0]
