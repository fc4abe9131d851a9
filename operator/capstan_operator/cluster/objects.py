"""The objects of one kind of ours, as the API server last showed them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from capstan_operator.api.managed_by import is_ours
from capstan_operator.api.meta import ANNOTATION_PROFILE, LONGEST_PROFILE_REQUEST
from capstan_operator.api.queueing import LABEL_PRIORITY_CLASS, LABEL_QUEUE
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
    owner_uid: str | None = None
    """Of the object that manages it, such as a Benchmark; None: nobody does, a user made it."""
    is_ours: bool = True
    """False: `spec.managedBy` names another controller, and nothing is done about it here."""
    queue: str | None = None
    """The Kueue queue that its label names; None: it names none."""
    priority_class: str | None = None
    """The same of a WorkloadPriorityClass."""
    profile_request: str | None = None
    """What its annotation asks to be traced; None: it has none."""

    def differs_from(self, other: "ObjectRecord") -> bool:
        """In anything a decision looks at; all other labels and annotations are the user's own business."""
        return self._decisive() != other._decisive()

    def _decisive(self) -> tuple[object, ...]:
        asked = self.queue, self.priority_class, self.profile_request
        return self.uid, self.generation, self.is_deleting, self.status, asked


class Tombstones:
    """What was deleted, the newest ten thousand: an answer that was under way must not bring it back.

    A watch with a selector says DELETED, too, of what only lost a label. So an object is gone at a version: what was
    deleted has none that is newer, and one that is seen at a newer version is there.
    """

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}
        """By uid; empty: for good."""

    def covers(self, uid: str, version: str) -> bool:
        """Whether an object at this version is one that is gone."""
        gone_at = self._versions.get(uid)
        return gone_at is not None and not (gone_at and is_newer(version, gone_at))

    def add(self, uid: str, version: str = "") -> None:
        self._versions[uid] = version
        if len(self._versions) > MAX_TOMBSTONES:
            del self._versions[next(iter(self._versions))]


class Objects:
    """Each of `listeners` is called with the key after each change that matters, that an object is gone included."""

    def __init__(self, kind: str, listener: Callable[[ObjectKey], None]) -> None:
        self.kind = kind
        self.listeners = [listener]
        self._records: dict[ObjectKey, ObjectRecord] = {}
        self._gone = Tombstones()
        self._gone_of_others = Tombstones()
        """Of those, what another controller looked after, as far as it was seen before it went."""

    def __len__(self) -> int:
        return len(self._records)

    def key(self, namespace: str, name: str) -> ObjectKey:
        return ObjectKey(namespace, name, self.kind)

    def put(self, document: Mapping[str, Any]) -> None:
        """Take in an object as the API server sent it; an older version than the known one is dropped."""
        record = self._record(document)
        known = self._records.get(record.key)
        if self._gone.covers(record.uid, record.version) or (
            known is not None and not is_newer(record.version, known.version)
        ):
            return
        if known is not None and known.uid != record.uid:
            self._note_gone(known)
        self._records[record.key] = record
        if known is None or record.differs_from(known):
            self._tell(record.key)

    def remove(self, key: ObjectKey, uid: str) -> None:
        """The object with this uid is gone; a newer one of the same name stays."""
        self._gone.add(uid)
        known = self._records.get(key)
        if known is not None and known.uid == uid:
            del self._records[key]
            self._note_gone(known)
            self._tell(key)

    def get(self, key: ObjectKey) -> ObjectRecord | None:
        return self._records.get(key)

    def all(self) -> list[ObjectRecord]:
        return list(self._records.values())

    def is_gone(self, uid: str) -> bool:
        """Whether the object with this uid is known to have been deleted."""
        return self._gone.covers(uid, "")

    def was_of_another(self, uid: str) -> bool:
        """Whether the object with this uid is gone, and was another controller's: so are its children."""
        return self._gone_of_others.covers(uid, "")

    def _note_gone(self, record: ObjectRecord) -> None:
        if not record.is_ours:
            self._gone_of_others.add(record.uid)

    def _tell(self, key: ObjectKey) -> None:
        for listener in self.listeners:
            listener(key)

    def _record(self, document: Mapping[str, Any]) -> ObjectRecord:
        metadata = document["metadata"]
        status, labels = document.get("status") or {}, metadata.get("labels") or {}
        profile = (metadata.get("annotations") or {}).get(ANNOTATION_PROFILE) or None
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
            owner_uid=_controller(metadata),
            queue=labels.get(LABEL_QUEUE) or None,
            priority_class=labels.get(LABEL_PRIORITY_CLASS) or None,
            profile_request=profile and profile[:LONGEST_PROFILE_REQUEST],
            is_ours=is_ours((document.get("spec") or {}).get("managedBy")),
        )


def _controller(metadata: Mapping[str, Any]) -> str | None:
    owners = metadata.get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def is_newer(version: str, known: str) -> bool:
    """Whether resource version `version` comes after `known`. Kubernetes declares them comparable numbers since 1.35,
    and they always were; one that is no number is taken for newer, so that nothing is ever stuck."""
    if version.isdecimal() and known.isdecimal():
        return int(version) > int(known)
    return version != known


def _pack(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON. Copied, because orjson hands out its work buffer, which is up to five times as long."""
    return bytes(memoryview(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)))
