"""Structural schemas of custom resources: defaulting, pruning and validation as kube-apiserver does them."""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One cause of a 422: `path` (spec.workers.min), `reason` (FieldValueInvalid, ...), `message` in Kubernetes' words."""

    path: str
    reason: str
    message: str


class SchemaError(ValueError):
    """A schema a CRD must not be installed with; `problems` are whole lines, each naming its path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Structural:
    """A compiled schema."""

    def default(self, obj: Object) -> Object:
        """`obj` itself, with the schema's static defaults filled in."""
        raise NotImplementedError

    def prune(self, obj: Object) -> tuple[Object, list[str]]:
        """`obj` without the fields the schema does not know, and the paths of what was removed."""
        raise NotImplementedError

    def validate(self, obj: Object, old: Object | None = None) -> list[FieldError]:
        """Everything wrong with `obj`, in schema order; `old` is the stored object of an update."""
        raise NotImplementedError


def compile_schema(open_api_v3_schema: Object) -> Structural:
    """A checker for objects of this schema. Raises SchemaError when a rule does not compile."""
    raise NotImplementedError


def check_structural(schema: Object) -> list[str]:
    """Why kube-apiserver would refuse a CRD with this schema, one line each; empty: it would take it."""
    raise NotImplementedError
