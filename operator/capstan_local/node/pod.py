"""One pod from the moment it is bound to this node until it is gone."""

import asyncio
import enum
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capstan_local.client import PODS, ApiError, Key, Object, Unreachable, key_of
from capstan_local.node.container import Container, PodParts
from capstan_local.node.content import PodContent
from capstan_local.node.environment import ConfigError, PodFacts
from capstan_local.node.folder import PodFolder
from capstan_local.node.interrupt import pause, unless
from capstan_local.node.machine import Machine
from capstan_local.node.memory import NoMemory
from capstan_local.node.report import FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, Reporter
from capstan_local.node.status import ContainerState, Verdict, build_status, parse_timestamp, timestamp
from capstan_local.node.volumes import make_volume
from capstan_local.quantity import parse_quantity

log = logging.getLogger(__name__)

GPU = "nvidia.com/gpu"
DEFAULT_GRACE_SECONDS = 30.0
FORCED_GRACE_SECONDS = 1.0
"""What a pod gets that was removed from the API server without waiting for this node."""
SHUTDOWN_GRACE_SECONDS = 10.0
LOST_EXIT_CODE = 137
FINAL_PHASES = ("Succeeded", "Failed")


class Ending(enum.Enum):
    DELETED = enum.auto()
    """Its deletion was asked for; the API server waits for this node to confirm."""
    GONE = enum.auto()
    """The API server does not know it any more."""
    NODE_STOPS = enum.auto()


