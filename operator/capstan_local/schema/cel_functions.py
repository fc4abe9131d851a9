"""The functions that Kubernetes adds to CEL, beyond the standard extensions: lists, regular expressions, quantities."""

from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import re2
from cel_expr_python import cel

from capstan_local.quantity import parse_quantity

_ANY_LIST: Final = cel.Type.List(cel.Type.DYN)
_QUANTITY: Final = "quantity"


def _is_sorted(items: list[Any]) -> bool:
    return all(left <= right for left, right in pairwise(items))


def _least(items: list[Any]) -> Any:
    if not items:
        raise ValueError("min called on empty list")
    return min(items)


def _greatest(items: list[Any]) -> Any:
    if not items:
        raise ValueError("max called on empty list")
    return max(items)


def _index_of(items: list[Any], item: Any) -> int:
    return items.index(item) if item in items else -1


def _last_index_of(items: list[Any], item: Any) -> int:
    return len(items) - 1 - items[::-1].index(item) if item in items else -1


def _find(text: str, pattern: str) -> str:
    match = re2.search(pattern, text)
    return match.group(0) if match else ""


def _find_all(text: str, pattern: str) -> list[str]:
    return [match.group(0) for match in re2.finditer(pattern, text)]


def _find_some(text: str, pattern: str, limit: int) -> list[str]:
    found = _find_all(text, pattern)
    return found if limit < 0 else found[:limit]


def _quantity(text: str) -> dict[str, str]:
    """A quantity as a map with its exact value in plain digits, so that equal quantities are equal maps."""
    value = parse_quantity(text).normalize()
    return {_QUANTITY: f"{value:f}"}


def _is_quantity(text: str) -> bool:
    try:
        parse_quantity(text)
    except (ValueError, ArithmeticError):
        return False
    return True


def _amount(quantity: dict[str, str] | int) -> Decimal:
    return Decimal(quantity if isinstance(quantity, int) else quantity[_QUANTITY])


def _compare(left: Any, right: Any) -> int:
    a, b = _amount(left), _amount(right)
    return (a > b) - (a < b)


def _as_integer(quantity: Any) -> int:
    value = _amount(quantity)
    if value != int(value):
        raise ValueError("cannot convert value to integer")
    return int(value)


def _added(left: Any, right: Any) -> dict[str, str]:
    return _quantity(f"{_amount(left) + _amount(right):f}")


def _subtracted(left: Any, right: Any) -> dict[str, str]:
    return _quantity(f"{_amount(left) - _amount(right):f}")


def _declare(
    name: str, result: cel.Type, parameters: list[cel.Type], call: Callable[..., Any], *, is_member: bool = True
) -> cel.FunctionDecl:
    overload = cel.Overload(
        f"kubernetes_{name}_{len(parameters)}",
        return_type=result,
        parameters=parameters,
        is_member=is_member,
        impl=call,
    )
    return cel.FunctionDecl(name, [overload])


_T = cel.Type
_PAIR = [_T.DYN, _T.DYN]

FUNCTIONS: Final = [
    _declare("isSorted", _T.BOOL, [_ANY_LIST], _is_sorted),
    _declare("sum", _T.DYN, [_ANY_LIST], sum),
    _declare("min", _T.DYN, [_ANY_LIST], _least),
    _declare("max", _T.DYN, [_ANY_LIST], _greatest),
    _declare("indexOf", _T.INT, [_ANY_LIST, _T.DYN], _index_of),
    _declare("lastIndexOf", _T.INT, [_ANY_LIST, _T.DYN], _last_index_of),
    _declare("find", _T.STRING, [_T.STRING, _T.STRING], _find),
    cel.FunctionDecl(
        "findAll",
        [
            cel.Overload(
                "kubernetes_findAll_2",
                return_type=_T.List(_T.STRING),
                parameters=[_T.STRING, _T.STRING],
                is_member=True,
                impl=_find_all,
            ),
            cel.Overload(
                "kubernetes_findAll_3",
                return_type=_T.List(_T.STRING),
                parameters=[_T.STRING, _T.STRING, _T.INT],
                is_member=True,
                impl=_find_some,
            ),
        ],
    ),
    _declare("quantity", _T.DYN, [_T.STRING], _quantity, is_member=False),
    _declare("isQuantity", _T.BOOL, [_T.STRING], _is_quantity, is_member=False),
    _declare("isGreaterThan", _T.BOOL, _PAIR, lambda left, right: _compare(left, right) > 0),
    _declare("isLessThan", _T.BOOL, _PAIR, lambda left, right: _compare(left, right) < 0),
    _declare("compareTo", _T.INT, _PAIR, _compare),
    _declare("sign", _T.INT, [_T.DYN], lambda quantity: _compare(quantity, 0)),
    _declare("isInteger", _T.BOOL, [_T.DYN], lambda quantity: _amount(quantity) == int(_amount(quantity))),
    _declare("asInteger", _T.INT, [_T.DYN], _as_integer),
    _declare("asApproximateFloat", _T.DOUBLE, [_T.DYN], lambda quantity: float(_amount(quantity))),
    _declare("add", _T.DYN, _PAIR, _added),
    _declare("sub", _T.DYN, _PAIR, _subtracted),
]
"""Declarations with implementations."""
