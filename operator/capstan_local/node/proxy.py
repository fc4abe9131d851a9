"""Services on loopback: a TCP relay on each clusterIP that this machine can listen on (127.0.0.0/8)."""

import asyncio
import contextlib
import ipaddress
import itertools
import logging
from collections.abc import Iterator
from typing import Any

from capstan_local.client import ENDPOINTS, SERVICES, Client, Informer, Key, Object, key_of

log = logging.getLogger(__name__)

LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
CHUNK_BYTES = 64 * 1024
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 5.0

Address = tuple[str, int]


class ServiceProxy:
    """Follows Services and Endpoints. A port without a ready endpoint is not listened on: connections are refused."""

    def __init__(self, client: Client) -> None:
        self._wake = asyncio.Event()
        self.services = Informer(client, SERVICES, lambda *_: self._wake.set())
        self._endpoints = Informer(client, ENDPOINTS, lambda *_: self._wake.set())
        self._relays: dict[Address, Relay] = {}

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
                    is_complete = await self._adjust()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), None if is_complete else RETRY_SECONDS)
        finally:
            for relay in self._relays.values():
                relay.close()

    async def _adjust(self) -> bool:
        """Listens where it should and nowhere else; False when an address is taken by somebody else for now."""
        wanted = dict(self._wanted())
        for address in self._relays.keys() - wanted.keys():
            self._relays.pop(address).close()
        is_complete = True
        for address, backends in wanted.items():
            relay = self._relays.get(address)
            if relay is None:
                relay = Relay(address)
                try:
                    await relay.listen()
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
    """Listens on one address and hands each connection to the next backend that accepts it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._backends: list[Address] = []
        self._turns = itertools.count()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self._address

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, *self._address, limit=CHUNK_BYTES)
        self._address = self._server.sockets[0].getsockname()[:2]

    def point_to(self, backends: list[Address]) -> None:
        self._backends = backends

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        try:
            upstream = await self._connect()
            if upstream is not None:
                up_reader, up_writer = upstream
                try:
                    await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))
                finally:
                    up_writer.close()
        except OSError as error:  # a peer reset the connection: closing ours says so to the other
            log.debug("relay %s:%d: %s", *self._address, error)
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        backends, turn = list(self._backends), next(self._turns)
        for offset in range(len(backends)):
            host, port = backends[(turn + offset) % len(backends)]
            try:
                return await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_SECONDS)
            except (OSError, TimeoutError) as error:
                log.debug("relay %s:%d: backend %s:%d: %s", *self._address, host, port, error)
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies until the end, then passes the end on, so that half-closed connections go on in the other direction."""
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
