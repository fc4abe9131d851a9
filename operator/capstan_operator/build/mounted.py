"""What a pod cannot start without, and does not bring along."""

from collections.abc import Iterator, Mapping
from typing import Any

from capstan_operator.build.pod_patch import RUN_VOLUME

_NAMES = {
    "configMap": ("ConfigMap", ("name",)),
    "secret": ("Secret", ("secretName", "name")),
    "persistentVolumeClaim": ("claim", ("claimName",)),
    "hostPath": ("hostPath", ("path",)),
}
"""Word for a kind of volume, and the fields of which one names the object."""
_MADE = frozenset({"", "DirectoryOrCreate", "FileOrCreate"})
"""Types of a hostPath that nodes make where it is missing."""


def mounted_objects(template: Mapping[str, Any]) -> list[str]:
    """`ConfigMap code`, `hostPath /data`: what the volumes of a pod of `template` need to be there, in their order and
    once each; not the run's own Secret, which the operator makes. What a podPatch has misspelled is passed over."""
    return list(dict.fromkeys(_mounted(template["spec"].get("volumes"))))


def _mounted(volumes: Any) -> Iterator[str]:
    for volume in volumes if isinstance(volumes, list) else []:
        if not isinstance(volume, dict) or volume.get("name") == RUN_VOLUME:
            continue
        projected = volume.get("projected")
        if isinstance(projected, dict):
            yield from _mounted(projected.get("sources"))
        for kind, (word, fields) in _NAMES.items():
            source = volume.get(kind)
            if not isinstance(source, dict) or source.get("optional") or _is_made(kind, source):
                continue
            yield from (f"{word} {source[field]}" for field in fields if field in source)


def _is_made(kind: str, source: Mapping[str, Any]) -> bool:
    return kind == "hostPath" and (source.get("type") or "") in _MADE
