"""Schemas of the built-in kinds, derived from the installed `kubernetes` package and cached as JSON."""

from pathlib import Path
from typing import Any


def use_cache(folder: Path) -> None:
    """From now on keep the derived schemas in `folder`, in a file named by the package's version."""
    raise NotImplementedError


def unknown_fields(kind_key: str, obj: dict[str, Any]) -> list[str]:
    """The complaints of fieldValidation=Strict: `unknown field "spec.foo"`, in document order."""
    raise NotImplementedError


def decoding_error(kind_key: str, obj: dict[str, Any]) -> str | None:
    """Kubernetes' message for the first value of the wrong type; None when all decode."""
    raise NotImplementedError


def open_api_definitions() -> dict[str, Any]:
    """OpenAPI v2 definitions of all built-in types by their Kubernetes name (io.k8s.api.core.v1.Pod)."""
    raise NotImplementedError
