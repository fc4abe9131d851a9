"""What is wrong with a CRD's schema, one line each, as kube-apiserver spells it."""

from collections.abc import Iterator

from capstan_local.schema.field_errors import field_error

Problems = Iterator[str]


def problem(path: str, reason: str, detail: str, value: str | None = None) -> str:
    return field_error(path, reason, detail, value).message


def child_path(path: str, name: str) -> str:
    return f"{path}.properties[{name}]"
