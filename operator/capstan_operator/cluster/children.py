"""Writes the children of one job. A name that somebody else's object holds is an error, never an adoption."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import orjson

from capstan_operator.build.children import Owner
from capstan_operator.cluster.errors import ApiError, Predecessor, Stranger
from capstan_operator.cluster.kinds import APPLICABLE, PODS, SECRETS, Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.pods import Metadata, decode_pod
from capstan_operator.cluster.store import Store
from capstan_operator.decide.types import Manifest, PodDeletion

MAX_AT_ONCE_PER_JOB = 64
"""A job of thousands of pods must not have all the turns."""

T = TypeVar("T")


class _Object(msgspec.Struct, gc=False):
    metadata: Metadata


_decode_object = msgspec.json.Decoder(_Object).decode


class Children:
    """The pods and other children of all jobs; answers go into the store, so that the next look sees what was done."""

    def __init__(self, client: KubeClient, store: Store) -> None:
        self._client = client
        self._store = store

    async def apply(self, manifests: Sequence[Manifest], job: Owner, *, lane: Lane) -> None:
        """Server-side apply. Raises Stranger or Predecessor before touching an object that is not this job's."""
        for manifest in manifests:
            resource = APPLICABLE[manifest["apiVersion"], manifest["kind"]]
            namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
            metadata = await self._look(resource, namespace, name, lane)
            if metadata is None:
                await self._client.apply(resource, namespace, name, manifest, lane=lane, force=False)
                continue
            _check_owner(resource, metadata, job)
            try:
                await self._client.apply(resource, namespace, name, manifest, lane=lane, force=True)
            except ApiError as error:
                if not (error.is_invalid and manifest.get("immutable")):
                    raise
                # Made with another key of the operator's: no pod that starts from it would ever listen to us. Pods
                # that run have read theirs.
                await _ignore_gone(
                    self._client.delete(resource, namespace, name, uid=metadata.uid, grace_seconds=None, lane=lane)
                )
                await self._client.apply(resource, namespace, name, manifest, lane=lane, force=False)

    async def create_pods(self, manifests: Sequence[Manifest], job: Owner, *, lane: Lane) -> None:
        """Create all pods, many at once. One that exists is adopted if it is this job's; else Stranger or Predecessor
        is raised, after the others were tried."""
        await _for_all(manifests, lambda manifest: self._create_pod(manifest, job, lane))

    async def delete_pods(self, namespace: str, deletions: Sequence[PodDeletion], *, lane: Lane) -> None:
        """Delete exactly these pods. Gone already, or replaced by another of the same name, is fine."""
        await _for_all(deletions, lambda deletion: self._delete_pod(namespace, deletion, lane))

    async def delete_secrets(self, names: Iterable[str], job: Owner, *, lane: Lane) -> None:
        """Delete these Secrets if they are this job's; a stranger's stays, and one that is gone is fine."""
        for name in names:
            metadata = await self._look(SECRETS, job.namespace, name, lane)
            if metadata is None or not _is_owned(metadata, job):
                continue
            await _ignore_gone(
                self._client.delete(SECRETS, job.namespace, name, uid=metadata.uid, grace_seconds=None, lane=lane)
            )

    async def _create_pod(self, manifest: Manifest, job: Owner, lane: Lane) -> None:
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        try:
            answer = await self._client.create(PODS, namespace, orjson.dumps(manifest), lane=lane)
        except ApiError as error:
            if not error.is_already_exists:
                raise
            # Ours if an earlier request was carried out but its answer was lost.
            answer = await self._client.get(PODS, namespace, name, lane=lane)
            _check_owner(PODS, decode_pod(answer).metadata, job)
        self._store.put(decode_pod(answer))

    async def _delete_pod(self, namespace: str, deletion: PodDeletion, lane: Lane) -> None:
        answer = await _ignore_gone(
            self._client.delete(
                PODS, namespace, deletion.name, uid=deletion.uid, grace_seconds=deletion.grace_seconds, lane=lane
            )
        )
        if answer is None or b'"deletionTimestamp"' not in answer:
            return  # the watch will say that it is gone
        self._store.put(decode_pod(answer))

    async def _look(self, resource: Resource, namespace: str, name: str, lane: Lane) -> Metadata | None:
        """The object's metadata, None when there is none. An empty dry-run patch instead of a GET: the operator needs
        the right to patch anyway, and so needs none to read other people's Secrets."""
        try:
            answer = await self._client.merge_patch(resource, namespace, name, {}, lane=lane, dry_run=True)
        except ApiError as error:
            if error.is_not_found:
                return None
            raise
        return _decode_object(answer).metadata


def _is_owned(metadata: Metadata, job: Owner) -> bool:
    owner = metadata.controller()
    return owner is not None and owner.uid == job.uid


def _check_owner(resource: Resource, metadata: Metadata, job: Owner) -> None:
    if _is_owned(metadata, job):
        return
    owner = metadata.controller()
    if owner is not None and (owner.kind, owner.name) == ("TrainingJob", job.name):
        raise Predecessor(resource.kind, metadata.namespace, metadata.name)
    whose = f"it belongs to {owner.kind} {owner.name}, uid {owner.uid}" if owner is not None else "it has no owner"
    raise Stranger(resource.kind, metadata.namespace, metadata.name, whose)


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
    free = asyncio.Semaphore(MAX_AT_ONCE_PER_JOB)

    async def act_in_turn(item: T) -> None:
        async with free:
            await act(item)

    results = await asyncio.gather(*map(act_in_turn, items), return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((error for error in errors if isinstance(error, Stranger)), errors[0])
