"""One container of a pod over all its restarts: start, probe, stop, wait, start again."""

import asyncio
import logging
import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstan_local.client import ApiError, Unreachable
from capstan_local.node.checks import Prober, Target, read_tail, run_handler
from capstan_local.node.content import PodContent
from capstan_local.node.environment import ConfigError, PodFacts, config_data, referenced_configs
from capstan_local.node.folder import PodFolder
from capstan_local.node.images import UnknownImage, find_rule
from capstan_local.node.interrupt import pause, unless
from capstan_local.node.launch import Launch, prepare_launch
from capstan_local.node.logs import LogWriter, drop_old_logs
from capstan_local.node.machine import Machine
from capstan_local.node.processes import Exit, Process, StartError
from capstan_local.node.status import ContainerState, restarts, timestamp

log = logging.getLogger(__name__)

BACKOFF_FACTOR_LIMIT = 30
"""The longest pause, in units of the first: 300 s for 10 s, as in the kubelet."""
HEALTHY_PAUSES = 60
"""A run of this many first pauses (600 s) makes the next failure count as the first again, as in the kubelet."""
CONFIG_RETRY_SECONDS = 10.0
MESSAGE_BYTES = 4096
LOG_FALLBACK_BYTES = 2048
LOG_FALLBACK_LINES = 80
HANDLER_SECONDS = 30.0
START_ERROR_CODE = 128


@dataclass
class PodParts:
    """What a container needs of its pod."""

    machine: Machine
    folder: PodFolder
    facts: PodFacts
    volumes: Mapping[str, Path]
    devices: Mapping[str, list[str]] | None
    """Accelerators by container; None when the node has none at all."""
    content: PodContent
    on_change: Callable[[], None]
    """To be called after every change of a container's state."""


