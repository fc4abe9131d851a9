"""The three patch formats of the Kubernetes API as pure functions."""

from typing import Any


class PatchError(ValueError):
    """A patch that cannot be applied: `code` is the HTTP status (400 or 422), `message` is for the Status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def apply_json_patch(doc: Any, ops: Any) -> Any:
    """A new document: `doc` with RFC 6902 `ops` applied. Raises PatchError (422 when an op fails, 400 when malformed)."""
    raise NotImplementedError


def apply_merge_patch(doc: Any, patch: Any) -> Any:
    """A new document: `doc` with the RFC 7386 `patch` applied."""
    raise NotImplementedError


def apply_strategic_merge_patch(doc: dict[str, Any], patch: dict[str, Any], kind_key: str) -> dict[str, Any]:
    """A new document: `doc` of built-in kind `kind_key` (v1/Pod, apps/v1/Deployment) with `patch` applied."""
    raise NotImplementedError
