"""What all children of an InferenceService have in common: names, labels, and an owner."""

from typing import Any

from capstan_operator.api.meta import LABEL_MANAGED_BY, LABEL_REVISION, LABEL_SERVICE, MANAGED_BY
from capstan_operator.build.children import LABEL_LENGTH, Owner, owner_reference

HASH_DIGITS = 8
LONGEST_SERVICE_NAME = LABEL_LENGTH - HASH_DIGITS - 1
"""Characters an InferenceService may have in its name, so that `<name>-<hash>` is a label value and a host name."""
SERVICE_NAME = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""Names of Services are DNS labels of RFC 1035: unlike those of other objects they begin with a letter."""


def proven_name(service: str) -> str:
    """Of the Service that always leads to the proven revision. Shorter than a revision's name, so it fits."""
    return f"{service}-proven"


def metadata(owner: Owner, name: str, revision: str | None = None) -> dict[str, Any]:
    """Of a child; `revision` None: it belongs to none, but to the service for good."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": service_labels(owner) | ({LABEL_REVISION: revision} if revision else {}),
        "ownerReferences": [owner_reference(owner, "InferenceService")],
    }


def service_labels(owner: Owner) -> dict[str, str]:
    """Labels of every child."""
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_SERVICE: owner.name}


def selector(owner: Owner, revision: str | None) -> dict[str, str]:
    """Selects the pods of one revision; None: of all."""
    return {LABEL_SERVICE: owner.name} | ({LABEL_REVISION: revision} if revision else {})
