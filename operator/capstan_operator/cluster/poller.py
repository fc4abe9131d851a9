"""Asks every running pod of an unfinished job how it is doing: regularly, and at once when somebody hints.

A hint is only a reason to look; a lost one is made good by the next regular look.
"""

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Callable

from capstan_operator.cluster.errors import SupervisorError, TokenRefused
from capstan_operator.cluster.store import PodRecord, Store
from capstan_operator.cluster.supervisor_client import SupervisorClient
from capstan_operator.cluster.work_queue import ObjectKey, Priority
from capstan_operator.metrics import Metrics

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
MAX_POLLS_PER_SECOND = 200.0
MAX_AT_ONCE = 64
MAX_SILENT_AT_ONCE = 32
"""Of these, for supervisors that did not answer of late: each costs 3 s, and a rack that died must not use up all."""
PROGRESS_SECONDS = 1.0
"""Steps alone wake a job at most this often."""
FIRST_LOOK_SECONDS = 5.0
HINT_SECONDS = 0.2
"""A pod is asked because of its hints at most this often."""
PEERS_SECONDS = 1.0
"""The pods of a job are asked because a trainer ended at most this often."""


class Poller:
    """`run` polls until cancelled. A term begins when this replica becomes the leader."""

    def __init__(
        self,
        store: Store,
        supervisors: SupervisorClient,
        wake: Callable[[ObjectKey, Priority], None],
        token_of: Callable[[str], str],
        metrics: Metrics,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._store = store
        self._supervisors = supervisors
        self._wake = wake
        self._token_of = token_of
        self._metrics = metrics
        self._interval_seconds = interval_seconds
        self._due: list[tuple[float, str]] = []
        """Heap of (when, pod uid); an entry that `_next` does not confirm is void."""
        self._next: dict[str, float] = {}
        """When each known pod is asked next, by uid."""
        self._known: dict[str, PodRecord] = {}
        """The pods to ask, by uid."""
        self._unseen: dict[str, set[str]] = {}
        """Pods that ran when the term began and were not asked yet, by job uid."""
        self._term_began = float("-inf")
        self._asking: set[str] = set()
        self._progress_woke: dict[ObjectKey, float] = {}
        self._peers_asked: dict[ObjectKey, float] = {}
        self._hinted: dict[str, float] = {}
        """By pod uid."""
        self._free = asyncio.Semaphore(MAX_AT_ONCE)
        self._urgent: asyncio.Queue[PodRecord] = asyncio.Queue()

    def begin_term(self) -> None:
        """Note who runs now: a job is not judged before its running pods were asked once."""
        self._term_began = time.monotonic()
        self._store.forget_silence()
        self._unseen = {}
        for record in self._store.pods_to_ask():
            self._unseen.setdefault(record.job_uid, set()).add(record.pod.uid)

    def has_looked(self, job_uid: str) -> bool:
        """Whether each pod of the job that ran when the term began was asked, or five seconds are over."""
        return job_uid not in self._unseen or time.monotonic() - self._term_began > FIRST_LOOK_SECONDS

    def take_hint(self, key: ObjectKey, pod_name: str) -> None:
        """This pod says that it has news: ask it at once, but not more than five times a second."""
        record = self._store.pod_to_ask(key, pod_name)
        now = time.monotonic()
        if record is None or now - self._hinted.get(record.pod.uid, float("-inf")) < HINT_SECONDS:
            return
        self._hinted[record.pod.uid] = now
        self._urgent.put_nowait(record)

    def ask_now(self, key: ObjectKey, pod_name: str) -> None:
        """Ask this pod at once: it was just told something."""
        record = self._store.pod_to_ask(key, pod_name)
        if record is not None:
            self._urgent.put_nowait(record)

    async def run(self) -> None:
        # A run that was cancelled may have left requests that never began, and with them what they held.
        self._asking.clear()
        self._free = asyncio.Semaphore(MAX_AT_ONCE)
        self._urgent = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_schedule(group))
            group.create_task(self._run_urgent(group))

    async def _run_urgent(self, group: asyncio.TaskGroup) -> None:
        while True:
            record = await self._urgent.get()
            await self._start(group, record)

    async def _run_schedule(self, group: asyncio.TaskGroup) -> None:
        """Every pod about every two seconds; with more than 400 pods each less often, 200 a second in all."""
        refreshed_at = float("-inf")
        while True:
            now = time.monotonic()
            if now - refreshed_at >= max(0.25, len(self._known) / 5000):  # 10,000 pods cost 15 ms
                self._refresh(now)
                refreshed_at = now
            if not self._due or self._due[0][0] > now:
                await asyncio.sleep(0.05 if not self._due else min(0.05, self._due[0][0] - now))
                continue
            due, uid = heapq.heappop(self._due)
            if self._next.get(uid) != due:
                continue
            interval = max(self._interval_seconds, len(self._known) / MAX_POLLS_PER_SECOND)
            self._schedule(uid, now + interval * random.uniform(0.9, 1.1))  # nosec B311  # jitter
            if self._store.is_silent(uid) and sum(map(self._store.is_silent, self._asking)) >= MAX_SILENT_AT_ONCE:
                self._schedule(uid, now + self._interval_seconds)
                continue
            await self._start(group, self._known[uid])

    def _schedule(self, uid: str, due: float) -> None:
        self._next[uid] = due
        heapq.heappush(self._due, (due, uid))

    def _refresh(self, now: float) -> None:
        """Take in new pods, which are asked at once, and drop those that are gone."""
        wanted = {record.pod.uid: record for record in self._store.pods_to_ask()}
        for uid in self._known.keys() - wanted.keys():
            self._next.pop(uid, None)
            self._hinted.pop(uid, None)
        for uid in wanted.keys() - self._known.keys():
            self._schedule(uid, now)
        self._known = wanted
        if len(self._due) > 2 * len(wanted) + 64:
            self._due = [(due, uid) for uid, due in self._next.items()]
            heapq.heapify(self._due)
        for times in (self._progress_woke, self._peers_asked):
            for key in [key for key in times if self._store.jobs.get(key) is None]:
                del times[key]

    async def _start(self, group: asyncio.TaskGroup, record: PodRecord) -> None:
        if record.pod.uid in self._asking:
            return
        await self._free.acquire()
        self._asking.add(record.pod.uid)
        group.create_task(self._ask(record))

    async def _ask(self, record: PodRecord) -> None:
        try:
            await self._fetch(record)
        finally:
            self._asking.discard(record.pod.uid)
            self._free.release()
            self._mark_seen(record)

    async def _fetch(self, record: PodRecord) -> None:
        pod = record.pod
        if pod.ip is None:
            return
        asked_at = time.time()
        try:
            state = await self._supervisors.fetch_state(
                pod.ip, self._token_of(record.job_uid), pod=pod.name, job_uid=record.job_uid
            )
        except SupervisorError as error:
            self._metrics.supervisor_polls.labels("error").inc()
            logger.debug("no answer from pod %s: %s", pod.name, error, extra={"job": str(record.key)})
            if self._store.put_silence(record, asked_at, refuses_token=isinstance(error, TokenRefused)):
                self._wake(record.key, Priority.NORMAL)
            if pod.uid in self._next:
                # However many pods there are: before a verdict, one that fell silent is asked more than once.
                self._schedule(pod.uid, time.monotonic() + self._interval_seconds)
            return
        is_news = self._store.put_state(record, state, time.time())
        self._metrics.supervisor_polls.labels("news" if is_news else "progress").inc()
        now = time.monotonic()
        if is_news:
            if state.exit is not None:
                self._ask_peers(record, now)
            self._wake(record.key, Priority.REPAIR if state.exit is not None else Priority.NORMAL)
        elif now - self._progress_woke.get(record.key, float("-inf")) >= PROGRESS_SECONDS:
            self._progress_woke[record.key] = now
            self._wake(record.key, Priority.NORMAL)

    def _ask_peers(self, record: PodRecord, now: float) -> None:
        """A trainer that ended may only have lost a peer. One that fell silent is known as such `ASK_SECONDS` from now,
        which is before a rank with a broken collective would be blamed in its stead."""
        if now - self._peers_asked.get(record.key, float("-inf")) < PEERS_SECONDS:
            return
        self._peers_asked[record.key] = now
        for other in self._known.values():
            if other.job_uid == record.job_uid and other.pod.uid != record.pod.uid:
                self._urgent.put_nowait(other)

    def _mark_seen(self, record: PodRecord) -> None:
        unseen = self._unseen.get(record.job_uid)
        if unseen is not None:
            unseen.discard(record.pod.uid)
            if not unseen:
                del self._unseen[record.job_uid]
                self._wake(record.key, Priority.NORMAL)
