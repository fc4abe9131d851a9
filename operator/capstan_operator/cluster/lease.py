"""Leader election on a Lease: one replica acts, the others keep their caches hot and wait.

The same times as everywhere in Kubernetes: a lease lasts 15 s, is renewed every 2 s, and its holder stops writing when
it could not renew it for 10 s, so at least 5 s before anyone else may act. A holder that stops on purpose gives the
lease back, and the next one acts within about 2 s. Clocks of two machines are never compared: a standby measures by its
own clock how long the lease has not changed.
"""

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import LEASE_NAME, LEASES
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.trail import Cause, because
from capstan_operator.metrics import Metrics

logger = logging.getLogger(__name__)

RELEASE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds; each must be well below the one before it."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


class Elector:
    """`run` keeps trying to hold the lease. `leading` is set while this replica may write, `standing_by` otherwise."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        identity: str,
        metrics: Metrics,
        times: LeaseTimes | None = None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._times = times or LeaseTimes()
        self._lease: dict[str, Any] | None = None
        """As last seen; None before the first look or when there is none."""
        self._changed_at = 0.0
        """When the lease was last seen to change, by the loop's clock."""
        self._renewed_at = float("-inf")
        """When the newest successful renewal was *begun*, by the loop's clock."""
        self.leading = asyncio.Event()
        self.standing_by = asyncio.Event()
        self.standing_by.set()
        metrics.leader.set_function(lambda: float(self.leading.is_set()))

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            wait = self._times.retry
            if self.leading.is_set():
                wait = min(wait, max(0.0, self._renewed_at + self._times.renew_deadline - began))
            try:
                # An answer that comes after the deadline is no renewal: stop before asking for longer.
                async with asyncio.timeout(self._seconds_to_deadline(began)):
                    await self._acquire_or_renew(began)
            except (ApiError, TimeoutError) as error:
                log = logger.warning if self.leading.is_set() else logger.info
                log("lease %s/%s: %s", self._namespace, LEASE_NAME, error or "no answer in time")
                self._lease = None if isinstance(error, ApiError) and error.is_not_found else self._lease
            self._settle(loop.time())
            next_try = began + wait * random.uniform(0.9, 1.0)  # nosec B311  # jitter
            await asyncio.sleep(max(0.05, min(next_try, self._runs_out_at(began)) - loop.time()))

    async def release(self) -> None:
        """Give the lease back, so that the next replica need not wait for it to run out. Errors are only logged."""
        if not self.leading.is_set():
            return
        self._stand_by()
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._give_back()
        except (ApiError, TimeoutError) as error:
            logger.warning("the lease could not be given back and will run out by itself: %s", error)

    async def _give_back(self) -> None:
        """A renewal that was interrupted may still have been carried out: then the first write meets a conflict."""
        now = asyncio.get_running_loop().time()
        try:
            await self._write(holder="", duration=1, began=now)
        except ApiError as error:
            if not error.is_conflict:
                raise
            await self._look(now)
            if self._holder() == self._identity:
                await self._write(holder="", duration=1, began=now)

    def _seconds_to_deadline(self, now: float) -> float:
        if not self.leading.is_set():
            return self._times.renew_deadline
        return max(0.05, self._renewed_at + self._times.renew_deadline - now)

    async def _acquire_or_renew(self, began: float) -> None:
        """Renew without looking while we hold it: a lease that changed hands answers with a conflict."""
        if not self.leading.is_set() and not await self._is_free(began):
            return
        try:
            await self._write(holder=self._identity, duration=self._times.duration, began=began)
        except ApiError as error:
            if not error.is_conflict and not error.is_already_exists:
                raise
            await self._look(began)
            if self._holder() != self._identity and self.leading.is_set():
                logger.warning("lease taken by %s", self._holder() or "nobody")
                self._stand_by()
            return
        self._renewed_at = began

    async def _is_free(self, now: float) -> bool:
        await self._look(now)
        if self._lease is None or self._holder() in ("", self._identity):
            return True
        return now > self._changed_at + self._lease_seconds(self._lease)

    def _runs_out_at(self, now: float) -> float:
        """When another holder's lease, as last seen, will have run out: by the loop's clock; endless if it has."""
        if self.leading.is_set() or self._lease is None:
            return float("inf")
        runs_out_at = self._changed_at + self._lease_seconds(self._lease)
        return runs_out_at + 0.01 if runs_out_at >= now else float("inf")

    def _lease_seconds(self, lease: dict[str, Any]) -> float:
        return float(lease["spec"].get("leaseDurationSeconds") or self._times.duration)

    async def _look(self, now: float) -> None:
        """Fetch the lease; note when it changed."""
        try:
            lease = orjson.loads(await self._client.get(LEASES, self._namespace, LEASE_NAME))
            lease["spec"] = lease.get("spec") or {}  # one made by hand may have none
        except ApiError as error:
            if not error.is_not_found:
                raise
            lease = None
        if lease is None or self._lease is None or lease["spec"] != self._lease["spec"]:
            self._changed_at = now
        self._lease = lease

    async def _write(self, *, holder: str, duration: float, began: float) -> None:
        """Create or replace the lease; its resourceVersion makes sure that only one of two replicas succeeds."""
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        lease = self._lease or {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE_NAME, "namespace": self._namespace},
            "spec": {"leaseTransitions": 0, "acquireTime": now},
        }
        spec = dict(lease["spec"])
        if holder and holder != spec.get("holderIdentity"):
            spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        # Whole seconds are all the API can store.
        spec |= {"holderIdentity": holder, "renewTime": now, "leaseDurationSeconds": max(1, round(duration))}
        body = orjson.dumps(lease | {"spec": spec})
        is_renewal = self.leading.is_set() and holder == self._identity
        with because(None if is_renewal else Cause("LeaderElection", f"the lease goes to {holder or 'nobody'}")):
            if self._lease is None:
                answer = await self._client.create(LEASES, self._namespace, body, lane=Lane.SYSTEM)
            else:
                answer = await self._client.replace(LEASES, self._namespace, LEASE_NAME, body, lane=Lane.SYSTEM)
        self._lease = orjson.loads(answer)
        self._changed_at = began

    def _holder(self) -> str:
        return str(self._lease["spec"].get("holderIdentity") or "") if self._lease is not None else ""

    def _settle(self, now: float) -> None:
        may_lead = self._holder() == self._identity and now - self._renewed_at < self._times.renew_deadline
        if may_lead and not self.leading.is_set():
            logger.info("leading as %s", self._identity)
            self.standing_by.clear()
            self.leading.set()
        elif not may_lead and self.leading.is_set():
            logger.error("lost the lease: not renewed for %.0f s", now - self._renewed_at)
            self._stand_by()

    def _stand_by(self) -> None:
        self.leading.clear()
        self.standing_by.set()
