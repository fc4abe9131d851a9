"""Asks the replicas of all InferenceServices for their numbers, round by round, and counts what is new.

What a round brings for a service in a canary's step wakes that service, so that its gates are judged.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import aiohttp

from capstan_operator.cluster.errors import ScrapeError, ScrapeTimeout
from capstan_operator.cluster.replica_metrics import read_metrics
from capstan_operator.cluster.serving_traffic import Reading, ServiceTraffic
from capstan_operator.cluster.supervisor_client import read_at_most
from capstan_operator.cluster.work_queue import ObjectKey
from capstan_operator.metrics import Metrics
from capstan_operator.observe_serving import ObservedLoad, ObservedTraffic, RevisionLatency
from capstan_runtime.contract.env import SERVE_PORT

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
ASK_SECONDS = 2.0
MAX_SCRAPES_PER_SECOND = 200.0
TLS_COST = 4
"""A question over TLS counts as so many: a handshake takes four times the CPU, and a connection that is kept for the
next question 300 KB, nearly all of it asyncio's buffer."""
MAX_AT_ONCE = 64
MAX_SILENT_A_ROUND = 32
"""Each of those that let the last question run out of time costs 2 s again: a rack that died must not hold up all."""
MAX_ANSWER_BYTES = 128 * 1024
"""About ten times what a replica has to say."""
FORGET_SECONDS = 600.0
"""A service is forgotten when for so long it has had no pod."""


@dataclass(frozen=True, slots=True)
class Target:
    """A pod to ask."""

    service: ObjectKey
    service_uid: str
    revision: str
    pod_uid: str
    ip: str
    is_tls: bool
    since: str | None
    """`status.rollout.since` of the service while it is in a canary's step; else None."""
    is_ready: bool = True
    """It gets requests: the service's load is what such pods have."""
    load_seconds: float | None = None
    """How far back the service needs samples of its load; None: it needs none."""


@dataclass(slots=True)
class _Service:
    """What is known of one service, and when it last had a pod."""

    traffic: ServiceTraffic
    seen_at: float


class Scraper:
    """`run` asks until cancelled. A term begins when this replica becomes the leader. What was counted can be read at
    any time, by the service's uid."""

    def __init__(
        self,
        targets: Callable[[], Iterable[Target]],
        wake: Callable[[ObjectKey], None],
        metrics: Metrics,
        *,
        port: int = SERVE_PORT,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._targets = targets
        self._wake = wake
        self._metrics = metrics
        self._port = port
        self._interval_seconds = interval_seconds
        self._services: dict[str, _Service] = {}
        """By uid."""
        self._silent: dict[str, None] = {}
        """Uids of pods that let the last question run out of time; those asked longest ago come first."""

    def begin_term(self) -> None:
        """Forget everything: another replica led meanwhile, and nobody asked for it."""
        self._services = {}
        self._silent = {}

    def traffic(self, service_uid: str) -> ObservedTraffic | None:
        """What was counted in the service's step since this replica first saw it; None: no round yet, or no step."""
        service = self._services.get(service_uid)
        return service.traffic.traffic() if service else None

    def load(self, service_uid: str) -> ObservedLoad | None:
        """What each round found, as far back as `Target.load_seconds` asks; None: there is nothing of it."""
        service = self._services.get(service_uid)
        return service.traffic.load() if service else None

    def latency(self, service_uid: str) -> Mapping[str, RevisionLatency]:
        """By revision, over about the last minute; of a service without answers nothing."""
        service = self._services.get(service_uid)
        return service.traffic.latency() if service else {}

    async def run(self) -> None:
        # As with supervisors: connections outlive the pause between two rounds, but not much.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_AT_ONCE, keepalive_timeout=3.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        ) as session:
            while True:
                began = time.monotonic()
                await self._run_round(session, began)
                await asyncio.sleep(max(0.0, began + self._interval_seconds - time.monotonic()))

    async def _run_round(self, session: aiohttp.ClientSession, now: float) -> None:
        targets = {target.pod_uid: target for target in self._targets()}
        services = self._begin_round(targets.values(), now)
        free = asyncio.Semaphore(MAX_AT_ONCE)
        due = now
        async with asyncio.TaskGroup() as group:
            for target in self._in_turn(targets):
                await free.acquire()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                cost = TLS_COST if target.is_tls else 1
                due = max(due + cost / MAX_SCRAPES_PER_SECOND, time.monotonic())
                asking = group.create_task(self._ask(session, target, services[target.service_uid]))
                asking.add_done_callback(lambda _: free.release())
        keys = {target.service_uid: target.service for target in targets.values()}
        for uid, service in services.items():
            if service.end_round(time.monotonic(), time.time()):
                self._wake(keys[uid])

    def _begin_round(self, targets: Iterable[Target], now: float) -> dict[str, ServiceTraffic]:
        """The services to count for in this round, by uid."""
        pods: dict[str, list[Target]] = {}
        for target in targets:
            pods.setdefault(target.service_uid, []).append(target)
        for uid, own in pods.items():
            service = self._services.setdefault(uid, _Service(ServiceTraffic(), now))
            service.seen_at = now
            is_ready = {target.pod_uid: target.is_ready for target in own}
            service.traffic.begin_round(own[0].since, is_ready, now, own[0].load_seconds)
        for uid in [uid for uid, service in self._services.items() if now - service.seen_at > FORGET_SECONDS]:
            del self._services[uid]
        return {uid: self._services[uid].traffic for uid in pods}

    def _in_turn(self, targets: Mapping[str, Target]) -> list[Target]:
        """Who is asked in this round: all that may answer, then a few of those that did not."""
        self._silent = {uid: None for uid in self._silent if uid in targets}
        silent = [targets[uid] for uid in self._silent][:MAX_SILENT_A_ROUND]
        return [target for uid, target in targets.items() if uid not in self._silent] + silent

    async def _ask(self, session: aiohttp.ClientSession, target: Target, traffic: ServiceTraffic) -> None:
        self._silent.pop(target.pod_uid, None)
        try:
            reading = await self._fetch(session, target)
        except ScrapeError as error:
            is_silent = isinstance(error, ScrapeTimeout)
            if is_silent:
                self._silent[target.pod_uid] = None
            self._metrics.replica_scrapes.labels("silent" if is_silent else "unreadable").inc()
            logger.debug("no numbers of a pod of %s: %s", target.revision, error, extra=target.service.log_fields())
            return
        self._metrics.replica_scrapes.labels("counted").inc()
        traffic.take(target.pod_uid, reading, time.monotonic())

    async def _fetch(self, session: aiohttp.ClientSession, target: Target) -> Reading:
        """One answer, within 2 s. Raises ScrapeError. Another pod that got the same address is an error."""
        host = f"[{target.ip}]" if ":" in target.ip else target.ip
        url = f"{'https' if target.is_tls else 'http'}://{host}:{self._port}/metrics"
        try:
            async with session.get(
                url,
                ssl=False,  # as a kubelet's probe does: the certificate is for the name that clients know
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=ASK_SECONDS),
            ) as response:
                body = await read_at_most(response.content, MAX_ANSWER_BYTES)
        except TimeoutError as error:
            raise ScrapeTimeout(f"{url}: no answer within {ASK_SECONDS:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ScrapeError(f"{url}: {type(error).__name__}: {error}") from error
        if response.status != 200:
            raise ScrapeError(f"{url}: status {response.status}")
        if body is None:
            raise ScrapeError(f"{url}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
        reading = read_metrics(body)
        if reading.revision != target.revision:
            raise ScrapeError(f"{url}: {reading.revision} answered instead of {target.revision}")
        return reading