class Pod:
    """Call `update` with every newer version of the object; `run` does the rest."""

    def __init__(self, machine: Machine, obj: Object) -> None:
        self.obj = obj
        self.machine = machine
        self.key: Key = key_of(obj)
        self.uid: str = obj["metadata"]["uid"]
        self.folder = PodFolder(machine.home, self.uid)
        self.content = PodContent(machine.client, obj)
        self.report = Reporter(machine.client, obj, self._build_status)
        self._ip: str | None = None
        self._start_time = self.report.status.get("startTime") or timestamp(time.time())
        self._is_prepared = False
        """It has its volumes."""
        self._verdict: Verdict | None = None
        if self.is_finished and self.report.status.get("reason"):
            self._verdict = Verdict(self.report.status["reason"], self.report.status.get("message", ""))
        self._ending: Ending | None = None
        self._is_cut_short = False
        """Whether the node stops while the pod still had something to do."""
        self._must_end = asyncio.Event()
        spec = obj["spec"]
        self.init = [self._container(item, "initContainerStatuses") for item in spec.get("initContainers") or []]
        self.main = [self._container(item, "containerStatuses") for item in spec["containers"]]
        self.update(obj)

    @property
    def containers(self) -> list[Container]:
        return [*self.init, *self.main]

    @property
    def is_finished(self) -> bool:
        return self.report.status.get("phase") in FINAL_PHASES

    def update(self, obj: Object) -> None:
        """Takes note of a version of the object that the API server has shown."""
        self.obj = obj
        self.report.see(obj)
        if obj["spec"].get("readinessGates"):
            self.report.change()
        if obj["metadata"].get("deletionTimestamp"):
            self.end(Ending.DELETED)

    def end(self, why: Ending) -> None:
        """Asks for the end; `run` returns once it has come. GONE shortens an end that is under way."""
        if self._ending is None or why is Ending.GONE:
            if why is Ending.NODE_STOPS:
                self._is_cut_short = self._build_status(self.report.status)["phase"] not in FINAL_PHASES
            self._ending = why
            self._must_end.set()
            self._stop_containers()

    async def run(self) -> None:
        """Until the pod has been deleted and everything of it removed, or the node stops."""
        writer = asyncio.create_task(self.report.run())
        life = asyncio.create_task(self._live())
        try:
            await self._must_end.wait()
            self._stop_containers()
            await life
        finally:
            for task in (life, writer):
                task.cancel()
            await asyncio.gather(life, writer, return_exceptions=True)
        await self._say_farewell()
        if self._ending is Ending.GONE:
            self._remove_files()

    # ---- living

    async def _live(self) -> None:
        """Containers from start to their last end. What cannot be understood ends the pod, not the node."""
        try:
            if not self.is_finished and self._admit():
                self.report.change(is_news=False)
                volumes = await unless(self._must_end, self._make_volumes())
                if volumes is not None:
                    self._is_prepared = True
                    await self._run_containers(self._parts(volumes))
        except Exception as error:
            log.exception("pod %s/%s", *self.key)
            for container in self.containers:
                self.machine.processes.end(container.mark)
                _note_loss(container.state, "The node could not look after the container and killed it.")
            self._fail("NodeError", f"{type(error).__name__}: {error}")
        finally:
            self.machine.devices.release(self.uid)
            if self._ip is not None:
                self.machine.addresses.release(self._ip)

    def _admit(self) -> bool:
        """Gives the pod its address and devices; False, with the pod failed, when it cannot have them."""
        wanted = sum(_gpus(spec) for spec in self.obj["spec"]["containers"])
        if self.machine.devices.take(self.uid, wanted) is None:
            self._fail(f"OutOf{GPU}", f"Node didn't have enough resource: {GPU}, requested: {wanted}")
            return False
        self.folder.make()
        if self.obj["spec"].get("hostNetwork"):
            self._ip = self.machine.host_ip
        else:
            self._ip = self.machine.addresses.take(self.uid, self.report.status.get("podIP"))
        return True

    async def _make_volumes(self) -> dict[str, Path]:
        """Every volume of the pod, tried until all are there."""
        seconds = FIRST_RETRY_SECONDS
        while True:
            self.content.changed.clear()
            try:
                return await self._fill_volumes()
            except (ConfigError, ApiError, Unreachable, OSError) as error:
                self.machine.events.record(self.obj, "FailedMount", f"MountVolume.SetUp failed: {error}", warning=True)
            await pause(seconds, self.content.changed)
            seconds = min(2 * seconds, LONGEST_RETRY_SECONDS)

    async def _fill_volumes(self) -> dict[str, Path]:
        facts = self._facts()
        return {
            volume["name"]: await make_volume(volume, self._volume_folder(volume), facts, self.content.sources)
            for volume in self.obj["spec"].get("volumes") or []
        }

    def _volume_folder(self, volume: Mapping[str, Any]) -> Path:
        """Where a volume is made that lives and dies with the pod: in memory if it asks for that and there is room."""
        name, on_disk = volume["name"], self.folder.volume(volume["name"])
        source = volume.get("emptyDir") or {}
        if source.get("medium") != "Memory" or on_disk.exists():
            return on_disk
        limit = source.get("sizeLimit")
        try:
            return self.machine.memory.make(self.uid, name, None if limit is None else int(parse_quantity(limit)))
        except NoMemory as error:
            message = f'volume "{name}" is on disk instead of in memory: {error}'
            self.machine.events.record(self.obj, "MemoryVolumeOnDisk", message, warning=True)
            return on_disk

    def _remove_files(self) -> None:
        self.folder.remove()
        self.machine.memory.remove(self.uid)

    async def _follow_volumes(self) -> None:
        """Shows changed ConfigMaps and Secrets, and renewed tokens, to the running containers."""
        while True:
            await pause(self.content.renewal_seconds(), self.content.changed)
            self.content.changed.clear()
            try:
                await self._fill_volumes()
            except (ConfigError, ApiError, Unreachable, OSError) as error:
                log.info("pod %s/%s keeps its volumes as they are: %s", *self.key, error)

    async def _run_containers(self, parts: PodParts) -> None:
        """Until all have ended for good; not longer than activeDeadlineSeconds after the pod's start."""
        containers = asyncio.create_task(self._run_in_order(parts))
        follower = asyncio.create_task(self._follow_volumes()) if self.content.is_followed else None
        try:
            deadline = self.obj["spec"].get("activeDeadlineSeconds")
            seconds = None if deadline is None else parse_timestamp(self._start_time) + deadline - time.time()
            await asyncio.wait([containers], timeout=seconds if seconds is None else max(0.0, seconds))
            if not containers.done():
                self._fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
                self._stop_containers()
            await containers
        finally:
            if follower is not None:
                follower.cancel()
            containers.cancel()

    async def _run_in_order(self, parts: PodParts) -> None:
        """Init containers one after the other, then the main ones together; sidecars from their turn to the end."""
        sidecars: list[asyncio.Task[None]] = []
        try:
            for container in self.init:
                if container.state.is_sidecar:
                    sidecars.append(asyncio.create_task(container.run(parts)))
                    await container.is_settled.wait()
                    continue
                await container.run(parts)
                if not container.state.has_succeeded:
                    return
            async with asyncio.TaskGroup() as group:
                for container in self.main:
                    group.create_task(container.run(parts))
        finally:
            for container in self.init:
                container.stop(self._grace_seconds())
            await asyncio.gather(*sidecars)

    def _parts(self, volumes: Mapping[str, Path]) -> PodParts:
        return PodParts(
            machine=self.machine,
            folder=self.folder,
            facts=self._facts(),
            volumes=volumes,
            devices=self._deal_devices(),
            content=self.content,
            on_change=self.report.change,
        )

    def _deal_devices(self) -> dict[str, list[str]] | None:
        """The accelerators of each container; None when the node has none at all."""
        if not self.machine.devices.ids:
            return None
        counts = {spec["name"]: _gpus(spec) for spec in self.obj["spec"]["containers"]}
        mine = iter(self.machine.devices.take(self.uid, sum(counts.values())) or [])
        return {name: [next(mine) for _ in range(count)] for name, count in counts.items()}

    def _facts(self) -> PodFacts:
        return PodFacts(self.obj, self._ip or "", self.machine.host_ip, self.machine.allocatable)

    # ---- ending

    def _stop_containers(self) -> None:
        for container in self.containers:
            container.stop(self._grace_seconds())

    def _grace_seconds(self) -> float:
        grace = self.obj["metadata"].get("deletionGracePeriodSeconds")
        if grace is None:
            grace = self.obj["spec"].get("terminationGracePeriodSeconds")
        seconds = DEFAULT_GRACE_SECONDS if grace is None else float(grace)
        if self._ending is Ending.GONE:
            return FORCED_GRACE_SECONDS
        return min(seconds, SHUTDOWN_GRACE_SECONDS) if self._ending is Ending.NODE_STOPS else seconds

    async def _say_farewell(self) -> None:
        """The last status, so that watchers see how containers ended, then the confirmation of the deletion."""
        if self._ending is Ending.NODE_STOPS:
            # A pod that is always restarted runs again when the node is back; for others this is the end.
            if self._is_cut_short and self.obj["spec"].get("restartPolicy", "Always") != "Always":
                self._verdict = Verdict("Terminated", "Pod was terminated in response to imminent node shutdown.")
            if self._ip is not None:
                await self._persist(self.report.write)
        elif self._ending is Ending.DELETED:
            if self._ip is not None:
                await self._persist(self.report.write)
            self._remove_files()  # first: who sees the pod gone may rely on nothing of it being left
            await self._persist(self._confirm_deletion)

    async def _confirm_deletion(self) -> None:
        await self.machine.client.delete(PODS, self.key, uid=self.uid, grace_seconds=0)

    async def _persist(self, write: Any) -> None:
        """Repeats a write until it succeeds, or the pod turns out to be gone."""
        seconds = FIRST_RETRY_SECONDS
        while self._ending is not Ending.GONE:
            try:
                await write()
                return
            except (ApiError, Unreachable) as error:
                log.warning("pod %s/%s, next try in %.1f s: %s", *self.key, seconds, error)
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, LONGEST_RETRY_SECONDS)

    def _fail(self, reason: str, message: str) -> None:
        self._verdict = Verdict(reason, message)
        self.machine.events.record(self.obj, reason, message, warning=True)
        self.report.change()

    # ---- telling

    def _container(self, spec: Mapping[str, Any], section: str) -> Container:
        is_init = section == "initContainerStatuses"
        shown = next((item for item in self.report.status.get(section) or [] if item["name"] == spec["name"]), None)
        state = _restored_state(spec, shown, self.folder.read_record(spec["name"]))
        policy = self.obj["spec"].get("restartPolicy", "Always")
        if is_init:
            state.is_sidecar = spec.get("restartPolicy") == "Always"
            policy = "OnFailure" if policy == "Always" and not state.is_sidecar else policy
        return Container(self.uid, spec, state, "Always" if state.is_sidecar else policy, is_init=is_init)

    def _build_status(self, current: Object) -> Object:
        return build_status(
            {**self.obj, "status": current},
            [container.state for container in self.init],
            [container.state for container in self.main],
            pod_ip=self._ip,
            host_ip=self.machine.host_ip,
            start_time=self._start_time,
            now=time.time(),
            verdict=self._verdict,
            is_stopped=self._ending is Ending.DELETED,
            is_prepared=self._is_prepared,
        )


