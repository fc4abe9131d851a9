"""meta.k8s.io/v1 Tables: what `kubectl get` prints."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

Object = dict[str, Any]


def to_table(resource: Any, objects: Iterable[Object], now: datetime) -> Object:
    """A Table of `objects`. `resource` has `.kind`, `.group` and `.printer_columns` (a CRD version's
    additionalPrinterColumns; None for built-in kinds). The caller sets metadata.resourceVersion and continue."""
    raise NotImplementedError
