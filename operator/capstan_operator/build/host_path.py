"""Whether a pod may see folders of its node. In most clusters only their administrators may say so.

A guard, and not the boundary: what a patch can make of a pod beside that (privileged, hostPID) leads to the node, too,
and is for the admission of pods to refuse.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from capstan_operator.api.store import Store
from capstan_operator.build.pod_patch import Patchable, PodPatchError
from capstan_operator.build.store import STORE_VOLUME
from capstan_operator.observe import OperatorSettings

_FIX = (
    "folders of the nodes are not allowed here, since they hold other namespaces' data, too; use a claim or a bucket, "
    "or run the operator with --allow-host-path"
)


def checked_volumes(
    template: dict[str, Any], store: str, kind: Patchable, settings: OperatorSettings
) -> dict[str, Any]:
    """`template` ({metadata, spec} of a pod), whose store comes from the field `store`.

    Raises PodPatchError where it has a hostPath and the operator does not allow it: whoever may create our objects
    would get with them what the namespace does not give.
    """
    if settings.allow_host_path:
        return template
    volumes = [one for one in _items(template["spec"].get("volumes")) if one.get("hostPath")]
    refused = [one for one in volumes if _path(one) not in settings.host_paths]
    if refused:
        raise PodPatchError(sorted(f"{_field(one, store, kind)}: {_path(one)}: {_FIX}" for one in refused))
    return template


def allowing_all(settings: OperatorSettings) -> OperatorSettings:
    """`settings` for what has begun and asks for nothing else since: what is refused now was not then."""
    return settings if settings.allow_host_path else replace(settings, allow_host_path=True)


def allowing(settings: OperatorSettings, paths: Iterable[str]) -> OperatorSettings:
    """`settings` for what has begun with these folders of its nodes."""
    more = settings.host_paths.union(paths)
    return settings if settings.allow_host_path or more == settings.host_paths else replace(settings, host_paths=more)


def paths_of(store: Store) -> frozenset[str]:
    """The folder of the nodes that a store is, if it is one."""
    return frozenset({store.host_path.path} if store.host_path else ())


def _items(volumes: Any) -> list[dict[str, Any]]:
    return [one for one in volumes if isinstance(one, dict)] if isinstance(volumes, list) else []


def _path(volume: dict[str, Any]) -> str:
    """As it was written: what is no path is for the API server to refuse, where it comes to that."""
    source = volume["hostPath"]
    return str(source.get("path") if isinstance(source, dict) else source)


def _field(volume: dict[str, Any], store: str, kind: Patchable) -> str:
    name = volume.get("name")
    return f"{store}.hostPath" if name == STORE_VOLUME else f"{kind.path}.spec.volumes[{name}].hostPath"
