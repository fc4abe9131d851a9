"""What a pod's volumes and variables are filled with, fetched from the API server when it is needed."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capstan_local.client import CLAIMS, CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS, VOLUMES, ApiError, Client, Object
from capstan_local.node.environment import ConfigError
from capstan_local.node.environment import referenced_configs as variable_configs
from capstan_local.node.volumes import Sources, is_generated
from capstan_local.node.volumes import referenced_configs as volume_configs

TOKEN_SECONDS = 3600
"""Life of a service account's token when the volume does not say; the kubelet's default."""
RENEW_AT = 0.8


class PodContent:
    """The sources of one pod."""

    def __init__(self, client: Client, pod: Object) -> None:
        self._client = client
        self._pod = pod
        self._namespace: str = pod["metadata"]["namespace"]
        self.changed = asyncio.Event()
        """Set when something that the pod refers to has changed."""
        self._references = _references(pod["spec"])
        self.sources = Sources(self.fetch_config, self.fetch_claim, self.fetch_token)

    def note_change(self, kind: str, name: str) -> None:
        """To be told of every change of a ConfigMap, Secret or PersistentVolumeClaim in the pod's namespace."""
        if self.refers_to(kind, name):
            self.changed.set()

    def refers_to(self, kind: str, name: str) -> bool:
        return (kind, name) in self._references

    @property
    def is_followed(self) -> bool:
        """Whether some volume has to be brought up to date while the pod runs."""
        return any(is_generated(volume) for volume in self._pod["spec"].get("volumes") or [])

    def renewal_seconds(self) -> float | None:
        """When the earliest of the mounted tokens is due for renewal; None without tokens."""
        lives = [
            part["serviceAccountToken"].get("expirationSeconds") or TOKEN_SECONDS
            for volume in self._pod["spec"].get("volumes") or []
            for part in (volume.get("projected") or {}).get("sources") or []
            if "serviceAccountToken" in part
        ]
        return RENEW_AT * min(lives) if lives else None

    async def fetch_config(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """The ConfigMap or Secret; None when there is none of that name."""
        try:
            return await self._client.get(CONFIG_MAPS if kind == "ConfigMap" else SECRETS, name, self._namespace)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def fetch_claim(self, name: str) -> Path:
        """The folder behind a PersistentVolumeClaim, made if missing."""
        claim = await self._get_claim(name)
        if (claim.get("status") or {}).get("phase") != "Bound":
            raise ConfigError(f'persistentvolumeclaim "{name}" is not bound')
        volume = await self._client.get(VOLUMES, claim["spec"]["volumeName"])
        source = volume["spec"].get("hostPath") or volume["spec"].get("local")
        if source is None:
            raise ConfigError(
                f'persistentvolumeclaim "{name}": volume {volume["metadata"]["name"]} is neither hostPath nor local, '
                "the kinds that a node without a mount table can use"
            )
        path = Path(source["path"])
        path.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # a local folder
        return path

    async def fetch_token(self, source: Mapping[str, Any]) -> str:
        """A fresh token of the pod's service account, bound to the pod."""
        metadata = self._pod["metadata"]
        spec: Object = {
            "audiences": [source["audience"]] if source.get("audience") else [],
            "expirationSeconds": source.get("expirationSeconds") or TOKEN_SECONDS,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]},
        }
        account = self._pod["spec"].get("serviceAccountName") or "default"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = SERVICE_ACCOUNTS.path(self._namespace, account, "token")
        answer = await self._client.request("POST", path, request)
        return str(answer["status"]["token"])

    async def _get_claim(self, name: str) -> Object:
        try:
            return await self._client.get(CLAIMS, name, self._namespace)
        except ApiError as error:
            if error.code == 404:
                raise ConfigError(f'persistentvolumeclaim "{name}" not found') from error
            raise


def _references(spec: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(kind, name) of everything that the pod's volumes and variables are taken from."""
    found: set[tuple[str, str]] = set()
    for volume in spec.get("volumes") or []:
        found |= volume_configs(volume)
        if "persistentVolumeClaim" in volume:
            found.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        found |= variable_configs(container)
    return found
