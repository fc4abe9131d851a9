"""The objects of one kind of ours, as the API server last showed them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from capstan_operator.cluster.pods import seconds_of
from capstan_operator.cluster.work_queue import ObjectKey

MAX_TOMBSTONES = 10_000


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """One object. Spec and status stay JSON until a pass needs them: a tenth of the memory of dicts."""

    key: ObjectKey
    uid: str
    version: str
    """resourceVersion."""
    generation: int
    created_at: float
    is_deleting: bool
    spec: bytes
    status: bytes
    is_finished: bool
    """`status.finishedAt` is there: of a TrainingJob, that it has ended."""

    def differs_from(self, other: "ObjectRecord") -> bool:
        """In anything a decision looks at; labels and annotations are the user's own business."""
        return (self.uid, self.generation, self.is_deleting, self.status) != (
            other.uid,
            other.generation,
            other.is_deleting,
            other.status,
        )


class Tombstones:
    """Uids of what was deleted, the newest ten thousand: an answer that was under way must not bring one back."""

    def __init__(self) -> None:
        self._uids: dict[str, None] = {}

    def __contains__(self, uid: str) -> bool:
        return uid in self._uids

    def add(self, uid: str) -> None:
        self._uids[uid] = None
        if len(self._uids) > MAX_TOMBSTONES:
            del self._uids[next(iter(self._uids))]


class Objects:
    """Each of `listeners` is called with the key after each change that matters, that an object is gone included."""

    def __init__(self, kind: str, listener: Callable[[ObjectKey], None]) -> None:
        self.kind = kind
        self.listeners = [listener]
        self._records: dict[ObjectKey, ObjectRecord] = {}
        self._gone = Tombstones()

    def __len__(self) -> int:
        return len(self._records)

    def key(self, namespace: str, name: str) -> ObjectKey:
        return ObjectKey(namespace, name, self.kind)

    def put(self, document: Mapping[str, Any]) -> None:
        """Take in an object as the API server sent it; an older version than the known one is dropped."""
        record = self._record(document)
        known = self._records.get(record.key)
        if record.uid in self._gone or (known is not None and not is_newer(record.version, known.version)):
            return
        self._records[record.key] = record
        if known is None or record.differs_from(known):
            self._tell(record.key)

    def remove(self, key: ObjectKey, uid: str) -> None:
        """The object with this uid is gone; a newer one of the same name stays."""
        self._gone.add(uid)
        known = self._records.get(key)
        if known is not None and known.uid == uid:
            del self._records[key]
            self._tell(key)

    def get(self, key: ObjectKey) -> ObjectRecord | None:
        return self._records.get(key)

    def all(self) -> list[ObjectRecord]:
        return list(self._records.values())

    def is_gone(self, uid: str) -> bool:
        """Whether the object with this uid is known to have been deleted."""
        return uid in self._gone

    def _tell(self, key: ObjectKey) -> None:
        for listener in self.listeners:
            listener(key)

    def _record(self, document: Mapping[str, Any]) -> ObjectRecord:
        metadata = document["metadata"]
        status = document.get("status") or {}
        return ObjectRecord(
            key=self.key(metadata["namespace"], metadata["name"]),
            uid=metadata["uid"],
            version=metadata["resourceVersion"],
            generation=metadata.get("generation", 1),
            created_at=seconds_of(metadata.get("creationTimestamp")),
            is_deleting="deletionTimestamp" in metadata,
            spec=_pack(document.get("spec") or {}),
            status=_pack(status),
            is_finished=bool(status.get("finishedAt")),
        )


def is_newer(version: str, known: str) -> bool:
    """Whether resource version `version` comes after `known`. Kubernetes declares them comparable numbers since 1.35,
    and they always were; one that is no number is taken for newer, so that nothing is ever stuck."""
    if version.isdecimal() and known.isdecimal():
        return int(version) > int(known)
    return version != known


def _pack(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON. Copied, because orjson hands out its work buffer, which is up to five times as long."""
    return bytes(memoryview(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)))
