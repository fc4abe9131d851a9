"""kopf's part: it watches the objects of one kind of ours. The only file that imports kopf.

kopf gets a thread and an event loop of its own, because when it ends it cancels every task of the loop it runs in, and
because a watch error that is not a 410 ends it. Here that costs a restart of the watch, and nothing else notices.
Handlers are `on.event` only: the others write finalizers and annotations, and cost 76-136 API calls a job.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import kopf

from capstan_operator.cluster.credentials import Credentials
from capstan_operator.cluster.kinds import Resource

logger = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 30.0
STOP_SECONDS = 2.0
"""How long a stop waits for kopf. It only reads, so it may also be left behind."""

Sink = Callable[[str | None, dict[str, Any]], None]
"""Takes (type, object): type is ADDED, MODIFIED or DELETED, or None for an object out of a list."""


class Watch:
    """`run` watches until cancelled and calls `sink` in the caller's loop for each event. The kind must be served."""

    def __init__(self, credentials: Credentials, resource: Resource, sink: Sink, *, namespace: str | None) -> None:
        self._credentials = credentials
        self._resource = resource
        self._sink = sink
        self._namespace = namespace

    async def run(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            error = await self._run_once()
            failures = 1 if time.monotonic() - started > 60.0 else failures + 1
            limit = min(MAX_BACKOFF_SECONDS, 0.25 * 2 ** min(failures, 8))
            plural = self._resource.plural
            logger.warning("the watch of %s ended (%s) and is started again", plural, error or "no error")
            await asyncio.sleep(random.uniform(limit / 2, limit))  # nosec B311  # jitter

    async def _run_once(self) -> BaseException | None:
        """One life of kopf; returns what ended it. When cancelled, waits up to two seconds until kopf has stopped."""
        loop = asyncio.get_running_loop()
        life = _Life()
        ended: asyncio.Future[BaseException | None] = loop.create_future()

        def forward(kind: str | None, document: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self._sink, kind, document)

        def end(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_result(error)

        def live() -> None:
            error: BaseException | None = None
            try:
                asyncio.run(self._operate(forward, life))
            except Exception as problem:
                error = problem
            if not loop.is_closed():
                loop.call_soon_threadsafe(end, error)

        threading.Thread(target=live, name=f"kopf {self._resource.plural}", daemon=True).start()
        try:
            return await asyncio.shield(ended)
        finally:
            life.end()
            await asyncio.wait([ended], timeout=STOP_SECONDS)

    async def _operate(self, forward: Sink, life: "_Life") -> None:
        await kopf.operator(
            registry=self._registry(forward, life),
            settings=_settings(),
            standalone=True,
            stop_flag=life.begin(),
            clusterwide=self._namespace is None,
            namespaces=[] if self._namespace is None else [self._namespace],
        )

    def _registry(self, forward: Sink, life: "_Life") -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.cleanup(registry=registry)
        async def clean_up(**_: Any) -> None:
            # kopf failed and takes its tasks down; it would give the one that waits for the flag five seconds.
            life.end()

        @kopf.on.login(registry=registry)
        async def log_in(**_: Any) -> kopf.AiohttpSession:
            # kopf closes the session and asks again after a 401, so a rotated token is picked up.
            self._credentials.forget_token()
            token, tls = self._credentials.current_token(), self._credentials.ssl_context()
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls if tls is not None else True),
                headers={"Authorization": f"Bearer {token}"} if token else {},
            )
            return kopf.AiohttpSession(server=self._credentials.server, aiohttp_session=session)

        @kopf.on.event(self._resource.group, self._resource.version, self._resource.plural, registry=registry)
        async def wake(event: kopf.RawEvent, **_: Any) -> None:
            forward(event["type"], dict(event["object"]))

        return registry


class _Life:
    """A stop flag that lives in kopf's loop and may be set from any thread, even before that loop exists."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flag = asyncio.Event()

    def begin(self) -> asyncio.Event:
        """The flag, for the loop that calls this."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            if self._is_over:
                self._flag.set()
        return self._flag

    def end(self) -> None:
        """Set the flag."""
        with self._lock:
            self._is_over = True
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._flag.set)


def _settings() -> kopf.OperatorSettings:
    """kopf as a bare watcher: it stores nothing, posts nothing, scans nothing twice and elects nobody."""
    settings = kopf.OperatorSettings()
    settings.process.ultimate_exiting_timeout = None
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.chunk_size = 500
    settings.watching.connect_timeout = 10.0
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 10.0
    settings.queueing.idle_timeout = 0.5
    settings.queueing.exit_timeout = 0.1
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    return settings


class _NoDiffBase(kopf.DiffBaseStorage):
    """Remembers nothing on the object, and spares the deep copies of it that every event would cost."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing is stored."""


class _NoProgress(kopf.ProgressStorage):
    """There is no progress of handlers to remember: `on.event` handlers run once and are done."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        return None

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing is stored."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing was stored."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Nothing is written to provoke an event."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class _Unsurprising(logging.Filter):
    """Drops the warning that kopf leaves signals alone outside the main thread: that is what we want."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "OS signals are ignored" not in record.getMessage()


logging.getLogger("kopf._core.reactor.running").addFilter(_Unsurprising())
