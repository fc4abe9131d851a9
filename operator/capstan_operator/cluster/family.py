"""The children of one kind that InferenceServices or Benchmarks have, as a reflector shows them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from capstan_operator.cluster.objects import Tombstones, is_newer
from capstan_operator.cluster.pods import Metadata
from capstan_operator.cluster.replicas import Address
from capstan_operator.cluster.work_queue import ObjectKey


class _HasMetadata(Protocol):
    metadata: Metadata


Item = TypeVar("Item", bound=_HasMetadata)
Seen = TypeVar("Seen")
"""What a decision knows of a child."""


@dataclass(frozen=True, slots=True)
class Child(Generic[Seen]):
    """One child at one version."""

    owner: ObjectKey
    """The InferenceService or Benchmark that it is for."""
    owner_uid: str | None
    """Its uid; None: it is not the direct owner, as of a service's pod."""
    name: str
    version: str
    created_at: float
    address: Address | None
    """Of a pod that has one; None for all else."""
    seen: Seen


class Family(Generic[Item, Seen]):
    """A reflector's sink: the children of one kind. `read` makes a child of what the API server shows, or None of what
    is no child of ours, or none any more. `wake(key)` is called when something about an owner's children changed."""

    def __init__(self, read: Callable[[Item], Child[Seen] | None], wake: Callable[[ObjectKey], None]) -> None:
        self._read = read
        self._wake = wake
        self._children: dict[str, Child[Seen]] = {}
        """By uid."""
        self._uids: dict[ObjectKey, set[str]] = {}
        """By owner."""
        self._gone = Tombstones()

    def __len__(self) -> int:
        return len(self._children)

    def of(self, owner: ObjectKey) -> list[Child[Seen]]:
        """Sorted by name."""
        return sorted((self._children[uid] for uid in self._uids.get(owner, ())), key=lambda child: child.name)

    def owners(self) -> list[ObjectKey]:
        """All that have children, whether they are there themselves or not."""
        return list(self._uids)

    def put(self, item: Item) -> None:
        """Take in what was seen; an older version than the known one is dropped."""
        uid = item.metadata.uid
        known = self._children.get(uid)
        version = item.metadata.resource_version
        if self._gone.covers(uid, version) or (known is not None and not is_newer(version, known.version)):
            return
        child = self._read(item)
        if child is None:
            self._drop(uid)
            return
        self._children[uid] = child
        self._uids.setdefault(child.owner, set()).add(uid)
        if known is None or (known.seen, known.address) != (child.seen, child.address):
            self._wake(child.owner)

    def remove(self, item: Item) -> None:
        self._gone.add(item.metadata.uid, item.metadata.resource_version)
        self._drop(item.metadata.uid)

    def replace(self, listed: Iterable[Item], version: str) -> None:
        """Make the children equal to a complete list at resource version `version`. What is newer stays."""
        listed = list(listed)
        present = {item.metadata.uid for item in listed}
        for uid in [
            uid for uid, child in self._children.items() if uid not in present and not is_newer(child.version, version)
        ]:
            self._drop(uid)
        for item in listed:
            self.put(item)

    def clear(self) -> None:
        """The kind is not served any more, so there are none."""
        for uid in list(self._children):
            self._drop(uid)

    def _drop(self, uid: str) -> None:
        child = self._children.pop(uid, None)
        if child is None:
            return
        self._uids[child.owner].discard(uid)
        if not self._uids[child.owner]:
            del self._uids[child.owner]
        self._wake(child.owner)
