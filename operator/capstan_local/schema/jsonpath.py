"""The JSONPath of CRD columns and selectable fields: names, indexes, slices, wildcards and filters by comparison."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

Step = Callable[[Any], Iterator[Any]]

_TOKEN: Final = re.compile(
    r"""
      \.\.(?P<deep>[^.\[\]]+)
    | \.(?P<name>(?:\\.|[^.\[\]\\])+|\*)
    | \[(?P<quote>['"])(?P<quoted>(?:\\.|(?!(?P=quote)).)*)(?P=quote)\]
    | \[(?P<index>-?\d+)\]
    | \[(?P<start>-?\d*):(?P<stop>-?\d*)\]
    | \[(?P<star>\*)\]
    | \[\?\(\s*@(?P<left>(?:\.[^\s=!<>)]+|\[[^\]]+\])+)\s*
        (?:(?P<operator>==|!=|<=|>=|<|>)\s*(?P<right>"[^"]*"|'[^']*'|[^\s)]+)\s*)?\)\]
    """,
    re.VERBOSE,
)
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}


def find(path: str, value: Any) -> list[Any]:
    """Everything `path` (.status.conditions[?(@.type=="Ready")].status) leads to; [] where something is missing.

    Raises ValueError, naming the path and the place, for a path outside of the subset.
    """
    found = [value]
    for step in _compile(path):
        found = [result for item in found for result in step(item)]
    return found


@cache
def _compile(path: str) -> tuple[Step, ...]:
    text = path.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    if text and text[0] not in ".[":
        text = f".{text}"
    steps, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(
                f"JSON path {path!r}: cannot read {text[at:]!r}; use .name, ['name'], [n], [*] or [?(@.a==b)]"
            )
        steps.append(_step(match))
        at = match.end()
    return tuple(steps)


def _step(match: re.Match[str]) -> Step:
    if match["deep"] is not None:
        return lambda value: _descend(value, match["deep"])
    if match["index"] is not None:
        return lambda value: _item(value, int(match["index"]))
    if match["star"] is not None or match["name"] == "*":
        return _every
    if match["start"] is not None:
        bounds = slice(*(int(text) if text else None for text in (match["start"], match["stop"])))
        return lambda value: iter(value[bounds] if isinstance(value, list) else ())
    if match["left"] is not None:
        return _filter(match["left"], match["operator"], match["right"])
    name = re.sub(r"\\(.)", r"\1", match["name"] if match["name"] is not None else match["quoted"])
    return lambda value: iter([value[name]] if isinstance(value, dict) and name in value else ())


def _item(value: Any, index: int) -> Iterator[Any]:
    if isinstance(value, list) and -len(value) <= index < len(value):
        yield value[index]


def _every(value: Any) -> Iterator[Any]:
    if isinstance(value, list | dict):
        yield from value if isinstance(value, list) else value.values()


def _descend(value: Any, name: str) -> Iterator[Any]:
    if isinstance(value, dict) and name in value:
        yield value[name]
    for item in _every(value):
        yield from _descend(item, name)


def _filter(left: str, operator: str | None, right: str | None) -> Step:
    wanted = _literal(right) if right is not None else None

    def matches(item: Any) -> bool:
        found = find(left, item)
        if operator is None or not found:
            return bool(found)
        # As in kubectl, values of different types are never equal or ordered.
        is_comparable = isinstance(found[0], str) == isinstance(wanted, str)
        return is_comparable and _COMPARE[operator](found[0], wanted)

    return lambda value: (item for item in _every(value) if matches(item))


def _literal(text: str) -> Any:
    if text[0] in "\"'":
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else text
