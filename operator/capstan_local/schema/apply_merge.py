"""What an object becomes when a configuration is applied on top of it."""

from collections.abc import Iterator
from typing import Any

from capstan_local.schema import field_sets
from capstan_local.schema.type_schema import TypeSchema


def merge(live: Any, applied: Any, schema: TypeSchema) -> Any:
    """`applied` on top of `live`: maps and keyed lists item by item, everything else replaced by what is applied."""
    if field_sets.is_granular(schema, live) and field_sets.is_granular(schema, applied):
        result = dict(live)
        for key, value in applied.items():
            result[key] = merge(live[key], value, schema.field(key)) if key in live else value
        return result
    if field_sets.is_keyed(schema, applied):
        return _merge_items(live if field_sets.is_keyed(schema, live) else [], applied, schema)
    return applied


def _merge_items(live: list[Any], applied: list[Any], schema: TypeSchema) -> list[Any]:
    """Items of both. Applied items keep the applied order; a live item keeps its place between them."""
    live_items = {field_sets.item_step(item, schema): item for item in live}
    applied_items: dict[str, Any] = {}
    for index, item in enumerate(applied):
        step = field_sets.item_step(item, schema)
        if step in applied_items:
            path = next(field_sets.paths({step: {}}))
            raise ValueError(f"element {index}: duplicate entries for key {path}")
        applied_items[step] = item
    item_schema = schema.item
    return [
        merge(live_items[step], applied_items[step], item_schema)
        if step in live_items and step in applied_items
        else (applied_items if step in applied_items else live_items)[step]
        for step in _merged_order(list(live_items), list(applied_items))
    ]


def _merged_order(live: list[str], applied: list[str]) -> Iterator[str]:
    in_applied, in_live = set(applied), set(live)
    shared = iter([step for step in applied if step in in_live])
    next_shared = next(shared, None)
    done: set[str] = set()
    left = right = 0
    while left < len(live) or right < len(applied):
        if left < len(live) and right < len(applied):
            if live[left] == applied[right]:
                done.add(live[left])
                yield live[left]
                left, right, next_shared = left + 1, right + 1, next(shared, None)
                continue
            if live[left] in in_applied and next_shared is not None and live[left] != next_shared:
                left += 1  # the applied order wants another shared item first; this one comes with its turn there
                continue
        if left < len(live):
            if live[left] not in in_applied:
                yield live[left]
                left += 1
                continue
            if live[left] in done:
                left += 1
        if right < len(applied):
            step = applied[right]
            done.add(step)
            yield step
            right += 1
            if step == next_shared:
                next_shared = next(shared, None)
