"""spec.gateway: which Gateways of the Gateway API lead to an InferenceService, and under which host names."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Record, cel

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
Hostname = Annotated[
    str,
    Field(
        max_length=253,
        pattern=rf"^(\*\.)?{LABEL}(\.{LABEL})*$",
        description="A host name; `*.` in front stands for one or more labels.",
    ),
]


class GatewayParent(Record):
    """A Gateway, or one of its listeners."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the Gateway.")]
    namespace: Annotated[
        str | None,
        Field(
            max_length=63,
            pattern=rf"^{LABEL}$",
            description="Its namespace; its listeners must allow routes from here. Left out: that of this object.",
        ),
    ] = None
    section_name: Annotated[
        str | None, Field(min_length=1, max_length=253, description="Its listener. Left out: all that match.")
    ] = None

    def may_be(self, other: "GatewayParent") -> bool:
        """Both may mean the same listener."""
        is_same = (self.name, self.namespace) == (other.name, other.namespace)
        return is_same and (None in (self.section_name, other.section_name) or self.section_name == other.section_name)


# CEL knows absent fields only by has(), and keeps the word namespace for itself.
_MAY_BE = (
    "other.name == one.name"
    " && (has(other.__namespace__) ? other.__namespace__ : '')"
    " == (has(one.__namespace__) ? one.__namespace__ : '')"
    " && (!has(other.sectionName) || !has(one.sectionName) || other.sectionName == one.sectionName)"
)
_DISTINCT = "parentRefs: the same Gateway stands there twice; name another listener in sectionName of each"


class Gateway(Record):
    """Gateways that lead to the service by an HTTPRoute, which divides a canary's traffic by exact weights."""

    model_config = cel(
        (f"self.parentRefs.all(one, self.parentRefs.exists_one(other, {_MAY_BE}))", f"'{_DISTINCT}'"),
    )

    parent_refs: Annotated[
        list[GatewayParent], Field(min_length=1, max_length=16, description="Gateways that take its requests.")
    ]
    hostnames: Annotated[
        list[Hostname], Field(max_length=16, description="Host names it has there. Left out: those of the listeners.")
    ] = []

    @model_validator(mode="after")
    def _parents_are_distinct(self) -> Self:
        if any(sum(one.may_be(other) for other in self.parent_refs) != 1 for one in self.parent_refs):
            raise ValueError(_DISTINCT)
        return self
