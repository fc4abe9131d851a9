"""spec.managedBy: which controller looks after an object, as in a Kubernetes Job and a JobSet."""

from typing import Annotated

from pydantic import Field

from capstan_operator.api.meta import GROUP

THIS_OPERATOR = f"{GROUP}/operator"
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"

ManagedBy = Annotated[
    str | None,
    Field(
        pattern=rf"^{_SUBDOMAIN}/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        max_length=63,
        description="Controller that looks after this object, as domain/name. Left out, or "
        f"{THIS_OPERATOR}: this operator. Anything else: this operator leaves it wholly alone, its status included. "
        "Cannot change.",
    ),
]

MANAGED_BY_RULE = (
    "has(self.managedBy) == has(oldSelf.managedBy) && (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)",
    "'managedBy: cannot change after the object was created; create one with a new name'",
)
"""CEL: two controllers that hand an object over to each other would both believe that its children are theirs."""


def is_ours(managed_by: object) -> bool:
    """Whether this operator looks after an object with this value of spec.managedBy; None: it is left out. What is no
    text is refused elsewhere, which somebody has to say."""
    return managed_by == THIS_OPERATOR or not isinstance(managed_by, str)
