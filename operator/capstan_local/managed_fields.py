"""Who owns which field: server-side apply, and the managedFields that every other write records."""

from typing import Any

from capstan_local.type_schema import TypeSchema

Object = dict[str, Any]


class ApplyConflict(Exception):
    """Fields that other managers own: `causes` are (manager, field_path, message) in Kubernetes' words (HTTP 409)."""

    def __init__(self, causes: list[tuple[str, str, str]]) -> None:
        super().__init__(causes)
        self.causes = causes


def server_side_apply(
    live: Object | None,
    applied: Object,
    *,
    manager: str,
    force: bool,
    subresource: str | None,
    api_version: str,
    schema: TypeSchema,
    now: str,
) -> Object:
    """The object after `manager` applied `applied` on `live` (None: create). Raises ApplyConflict unless `force`."""
    raise NotImplementedError


def record_update(
    old: Object | None,
    new: Object,
    *,
    manager: str,
    operation: str = "Update",
    subresource: str | None,
    api_version: str,
    schema: TypeSchema,
    now: str,
) -> Object:
    """`new` with metadata.managedFields as after a create (`old` None), replace or patch by `manager`."""
    raise NotImplementedError
