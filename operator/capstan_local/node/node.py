"""A Kubernetes node that runs each container as a process group of this machine. A client of any API server."""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import re
import socket
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp

from capstan_local.client import (
    CLAIMS,
    CONFIG_MAPS,
    PODS,
    SECRETS,
    ApiError,
    Client,
    Key,
    Object,
    Resource,
    Unreachable,
    key_of,
)
from capstan_local.informer import Informer, only_identity
from capstan_local.node.events import EventRecorder
from capstan_local.node.folder import remove_strangers
from capstan_local.node.images import ImageRule
from capstan_local.node.kubelet import ADDRESS, Kubelet, KubeletAccess
from capstan_local.node.machine import Addresses, Devices, Machine, detect_gpus
from capstan_local.node.memory import MemoryVolumes
from capstan_local.node.pod import SHUTDOWN_GRACE_SECONDS, Ending, Pod
from capstan_local.node.processes import Processes, sweep
from capstan_local.node.provisioner import Provisioner
from capstan_local.node.proxy import ServiceProxy
from capstan_local.node.registration import Registration, capacity

log = logging.getLogger(__name__)

STOP_SECONDS = SHUTDOWN_GRACE_SECONDS + 5.0
FAREWELL_SECONDS = 3.0


class Node:
    """Runs the pods bound to the node `name` (None: this machine's host name).

    home: where volumes, logs and records are kept; one node at a time.
    images: what the images of containers stand for on this machine; the first rule that matches counts.
    gpus: the `nvidia.com/gpu` to offer: how many, or their ids for CUDA_VISIBLE_DEVICES; None: what nvidia-smi finds.
    serves_machine: whether it also makes volumes for claims and answers on the addresses of Services. Of the nodes
        that one cluster has on a machine, exactly one does.
    backoff_seconds: first pause before a failing container is started again.
    """

    def __init__(
        self,
        client: Client,
        home: Path,
        name: str | None = None,
        images: Sequence[ImageRule] = (),
        gpus: int | Sequence[str] | None = None,
        *,
        serves_machine: bool = True,
        access: KubeletAccess | None = None,
        backoff_seconds: float = 10.0,
        max_pods: int = 1000,
    ) -> None:
        self.name = name or default_name(socket.gethostname())
        self.ready = asyncio.Event()
        """Set once the node is registered and follows its pods."""
        self._client = client
        self._home = home.expanduser().resolve()
        self._images = list(images)
        self._gpus = gpus
        self._serves_machine = serves_machine
        self._access = access or KubeletAccess()
        self._backoff_seconds = backoff_seconds
        self._max_pods = max_pods
        self._pods: dict[str, Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: set[str] = set()
        """uids of pods this node is done with that the API server still shows: news of them is our own echo."""
        self._is_stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then stops all containers within STOP_SECONDS and reports the node as not ready.

        Raises RuntimeError when another node uses the same home.
        """
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self._home):
            mark = hashlib.sha256(str(self._home).encode()).hexdigest()[:12]
            if leftovers := sweep(mark):
                log.warning("killed %d processes that an earlier life of this node left behind", leftovers)
            async with AsyncExitStack() as stack:
                await self._run(stop, stack, mark)

    async def _run(self, stop: asyncio.Event, stack: AsyncExitStack, mark: str) -> None:
        kubelet = Kubelet(self.name, self._access, self._find_pod)
        await kubelet.start()
        stack.push_async_callback(kubelet.stop)
        events = EventRecorder(self._client, "kubelet", self.name)
        proxy = ServiceProxy(self._client, is_relaying=self._serves_machine)
        machine = await self._build_machine(stack, mark, events, proxy)
        registration = Registration(self._client, self.name, ADDRESS, kubelet.port, dict(machine.allocatable))
        provisioner = None
        if self._serves_machine:
            provisioner = Provisioner(self._client, self._home, events, self._note_claim, self._uses_claim)
        pods = self._follow_pods(machine, provisioner)

        background = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("events", events.run()),
                ("proxy", proxy.run()),
                ("claims", self._follow(CLAIMS, "PersistentVolumeClaim") if provisioner is None else provisioner.run()),
                ("config maps", self._follow(CONFIG_MAPS, "ConfigMap")),
                ("secrets", self._follow(SECRETS, "Secret")),
                ("pods", pods.run()),
                ("registration", self._register(registration, pods, machine)),
            )
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait({stopping, *background}, return_when=asyncio.FIRST_COMPLETED)
            await self._stop_pods(registration)
            await events.flush(FAREWELL_SECONDS)
            for task in done - {stopping}:
                task.result()  # work that never ends has ended: say why
        finally:
            for task in (stopping, *background, *self._tasks.values()):
                task.cancel()
            await asyncio.gather(stopping, *background, *self._tasks.values(), return_exceptions=True)

    async def _build_machine(
        self, stack: AsyncExitStack, mark: str, events: EventRecorder, proxy: ServiceProxy
    ) -> Machine:
        gpus = await detect_gpus() if self._gpus is None else self._gpus
        ids = [str(index) for index in range(gpus)] if isinstance(gpus, int) else list(gpus)
        processes, addresses, memory = Processes(mark), Addresses(self._home), MemoryVolumes(self._home)
        memory.sweep()
        stack.callback(memory.close)
        stack.push_async_callback(processes.close)
        await processes.open()
        stack.callback(addresses.close)
        return Machine(
            client=self._client,
            home=self._home,
            node_name=self.name,
            host_ip=ADDRESS,
            processes=processes,
            events=events,
            images=self._images,
            addresses=addresses,
            devices=Devices(ids),
            memory=memory,
            http=await stack.enter_async_context(aiohttp.ClientSession()),
            service_variables=lambda namespace: {**proxy.variables(namespace), **self._api_server_variables()},
            allocatable=capacity(self._home, len(ids), self._max_pods),
            backoff_seconds=self._backoff_seconds,
        )

    def _api_server_variables(self) -> dict[str, str]:
        """Where containers find the API server: the address of the Service `kubernetes` need not be reachable here."""
        server = urllib.parse.urlsplit(self._client.access.server)
        port = str(server.port or (443 if server.scheme == "https" else 80))
        return {"KUBERNETES_SERVICE_HOST": server.hostname or "", "KUBERNETES_SERVICE_PORT": port}

    async def _register(self, registration: Registration, pods: Informer, machine: Machine) -> None:
        await registration.register()
        await pods.synced.wait()
        remove_strangers(self._home, set(self._pods))
        self.ready.set()
        log.info("node %s is ready", self.name)
        await registration.keep_alive(machine.oom)

    # ---- pods

    def _follow_pods(self, machine: Machine, provisioner: Provisioner | None) -> Informer:
        def on_change(kind: str, obj: Object, _old: Object | None) -> None:
            uid = obj["metadata"]["uid"]
            pod = self._pods.get(uid)
            if kind == "DELETED":
                self._ended.discard(uid)
                if pod is not None:
                    pod.end(Ending.GONE)
            elif pod is not None:
                pod.update(obj)
            elif uid not in self._ended and not self._is_stopping:
                self._adopt(Pod(machine, obj), provisioner, informer)

        selectors = {"fieldSelector": f"spec.nodeName={self.name}"}
        informer = Informer(self._client, PODS, on_change, selectors=selectors)
        return informer

    def _adopt(self, pod: Pod, provisioner: Provisioner | None, informer: Informer) -> None:
        def forget(task: asyncio.Task[None]) -> None:
            del self._pods[pod.uid], self._tasks[pod.uid]
            shown = informer.objects.get(pod.key)
            if shown is not None and shown["metadata"]["uid"] == pod.uid:
                self._ended.add(pod.uid)
            if provisioner is not None:
                provisioner.wake()
            if not task.cancelled() and task.exception() is not None:
                log.error("pod %s/%s", *pod.key, exc_info=task.exception())

        self._pods[pod.uid] = pod
        task = self._tasks[pod.uid] = asyncio.create_task(pod.run(), name=f"pod {pod.key[0]}/{pod.key[1]}")
        task.add_done_callback(forget)

    async def _stop_pods(self, registration: Registration) -> None:
        self._is_stopping = True
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await registration.write_status(is_ready=False)
        except (ApiError, Unreachable, TimeoutError) as error:
            log.warning("the node could not say that it stops: %s", error or type(error).__name__)
        for pod in list(self._pods.values()):
            pod.end(Ending.NODE_STOPS)
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks.values()), timeout=STOP_SECONDS)
            if late:
                log.warning("%d pods did not end in %.0f s and are killed", len(late), STOP_SECONDS)

    def _find_pod(self, namespace: str, name: str) -> Pod | None:
        found = [pod for pod in self._pods.values() if pod.key == (namespace, name)]
        return found[-1] if found else None  # the newest, while one of the same name still ends

    # ---- what pods refer to

    async def _follow(self, resource: Resource, kind: str) -> None:
        """Tells the pods of every change of a kind of object that they may refer to."""

        def on_change(_change: str, obj: Object, _old: Object | None) -> None:
            self._tell_pods(kind, key_of(obj))

        await Informer(self._client, resource, on_change, reduce=only_identity).run()

    def _note_claim(self, key: Key) -> None:
        self._tell_pods("PersistentVolumeClaim", key)

    def _tell_pods(self, kind: str, key: Key) -> None:
        for pod in self._pods.values():
            if pod.key[0] == key[0]:
                pod.content.note_change(kind, key[1])

    def _uses_claim(self, key: Key) -> bool:
        return any(
            pod.key[0] == key[0] and pod.content.refers_to("PersistentVolumeClaim", key[1])
            for pod in self._pods.values()
            if not pod.is_finished
        )


def default_name(host: str) -> str:
    """The host name if a Node may be called so, otherwise `local`."""
    name = host.lower()
    return name if re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", name) else "local"


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Holds the home's lock; the kernel lets go of it however the node ends."""
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"home {home} is in use by another node; give this one another home") from None
        yield
