"""Services on loopback: a TCP relay on each clusterIP that this machine can listen on (127.0.0.0/8)."""

import asyncio
import contextlib
import ipaddress
import itertools
import logging
import socket
from collections.abc import Iterator

from capstan_local.client import ENDPOINTS, SERVICES, Client, Key, Object, key_of
from capstan_local.informer import Informer

log = logging.getLogger(__name__)

LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
CHUNK_BYTES = 64 * 1024
BACKLOG = 128
ACCEPT_PAUSE_SECONDS = 0.5
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 5.0

Address = tuple[str, int]


class ServiceProxy:
    """Follows Services and Endpoints. A port without a ready endpoint is not listened on: connections are refused.

    is_relaying: False when another node of this machine listens already; `variables` are good all the same.
    """

    def __init__(self, client: Client, *, is_relaying: bool = True) -> None:
        self._is_relaying = is_relaying
        self._wake = asyncio.Event()
        self.services = Informer(client, SERVICES, lambda *_: self._wake.set())
        self._endpoints = Informer(client, ENDPOINTS, lambda *_: self._wake.set())
        self._relays: dict[Address, Relay] = {}
        self._retired: set[Relay] = set()
        """They accept nobody any more, and let go on what was begun."""

    async def run(self) -> None:
        """Until cancelled; then nothing is listened on any more."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.services.run())
                group.create_task(self._endpoints.run())
                await self.services.synced.wait()
                await self._endpoints.synced.wait()
                while True:
                    self._wake.clear()
                    is_complete = not self._is_relaying or self._adjust()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if is_complete else RETRY_SECONDS):
                            await self._wake.wait()
        finally:
            for relay in (*self._relays.values(), *self._retired):
                relay.close()

    def _adjust(self) -> bool:
        """Listens where it should and nowhere else; False when an address is taken by somebody else for now."""
        wanted = dict(self._wanted())
        for address in self._relays.keys() - wanted.keys():
            unwanted = self._relays.pop(address)
            unwanted.retire()
            self._retired.add(unwanted)
        self._retired = {retired for retired in self._retired if retired.is_in_use}
        is_complete = True
        for address, backends in wanted.items():
            relay = self._relays.get(address)
            if relay is None:
                relay = Relay(address)
                try:
                    relay.listen()
                except OSError as error:
                    log.warning("service address %s:%d: %s", *address, error)
                    is_complete = False
                    continue
                self._relays[address] = relay
            relay.point_to(backends)
        return is_complete

    def _wanted(self) -> Iterator[tuple[Address, list[Address]]]:
        for service in self.services.objects.values():
            endpoints = self._endpoints.objects.get(key_of(service))
            if endpoints is None or not is_local(service):
                continue
            for port in service["spec"].get("ports") or []:
                backends = endpoint_addresses(endpoints, port.get("name", ""))
                if backends and port.get("protocol", "TCP") == "TCP":
                    yield (service["spec"]["clusterIP"], port["port"]), backends

    def variables(self, namespace: str) -> dict[str, str]:
        """The environment variables that tell containers of a namespace where its Services are."""
        found: dict[str, str] = {}
        for key, service in self.services.objects.items():
            ip = service["spec"].get("clusterIP")
            if key[0] == namespace and ip and ip != "None":
                found |= _service_variables(key, service, ip)
        return found


def _service_variables(key: Key, service: Object, ip: str) -> dict[str, str]:
    name = key[1].upper().replace("-", "_")
    ports = service["spec"].get("ports") or []
    found = {f"{name}_SERVICE_HOST": ip}
    if ports:
        found[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
    for port in ports:
        if port.get("name"):
            found[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
    return found


def is_local(service: Object) -> bool:
    """Whether the Service's address is one that this machine can listen on."""
    ip = service["spec"].get("clusterIP")
    return bool(ip) and ip != "None" and ipaddress.ip_address(ip) in LOOPBACK


def endpoint_addresses(endpoints: Object, port_name: str) -> list[Address]:
    """Ready addresses of one port, sorted so that equal sets compare equal."""
    return sorted(
        (address["ip"], port["port"])
        for subset in endpoints.get("subsets") or []
        for port in subset.get("ports") or []
        if port.get("name", "") == port_name
        for address in subset.get("addresses") or []
    )


class Relay:
    """Listens on one address and hands each connection to the next backend that accepts it.

    Sockets are accepted here and not by asyncio.Server: up to Python 3.11 that one forgets a connection it has accepted
    when it is closed before the next turn of the loop, and the client then waits for ever.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        """Where it listens, once it does."""
        self._backends: list[Address] = []
        self._turns = itertools.count()
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def listen(self) -> None:
        """Raises OSError when the address is taken."""
        listener = socket.create_server(self.address, backlog=BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        self.address = listener.getsockname()[:2]
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def point_to(self, backends: list[Address]) -> None:
        self._backends = backends

    @property
    def is_in_use(self) -> bool:
        """Whether there is a connection through it."""
        return bool(self._connections)

    def retire(self) -> None:
        """Refuses connections from now on. Those there are go on until one side ends them, as through kube-proxy: a pod
        that is about to leave answers what it has taken on."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Refuses connections from now on and ends those there are."""
        self.retire()
        for connection in self._connections:
            connection.cancel()

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it changed its mind
            return
        except OSError as error:  # out of descriptors, say: those waiting go on waiting
            log.warning("relay %s:%d: %s", *self.address, error)
            asyncio.get_running_loop().remove_reader(self._listener)
            asyncio.get_running_loop().call_later(ACCEPT_PAUSE_SECONDS, self._accept_again)
            return
        client.setblocking(False)
        # Known and sure to be closed from this moment, even if the task is cancelled before it begins.
        task = asyncio.create_task(self._serve(client))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: client.close())

    def _accept_again(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def _serve(self, client: socket.socket) -> None:
        backend = await self._connect()
        if backend is None:
            return
        with backend:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pump(client, backend))
                    group.create_task(_pump(backend, client))
            except* OSError as errors:  # one side was reset: closing both tells the other
                log.debug("relay %s:%d: %s", *self.address, errors.exceptions[0])

    async def _connect(self) -> socket.socket | None:
        """A connection to the backend whose turn it is, or the next that accepts one; None when none does."""
        backends, turn = list(self._backends), next(self._turns)
        for offset in range(len(backends)):
            address = backends[(turn + offset) % len(backends)]
            backend = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            backend.setblocking(False)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await asyncio.get_running_loop().sock_connect(backend, address)
                return backend
            except (OSError, TimeoutError) as error:
                backend.close()
                log.debug("relay %s:%d: backend %s:%d: %s", *self.address, *address, error)
            except asyncio.CancelledError:
                backend.close()
                raise
        return None


async def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copies until the end, then passes the end on, so that half-closed connections go on in the other direction."""
    loop = asyncio.get_running_loop()
    while chunk := await loop.sock_recv(source, CHUNK_BYTES):
        await loop.sock_sendall(target, chunk)
    target.shutdown(socket.SHUT_WR)
