"""Claims that are deleted while pods use them stay until the last of these pods is gone (pvc-protection)."""

from capstan_local.client import CLAIMS, PODS, ApiError, ChangeType, Key, Object, key_of
from capstan_local.controllers.queue import KeyQueue
from capstan_local.controllers.shared import Shared, claims_of, is_deleting

FINALIZER = "kubernetes.io/pvc-protection"
"""Put on every new claim by the API server's admission."""


class ClaimProtectionController:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._queue = KeyQueue("claim protection", self._reconcile)
        shared.listen(CLAIMS, lambda _change, claim, _old: self._queue.wake(key_of(claim)))
        shared.listen(PODS, self._note_pod)

    async def run(self) -> None:
        await self._queue.run()

    def _note_pod(self, change: ChangeType, pod: Object, _old: Object | None) -> None:
        if change == "DELETED":
            for name in claims_of(pod):
                self._queue.wake((pod["metadata"]["namespace"], name))

    async def _reconcile(self, key: Key) -> float | None:
        claim = self._shared.objects(CLAIMS).get(key)
        if claim is None:
            return None
        finalizers = claim["metadata"].get("finalizers") or []
        if not is_deleting(claim):
            if FINALIZER not in finalizers:
                await self._set_finalizers(claim, [*finalizers, FINALIZER])
        elif FINALIZER in finalizers and not await self._is_in_use(key):
            await self._set_finalizers(claim, [name for name in finalizers if name != FINALIZER])
        return None

    async def _is_in_use(self, key: Key) -> bool:
        # Asked anew: a pod bound a moment ago may not have come by the watch yet, and its data would be removed.
        pods, _ = await self._shared.client.list(PODS, key[0])
        return any(uses(pod, key[1]) for pod in pods)

    async def _set_finalizers(self, claim: Object, finalizers: list[str]) -> None:
        """Of the very version that was judged: 409 for a newer one, which comes by the watch."""
        metadata = {"finalizers": finalizers, "resourceVersion": claim["metadata"]["resourceVersion"]}
        try:
            await self._shared.client.patch(CLAIMS, key_of(claim), {"metadata": metadata})
        except ApiError as error:
            if error.code != 404:
                raise


def uses(pod: Object, claim: str) -> bool:
    """Whether the pod keeps the claim from going: it is on a node, and there until it is deleted, ended or not."""
    return bool(pod["spec"].get("nodeName")) and claim in claims_of(pod)
