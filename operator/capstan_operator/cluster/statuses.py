"""Statuses of our objects: read as leniently as is safe, and written by one patch, or by none."""

import logging
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from capstan_operator.cluster.kinds import Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.objects import ObjectRecord, Objects
from capstan_operator.metrics import Metrics
from capstan_runtime.contract.base import Record

logger = logging.getLogger(__name__)

Status = TypeVar("Status", bound=Record)


def read_status(document: dict[str, Any], model: type[Status]) -> tuple[Status, list[str]]:
    """The status, and the fields left out because their values cannot be read; unknown fields are passed over.

    A status that somebody edited, or that a newer operator wrote, must not cost the rest of it: the fence above all.
    """
    dropped: list[str] = []
    while True:
        try:
            return model.model_validate(document, by_alias=True, by_name=False, extra="ignore"), dropped
        except ValidationError as error:
            fields = {str(flaw["loc"][0]) for flaw in error.errors(include_url=False) if flaw["loc"]}
            if not fields & document.keys():
                raise
            dropped += sorted(fields)
            document = {name: value for name, value in document.items() if name not in fields}


def read_known_status(record: ObjectRecord, model: type[Status], metrics: Metrics) -> Status:
    """The status of what the store knows; fields that cannot be read are counted and logged."""
    status, dropped = read_status(orjson.loads(record.status), model)
    if dropped:
        metrics.bad_documents.labels("status").inc()
        logger.warning("status fields that cannot be read: %s", ", ".join(dropped), extra=record.key.log_fields())
    return status


class StatusWriter:
    """Writes the statuses of one kind; the answers go to `objects`, so that the next look sees what was written."""

    def __init__(self, client: KubeClient, resource: Resource, objects: Objects, metrics: Metrics) -> None:
        self._client = client
        self._resource = resource
        self._objects = objects
        self._metrics = metrics

    async def write(self, record: ObjectRecord, old: Record, new: Record, lane: Lane) -> bool:
        """One merge patch, or none when nothing differs. Returns whether there was one. Raises ApiError.

        The version that was looked at is a precondition: an object of the same name made anew, or changed meanwhile by
        its user or by another leader, is looked at again instead of being given somebody else's status.
        """
        before, after = old.document(), new.document()
        if before == after:
            self._metrics.status_writes.labels("suppressed").inc()
            return False
        patch = {"metadata": {"resourceVersion": record.version}, "status": replacing_patch(before, after)}
        namespace, name = record.key.namespace, record.key.name
        answer = await self._client.merge_patch(self._resource, namespace, name, patch, lane=lane, subresource="status")
        self._metrics.status_writes.labels("written").inc()
        self._objects.put(orjson.loads(answer))
        return True


def replacing_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that makes `old` exactly `new`: all of `new`, and null for what it lacks."""
    patch: dict[str, Any] = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        is_nested = isinstance(value, dict) and isinstance(before, dict)
        patch[name] = replacing_patch(old[name], value) if is_nested else value
    return patch
