"""Events are stored once, as core/v1, and served as core/v1 and events.k8s.io/v1."""

from typing import Any

Object = dict[str, Any]

_TO_V1 = {
    "involvedObject": "regarding",
    "message": "note",
    "reportingComponent": "reportingController",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
}
_TO_CORE = {new: old for old, new in _TO_V1.items()}


def core_event_to_v1(event: Object) -> Object:
    """The events.k8s.io/v1 form of a core/v1 event."""
    renamed = {_TO_V1.get(field, field): value for field, value in event.items()}
    renamed["apiVersion"] = "events.k8s.io/v1"
    return renamed


def v1_event_to_core(event: Object) -> Object:
    """The core/v1 form of an events.k8s.io/v1 event."""
    renamed = {_TO_CORE.get(field, field): value for field, value in event.items()}
    renamed["apiVersion"] = "v1"
    return renamed