def _gpus(spec: Mapping[str, Any]) -> int:
    resources = spec.get("resources") or {}
    return int((resources.get("limits") or {}).get(GPU) or (resources.get("requests") or {}).get(GPU) or 0)


def _restored_state(
    spec: Mapping[str, Any], shown: Mapping[str, Any] | None, recorded: Mapping[str, Any] | None
) -> ContainerState:
    """Where a container stands when this node begins to look after its pod: new, or left behind by an earlier life of
    the node. What was noted on disk may be newer than what was shown. What ran then has ended with the node."""
    newest = shown
    if recorded is not None and (shown is None or recorded["restartCount"] >= shown.get("restartCount", 0)):
        newest = recorded
    if newest is None:
        return ContainerState(spec["name"], spec["image"])
    state = ContainerState.from_document(newest)
    _note_loss(state, "The node was stopped or killed while the container ran; the container ended with it.")
    return state


def _note_loss(state: ContainerState, message: str) -> None:
    """What is said of a container that ran and whose end nobody saw."""
    if not state.is_running:
        return
    state.ready = state.started = False
    state.state = {
        "terminated": {
            "exitCode": LOST_EXIT_CODE,
            "reason": "ContainerStatusUnknown",
            "message": message,
            "startedAt": state.state["running"]["startedAt"],
            "finishedAt": timestamp(time.time()),
            "containerID": state.container_id,
        }
    }
