"""Which namespaces allow injected faults. Kept by a watch of the labelled ones; only with --allow-chaos."""

from collections.abc import Callable, Iterable

import msgspec

from capstan_operator.api.meta import CHAOS_ALLOWED, LABEL_CHAOS
from capstan_operator.cluster.pods import Metadata

SELECTOR = f"{LABEL_CHAOS}={CHAOS_ALLOWED}"


class Namespace(msgspec.Struct, gc=False):
    """What is decoded of a namespace."""

    metadata: Metadata


class ChaosNamespaces:
    """A reflector's sink. `on_change(namespace)` is called after a namespace gave or took back its consent."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._names: set[str] = set()

    def allows(self, namespace: str) -> bool:
        """Whether the namespace carries the label, as far as was heard."""
        return namespace in self._names

    def put(self, item: Namespace) -> None:
        is_labelled = (item.metadata.labels or {}).get(LABEL_CHAOS) == CHAOS_ALLOWED
        self._change(self._names | {item.metadata.name} if is_labelled else self._names - {item.metadata.name})

    def remove(self, item: Namespace) -> None:
        # Also what a watch with a selector says of one whose label was taken off.
        self._change(self._names - {item.metadata.name})

    def replace(self, listed: Iterable[Namespace], version: str) -> None:
        self._change({item.metadata.name for item in listed})

    def _change(self, names: set[str]) -> None:
        changed = names ^ self._names
        self._names = names
        for name in sorted(changed):
            self._on_change(name)
