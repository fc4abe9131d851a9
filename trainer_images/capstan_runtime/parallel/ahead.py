"""Work that goes on elsewhere, on a device, is begun before its result is needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Begun = TypeVar("Begun")


def begun_ahead(items: Iterable[Item], begin: Callable[[Item], Begun], depth: int) -> Iterator[Begun]:
    """`begin(item)` for every item, in order, each called when the one `depth` before it is handed out: so much and no
    more is under way at a time."""
    under_way: deque[Begun] = deque()
    for item in items:
        under_way.append(begin(item))
        if len(under_way) > depth:
            yield under_way.popleft()
    yield from under_way
