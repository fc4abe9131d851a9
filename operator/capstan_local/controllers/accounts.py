"""Every namespace has a ServiceAccount `default`."""

from capstan_local.client import NAMESPACES, SERVICE_ACCOUNTS, ApiError, Key
from capstan_local.controllers.queue import KeyQueue
from capstan_local.controllers.shared import Shared, is_deleting

DEFAULT = "default"


class ServiceAccountController:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._queue = KeyQueue("service account", self._reconcile)
        shared.listen(NAMESPACES, lambda _change, obj, _old: self._queue.wake(("", obj["metadata"]["name"])))
        shared.listen(SERVICE_ACCOUNTS, lambda _change, obj, _old: self._queue.wake(("", obj["metadata"]["namespace"])))

    async def run(self) -> None:
        await self._queue.run()

    async def _reconcile(self, key: Key) -> float | None:
        namespace = self._shared.objects(NAMESPACES).get(key)
        if namespace is None or is_deleting(namespace) or (key[1], DEFAULT) in self._shared.objects(SERVICE_ACCOUNTS):
            return None
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": DEFAULT, "namespace": key[1]},
        }
        try:
            await self._shared.client.create(SERVICE_ACCOUNTS, account)
        except ApiError as error:
            if error.code not in (403, 404, 409):  # the namespace is on its way out, or somebody was quicker
                raise
        return None
