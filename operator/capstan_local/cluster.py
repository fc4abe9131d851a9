"""The embedded control plane as a library: `async with LocalControlPlane(home) as plane: plane.kubeconfig_path`."""

import asyncio
import contextlib
import fcntl
import ssl
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from capstan_local.schema import builtin_schemas
from capstan_local.server import crd_registry
from capstan_local.server.admission import Admission
from capstan_local.server.api import Api
from capstan_local.server.bootstrap import Bootstrap
from capstan_local.server.certificates import ensure_certificates
from capstan_local.server.codec import index_entry
from capstan_local.server.collection import Entry
from capstan_local.server.event_expiry import expire_events
from capstan_local.server.garbage import GarbageCollector
from capstan_local.server.identity import Authenticator
from capstan_local.server.kubeconfig import ensure_token, write_kubeconfig
from capstan_local.server.lifecycle import Terminator
from capstan_local.server.resources import Catalog, Resource
from capstan_local.server.server import HttpServer
from capstan_local.server.service_network import service_network
from capstan_local.server.storage import Store
from capstan_local.server.writes import Writer

DEFAULT_HOME = Path("~/.capstan")

_UNSERVED = Resource("", "", "", "", namespaced=True)


class HomeInUse(OSError):
    """Another server has the same home."""


class LocalControlPlane:
    """An API server on a loopback port with its state under `home` (mode 0700, made when absent).

    Port 0 takes the one of the last start, or a free one. While open: `url`, `token`, `ca_path`, `kubeconfig_path`;
    `kubelet_token` is what the server shows to nodes when it asks them for logs and exec (KubeletAccess). Entering
    raises HomeInUse when another server has the same home, RangeInUse when another cluster has its Service addresses,
    and OSError when the port is taken.
    """

    def __init__(self, home: Path = DEFAULT_HOME, port: int = 0) -> None:
        self.home = home.expanduser()
        self.kubeconfig_path = self.home / "kubeconfig"
        self.ca_path = self.home / "pki" / "ca.crt"
        self.token = ""  # nosec B105  # none yet
        self.kubelet_token = ""  # nosec B105  # none yet
        self.url = ""
        self.api: Api | None = None
        """What the port serves, without HTTP; None: not open."""
        self._port = port
        self._catalog = Catalog()
        self._tasks: list[asyncio.Task[None]] = []
        self._store: Store | None = None
        self._server: HttpServer | None = None
        self._held = ExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home.chmod(0o700)
        lock = self._held.enter_context((self.home / "server.lock").open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HomeInUse(f"{self.home} is in use by another API server; stop it or choose another home") from None
        files = ensure_certificates(self.home / "pki")
        self.token = ensure_token(self.home / "token")
        self.kubelet_token = ensure_token(self.home / "kubelet-token")
        builtin_schemas.use_cache(self.home / "cache")
        store = self._store = Store(self.home / "state.sqlite")
        store.open(self._load_entry)
        authenticator = Authenticator(self.token)
        network = self._held.enter_context(service_network(self.home))
        writer = Writer(store, self._catalog, Admission(store, network))
        bootstrap = Bootstrap(store, self._catalog, writer, files.ca)
        await bootstrap.start()
        garbage, terminator = GarbageCollector(store, self._catalog), Terminator(store, self._catalog)
        garbage.start()
        terminator.start()
        self._tasks = [
            asyncio.create_task(queue.run(), name=name)
            for name, queue in (
                ("bootstrap", bootstrap.queue),
                ("garbage", garbage.queue),
                ("terminator", terminator.queue),
            )
        ]
        self._tasks.append(asyncio.create_task(expire_events(store, self._catalog), name="event expiry"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(files.certificate, files.key)
        self.api = Api(store, self._catalog, writer, authenticator, self.kubelet_token)
        self._server = HttpServer(self.api, authenticator)
        await self._listen(self._server, context)
        self.url = self._server.url
        write_kubeconfig(self.kubeconfig_path, self.url, files.ca, self.token)

    async def _listen(self, server: HttpServer, context: ssl.SSLContext) -> None:
        """On the port that was asked for. When none was: on that of the last start, so that a kubeconfig somebody
        copied stays good, or on a free one when somebody else has that now."""
        remembered = self.home / "port"
        port = self._port
        if not port and remembered.exists():
            with contextlib.suppress(OSError):
                await server.start(context, int(remembered.read_text()))
                return
        await server.start(context, port)
        remembered.write_text(f"{server.port}\n")

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._store is not None:
            await self._store.close()
        self._held.close()

    def _load_entry(self, storage_key: str, rv: int, body: bytes) -> Entry:
        """Index a stored object; CRDs are loaded first and served from here on."""
        stored = orjson.loads(body)
        if storage_key == crd_registry.CRDS:
            crd_registry.serve(self._catalog, stored, rv)
        return index_entry(self._catalog.stored().get(storage_key, _UNSERVED), stored, rv, body)
