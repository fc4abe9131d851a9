"""Writes the children of our objects. A name that somebody else's object holds is an error, never an adoption."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import orjson

from capstan_operator.api.queueing import ANNOTATION_RETRIABLE
from capstan_operator.build.children import Owner
from capstan_operator.cluster.errors import ApiError, Predecessor, Stranger
from capstan_operator.cluster.kinds import APPLICABLE, CREATABLE, PODS, SERVICES, Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.pods import Metadata
from capstan_operator.cluster.replicas import decode_service
from capstan_operator.decide.types import GroupEnd, Manifest, PodDeletion

MAX_AT_ONCE = 64
"""Of one owner: a job of thousands of pods must not have all the turns."""

T = TypeVar("T")
TakeIn = Callable[[Resource, bytes], None]
"""Gets each object as the API server answered with it."""


class _Object(msgspec.Struct, gc=False):
    metadata: Metadata


_decode_object = msgspec.json.Decoder(_Object).decode


class Children:
    """Children of the objects of one kind; answers go to `take_in`, so that the next look sees what was done."""

    def __init__(self, client: KubeClient, owner_kind: str, take_in: TakeIn) -> None:
        self._client = client
        self._owner_kind = owner_kind
        self._take_in = take_in

    async def apply(self, manifests: Sequence[Manifest], owner: Owner, *, lane: Lane) -> None:
        """Server-side apply. Raises Stranger or Predecessor before touching an object that is not this owner's."""
        for manifest in manifests:
            resource = APPLICABLE[manifest["apiVersion"], manifest["kind"]]
            namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
            metadata = await self._look(resource, namespace, name, lane)
            if metadata is None:
                answer = await self._client.apply(resource, namespace, name, manifest, lane=lane, force=False)
                self._take_in(resource, answer)
                continue
            self._check_owner(resource, metadata, owner)
            try:
                answer = await self._client.apply(resource, namespace, name, manifest, lane=lane, force=True)
            except ApiError as error:
                if not (error.is_invalid and manifest.get("immutable")):
                    raise
                # Made with another key of the operator's: no pod that starts from it would ever listen to us. Pods
                # that run have read theirs.
                await _ignore_gone(
                    self._client.delete(resource, namespace, name, uid=metadata.uid, grace_seconds=None, lane=lane)
                )
                answer = await self._client.apply(resource, namespace, name, manifest, lane=lane, force=False)
            if resource is SERVICES:
                answer = await self._without_foreign_selectors(answer, manifest, lane)
            self._take_in(resource, answer)

    async def scale(
        self, resource: Resource, namespace: str, name: str, uid: str, replicas: int, *, lane: Lane
    ) -> None:
        """Make the object with this uid have so many replicas. Raises ApiError; a conflict if another has its name."""
        patch = {"metadata": {"uid": uid}, "spec": {"replicas": replicas}}
        try:
            answer = await self._client.merge_patch(resource, namespace, name, patch, lane=lane)
        except ApiError as error:
            if error.is_invalid and "metadata.uid" in error.message:
                # What kube-apiserver 1.20 makes of a uid that is not the object's; others say 409.
                raise ApiError(409, "Conflict", error.message) from error
            raise
        self._take_in(resource, answer)

    async def reclaim(
        self, resource: Resource, name: str, owner: Owner, labels: Mapping[str, str], *, lane: Lane
    ) -> None:
        """Give a child of this owner, if there is one, the labels back by which it is watched."""
        metadata = await self._look(resource, owner.namespace, name, lane)
        if metadata is None or not _is_owned(metadata, owner):
            return
        patch = {"metadata": {"uid": metadata.uid, "labels": dict(labels)}}
        self._take_in(resource, await self._client.merge_patch(resource, owner.namespace, name, patch, lane=lane))

    async def create(self, manifests: Sequence[Manifest], owner: Owner, *, lane: Lane) -> None:
        """Create all of them, many at once. One that exists is adopted if it is this owner's; else Stranger or
        Predecessor is raised, after the others were tried."""
        await _for_all(manifests, lambda manifest: self._create(manifest, owner, lane))

    async def delete_pods(self, namespace: str, deletions: Sequence[PodDeletion], *, lane: Lane) -> None:
        """Delete exactly these pods. Gone already, or replaced by another of the same name, is fine."""
        await _for_all(
            deletions,
            lambda one: self.delete_exactly(PODS, namespace, one.name, one.uid, one.grace_seconds, lane=lane),
        )

    async def end_groups(self, namespace: str, ends: Sequence[GroupEnd], *, lane: Lane) -> None:
        """Say on exactly these pods that none of their group is followed by another. Gone already is fine."""
        await _for_all(ends, lambda one: self._end_group(namespace, one, lane))

    async def _end_group(self, namespace: str, end: GroupEnd, lane: Lane) -> None:
        patch = {"metadata": {"uid": end.uid, "annotations": {ANNOTATION_RETRIABLE: "false"}}}
        answer = await _ignore_gone(self._client.merge_patch(PODS, namespace, end.name, patch, lane=lane))
        if answer is not None:
            self._take_in(PODS, answer)

    async def delete(self, resource: Resource, name: str, owner: Owner, *, lane: Lane) -> None:
        """Delete this object if it is this owner's; a stranger's stays, and one that is gone is fine."""
        metadata = await self._look(resource, owner.namespace, name, lane)
        if metadata is None or not _is_owned(metadata, owner):
            return
        await _ignore_gone(
            self._client.delete(resource, owner.namespace, name, uid=metadata.uid, grace_seconds=None, lane=lane)
        )

    async def delete_exactly(
        self, resource: Resource, namespace: str, name: str, uid: str, grace_seconds: int | None = None, *, lane: Lane
    ) -> None:
        """Delete the object with this uid. Gone already, or replaced by another of the same name, is fine."""
        answer = await _ignore_gone(
            self._client.delete(resource, namespace, name, uid=uid, grace_seconds=grace_seconds, lane=lane)
        )
        if answer is None or b'"deletionTimestamp"' not in answer:
            return  # the watch will say that it is gone
        self._take_in(resource, answer)

    async def _create(self, manifest: Manifest, owner: Owner, lane: Lane) -> None:
        resource = CREATABLE[manifest["apiVersion"], manifest["kind"]]
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        try:
            answer = await self._client.create(resource, namespace, orjson.dumps(manifest), lane=lane)
        except ApiError as error:
            if not error.is_already_exists:
                raise
            # Ours if an earlier request was carried out but its answer was lost.
            answer = await self._client.get(resource, namespace, name, lane=lane)
            self._check_owner(resource, _decode_object(answer).metadata, owner)
        self._take_in(resource, answer)

    async def _without_foreign_selectors(self, answer: bytes, manifest: Manifest, lane: Lane) -> bytes:
        """The Service with the selector of `manifest` and nothing else in it. A key that somebody else set stays when
        the rest is server-side applied, and would keep all other pods out."""
        wanted: dict[str, str] = manifest["spec"]["selector"]
        foreign = decode_service(answer).spec.selector.keys() - wanted.keys()
        if not foreign:
            return answer
        metadata = manifest["metadata"]
        patch = {"spec": {"selector": dict.fromkeys(foreign)}}
        return await self._client.merge_patch(SERVICES, metadata["namespace"], metadata["name"], patch, lane=lane)

    async def _look(self, resource: Resource, namespace: str, name: str, lane: Lane) -> Metadata | None:
        """The object's metadata, None when there is none. An empty dry-run patch instead of a GET: the right to patch
        is needed anyway, and does not grow a second one beside it."""
        try:
            answer = await self._client.merge_patch(resource, namespace, name, {}, lane=lane, dry_run=True)
        except ApiError as error:
            if error.is_not_found:
                return None
            raise
        return _decode_object(answer).metadata

    def _check_owner(self, resource: Resource, metadata: Metadata, owner: Owner) -> None:
        if _is_owned(metadata, owner):
            return
        holder = metadata.controller()
        if holder is not None and (holder.kind, holder.name) == (self._owner_kind, owner.name):
            raise Predecessor(resource.kind, metadata.namespace, metadata.name, self._owner_kind)
        whose = f"it belongs to {holder.kind} {holder.name}, uid {holder.uid}" if holder else "it has no owner"
        raise Stranger(resource.kind, metadata.namespace, metadata.name, whose, self._owner_kind)


def _is_owned(metadata: Metadata, owner: Owner) -> bool:
    holder = metadata.controller()
    return holder is not None and holder.uid == owner.uid


async def _ignore_gone(call: Coroutine[Any, Any, bytes]) -> bytes | None:
    try:
        return await call
    except ApiError as error:
        if error.is_not_found or error.is_conflict:
            return None
        raise


async def _for_all(items: Sequence[T], act: Callable[[T], Coroutine[Any, Any, None]]) -> None:
    """Act on all of them, a bounded number at once, even if some fail; then raise what is worst to know least of: a
    Stranger, which needs a person, before an error that may pass."""
    free = asyncio.Semaphore(MAX_AT_ONCE)

    async def act_in_turn(item: T) -> None:
        async with free:
            await act(item)

    results = await asyncio.gather(*map(act_in_turn, items), return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((error for error in errors if isinstance(error, Stranger)), errors[0])