class Container:
    """Its `state` is the truth at any time; `run` makes it change."""

    def __init__(
        self, pod_uid: str, spec: Mapping[str, Any], state: ContainerState, policy: str, *, is_init: bool
    ) -> None:
        """`policy`: Always, OnFailure or Never, already adjusted for init containers."""
        self._pod_uid = pod_uid
        self.spec = spec
        self.is_init = is_init
        self.state = state
        self.name: str = spec["name"]
        self.log: LogWriter | None = None
        """Of the current or last run in the life of this node."""
        self.is_settled = asyncio.Event()
        """Set once the container runs and passed its startup probe, or has ended for good."""
        self._policy = policy
        self._process: Process | None = None
        self._launch: Launch | None = None
        self._stopping = asyncio.Event()
        self._must_end = asyncio.Event()
        self._grace_seconds = 0.0
        self._started_at = 0.0
        self._failures = 0

    @property
    def mark(self) -> str:
        """By which processes of the current run are known."""
        return f"{self._pod_uid}/{self.name}/{self.state.restart_count}"

    async def run(self, parts: PodParts) -> None:
        """Until it has ended for good: by its own exit under the restart policy, or by `stop`."""
        self._parts = parts
        try:
            while not self._stopping.is_set() and self._may_start():
                if self.state.container_id:
                    await self._back_off()
                if not self._stopping.is_set() and await self._start():
                    await self._accompany()
        finally:
            self.is_settled.set()

    def stop(self, grace_seconds: float) -> None:
        """Asks for the end; `run` returns once it has come. A later call can only shorten the time."""
        first = not self._stopping.is_set()
        self._stopping.set()
        self._end_run(grace_seconds)
        if not first and self._process is not None:
            asyncio.get_running_loop().call_later(grace_seconds, self._process.kill)

    async def execute(
        self, argv: list[str], *, stdout: int, stderr: int, stdin: int | None = None, tty: bool = False
    ) -> Process:
        """A further process in the running container. Raises StartError when it does not run or cannot execute."""
        if self._launch is None or not self.state.is_running:
            raise StartError(f'container "{self.name}" is not running')
        rewritten = [self._launch.mounts.rewrite(part) for part in argv]
        env = {**self._launch.env, "TERM": "xterm"} if tty else self._launch.env
        return await self._parts.machine.processes.start(
            rewritten, env, self._launch.cwd, self.mark, stdin=stdin, stdout=stdout, stderr=stderr, tty=tty
        )

    # ---- starting

    def _may_start(self) -> bool:
        ended = self.state.terminated
        return ended is None or restarts(self._policy, ended["exitCode"])

    async def _back_off(self) -> None:
        """The first restart comes at once, the next after 10, 20, 40 … seconds."""
        self.state.last_state = self.state.state if self.state.terminated else self.state.last_state
        first = self._parts.machine.backoff_seconds
        if self._started_at and time.time() - self._started_at > HEALTHY_PAUSES * first:
            self._failures = 0
        seconds = min(first * 2 ** (self._failures - 1), first * BACKOFF_FACTOR_LIMIT) if self._failures else 0.0
        self._failures += 1
        if seconds:
            metadata = self._parts.facts.pod["metadata"]
            where = f"{self.name} pod={metadata['name']}_{metadata['namespace']}({metadata['uid']})"
            self._wait("CrashLoopBackOff", f"back-off {seconds:g}s restarting failed container={where}")
            self._event("BackOff", f"Back-off restarting failed container {self.name} in pod {metadata['name']}", True)
            await pause(seconds, self._stopping)

    async def _start(self) -> bool:
        """Whether it was started; False after an end, with the state saying why."""
        launch = await self._prepare()
        if launch is None:
            return False
        is_restart = bool(self.state.container_id)
        self.state.restart_count += is_restart
        self.state.container_id = f"local://{uuid.uuid4().hex}"
        self._event("Created", f"Created container {self.name}")
        folder = self._parts.folder
        drop_old_logs(folder.logs(self.name), self.state.restart_count)
        self.log = LogWriter(folder.log(self.name, self.state.restart_count))
        writer = self.log.pipe()
        self._started_at = time.time()
        self._launch = launch
        self._must_end.clear()
        try:
            self._process = await self._parts.machine.processes.start(
                launch.argv, launch.env, launch.cwd, self.mark, stdout=writer, stderr=writer
            )
        except StartError as error:
            self.log.close()
            self._event("Failed", f"Error: {error}", True)
            self._set_terminated(START_ERROR_CODE, "StartError", str(error))
            return False
        finally:
            os.close(writer)
        self.state.state = {"running": {"startedAt": timestamp(self._started_at)}}
        self._event("Started", f"Started container {self.name}")
        self._changed(is_recorded=True)
        return True

    async def _prepare(self) -> Launch | None:
        """What to run, as soon as all it refers to is there; None when the container is stopped before that."""
        image = self.spec["image"]
        try:
            rule = find_rule(image, self._parts.machine.images)
        except UnknownImage as error:
            await self._report_unknown_image(image, str(error))
            return None
        self._event("Pulled", f'Container image "{image}" already present on machine')
        while not self._stopping.is_set():
            self._parts.content.changed.clear()
            try:
                needed = referenced_configs(self.spec)
                found = await unless(self._stopping, self._fetch(needed)) if needed else {}
                if found is None:
                    return None
                return prepare_launch(
                    self.spec,
                    rule,
                    self._parts.folder,
                    self._parts.volumes,
                    self._parts.facts,
                    found,
                    self._parts.machine.service_variables(self._parts.facts.pod["metadata"]["namespace"]),
                    None if self._parts.devices is None else self._parts.devices.get(self.name, []),
                )
            except ConfigError as error:
                self._event("Failed", f"Error: {error}", True)
                self._wait(error.reason, str(error))
            except (ApiError, Unreachable, OSError) as error:
                self._wait("CreateContainerConfigError", str(error))
            await pause(CONFIG_RETRY_SECONDS, self._stopping, self._parts.content.changed)
        return None

    async def _fetch(self, needed: set[tuple[str, str]]) -> dict[tuple[str, str], Mapping[str, bytes] | None]:
        found: dict[tuple[str, str], Mapping[str, bytes] | None] = {}
        for kind, name in sorted(needed):
            obj = await self._parts.content.fetch_config(kind, name)
            found[kind, name] = None if obj is None else config_data(kind, obj)
        return found

    async def _report_unknown_image(self, image: str, message: str) -> None:
        """Rules do not change while a node runs, so after the customary two states nothing more is tried."""
        self._event("Failed", f'Failed to pull image "{image}": {message}', True)
        self._event("Failed", "Error: ErrImagePull", True)
        self._wait("ErrImagePull", message)
        await pause(self._parts.machine.backoff_seconds, self._stopping)
        if not self._stopping.is_set():
            self._event("BackOff", f'Back-off pulling image "{image}"')
            self._wait("ImagePullBackOff", f'Back-off pulling image "{image}": {message}')
            await self._stopping.wait()

    # ---- running

    async def _accompany(self) -> None:
        """From the start of the process to its end, however that comes."""
        process = self._process
        if process is None:
            raise AssertionError("called after a successful start")
        checks = asyncio.create_task(self._post_start_then_probe())
        try:
            await unless(self._must_end, process.wait())
        finally:
            checks.cancel()
            await asyncio.wait({checks})
        if not checks.cancelled():
            checks.result()
        if not process.exited.done():
            self._set_ready(False)
            await self._end(process)
        await self._note_end(await process.wait())

    async def _post_start_then_probe(self) -> None:
        hook = (self.spec.get("lifecycle") or {}).get("postStart")
        if hook:
            why = await run_handler(hook, self._target(), HANDLER_SECONDS)
            if why is not None:
                self._event("FailedPostStartHook", f"PostStartHook failed: {why}", True)
                self._end_run(self._default_grace())
                return
        await Prober(
            self.spec, self._target(), self._on_started, self._set_ready, self._on_probe_failure, self._on_dead
        ).run()

    async def _end(self, process: Process) -> None:
        """preStop, SIGTERM, SIGKILL, all within the grace period."""
        if self._stopping.is_set():  # a failed probe has told already
            self._event("Killing", f"Stopping container {self.name}")
        deadline = time.monotonic() + self._grace_seconds
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and self._grace_seconds > 0:
            why = await run_handler(hook, self._target(), self._grace_seconds)
            if why is not None:
                self._event("FailedPreStopHook", f"PreStopHook failed: {why}", True)
        await process.stop(max(0.0, deadline - time.monotonic()))

    async def _note_end(self, ended: Exit) -> None:
        machine = self._parts.machine
        machine.processes.end(self.mark)
        if self.log is not None:
            await self.log.finish()
        self._process = None
        was_asked = self._must_end.is_set()
        reason = "Completed" if ended.code == 0 else "Error"
        if ended.signal == signal.SIGKILL and not was_asked and machine.oom.look():
            reason = "OOMKilled"
        self._set_terminated(ended.code, reason, self._last_words(ended.code))

    def _last_words(self, code: int) -> str:
        """The termination message, or the end of the log if the container asks for that."""
        message = read_tail(self._parts.folder.termination_message(self.name), MESSAGE_BYTES).decode(errors="replace")
        if message or code == 0 or self.spec.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return message
        records = read_tail(self._parts.folder.log(self.name, self.state.restart_count), 2 * LOG_FALLBACK_BYTES)
        lines = [record.split(b" ", 2)[2] for record in records.split(b"\n") if record.count(b" ") >= 2]
        text = b"\n".join(lines[-LOG_FALLBACK_LINES:]) + b"\n"
        return text[-LOG_FALLBACK_BYTES:].decode(errors="replace")

    # ---- probes

    def _target(self) -> Target:
        async def execute(argv: list[str], output: int) -> Process:
            return await self.execute(argv, stdout=output, stderr=output)

        ports = {port["name"]: port["containerPort"] for port in self.spec.get("ports") or [] if "name" in port}
        return Target(self._parts.facts.pod_ip, ports, self._parts.machine.http, execute)

    def _on_started(self) -> None:
        self.state.started = True
        self.is_settled.set()
        self._changed()

    def _set_ready(self, is_ready: bool) -> None:
        if self.state.ready != is_ready:
            self.state.ready = is_ready
            self._changed()

    def _on_probe_failure(self, kind: str, why: str) -> None:
        self._event("Unhealthy", f"{kind} probe failed: {why}", True)

    def _on_dead(self, kind: str, grace_seconds: int | None) -> None:
        self._event("Killing", f"Container {self.name} failed {kind} probe, will be restarted")
        self._end_run(self._default_grace() if grace_seconds is None else grace_seconds)

    def _default_grace(self) -> float:
        grace = self._parts.facts.pod["spec"].get("terminationGracePeriodSeconds")
        return 30.0 if grace is None else float(grace)

    def _end_run(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._must_end.set()

    # ---- telling

    def _wait(self, reason: str, message: str) -> None:
        waiting = {"waiting": {"reason": reason, "message": message}}
        if self.state.state != waiting:
            self.state.state = waiting
            self._changed()

    def _set_terminated(self, code: int, reason: str, message: str) -> None:
        self.state.started = False
        self.state.ready = self.is_init and code == 0
        self.state.state = {
            "terminated": {
                "exitCode": code,
                "reason": reason,
                **({"message": message} if message else {}),
                "startedAt": timestamp(self._started_at),
                "finishedAt": timestamp(time.time()),
                "containerID": self.state.container_id,
            }
        }
        self._changed(is_recorded=True)

    def _changed(self, *, is_recorded: bool = False) -> None:
        if is_recorded:
            self._parts.folder.write_record(self.name, self.state.document())
        self._parts.on_change()

    def _event(self, reason: str, message: str, warning: bool = False) -> None:
        path = f"spec.{'initContainers' if self.is_init else 'containers'}{{{self.name}}}"
        self._parts.machine.events.record(self._parts.facts.pod, reason, message, warning=warning, field=path)
