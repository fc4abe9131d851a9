"""Whether a pod may see folders of its node. In most clusters only their administrators may say so."""

from typing import Any

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

    Raises PodPatchError where it has a hostPath and the operator does not allow any: whoever may create our objects
    would get with them what the namespace does not give.
    """
    if settings.allow_host_path:
        return template
    volumes = [one for one in template["spec"].get("volumes") or () if isinstance(one, dict) and one.get("hostPath")]
    if volumes:
        raise PodPatchError(sorted(f"{_field(one, store, kind)}: {one['hostPath']['path']}: {_FIX}" for one in volumes))
    return template


def _field(volume: dict[str, Any], store: str, kind: Patchable) -> str:
    name = volume["name"]
    return f"{store}.hostPath" if name == STORE_VOLUME else f"{kind.path}.spec.volumes[{name}].hostPath"
