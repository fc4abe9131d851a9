"""How a type merges: which of its fields are atomic, sets, keyed lists or granular maps. One tree per kind."""

from typing import Any, Literal, Protocol

Shape = Literal["scalar", "struct", "map", "atomic", "set", "list_map", "deduced"]


class TypeSchema(Protocol):
    """One node of the tree. `keys` and `item` say how a list merges; `field` descends into a struct or map."""

    @property
    def shape(self) -> Shape: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def item(self) -> "TypeSchema": ...
    def field(self, name: str) -> "TypeSchema": ...


def from_crd(open_api_schema: dict[str, Any]) -> TypeSchema:
    """The tree of a custom resource's openAPIV3Schema."""
    raise NotImplementedError


def for_builtin(kind_key: str) -> TypeSchema:
    """The tree of a built-in kind such as v1/Pod. Raises KeyError for kinds that are not built in."""
    raise NotImplementedError
