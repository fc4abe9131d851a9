"""Kubernetes quantities (`500m`, `1.5Gi`, `1e3`) as exact numbers, and sums of what pods ask for."""

import re
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

_FORM = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?")
_SCALE: dict[str | None, Decimal] = {
    None: Decimal(1),
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{unit: Decimal(1000) ** -power for power, unit in enumerate(("m", "u", "n"), 1)},
}


def parse_quantity(text: str | int | float) -> Decimal:
    """The exact value of a quantity; ValueError when it is none.

    >>> parse_quantity("1500m"), parse_quantity("2Ki"), parse_quantity(3)
    (Decimal('1.500'), Decimal('2048'), Decimal('3'))
    """
    match = _FORM.fullmatch(str(text))
    if match is None:
        raise ValueError(f"quantity {text!r} is not a number with an optional suffix such as m, k, Mi or Gi")
    number, suffix = match.groups()
    return Decimal(number) * _SCALE[suffix]


def divide_rounding_up(amount: str, divisor: str) -> int:
    """How a resourceFieldRef shows `amount` in units of `divisor`: whole units, rounded up."""
    unit = parse_quantity(divisor if divisor not in ("", "0") else "1")
    return int((parse_quantity(amount) / unit).to_integral_value(rounding=ROUND_CEILING))


def pod_requests(spec: Mapping[str, Any]) -> dict[str, Decimal]:
    """What a pod occupies, per resource: the sum over its containers, or more if one init container asks for more."""
    total = _sum(_container_requests(container) for container in spec["containers"])
    for container in spec.get("initContainers") or []:
        for name, amount in _container_requests(container).items():
            total[name] = max(total.get(name, Decimal(0)), amount)
    return _sum([total, _parsed(spec.get("overhead"))])


def _container_requests(container: Mapping[str, Any]) -> dict[str, Decimal]:
    """Requests; a limit without a request counts as its own request, as the API server's defaulting has it."""
    resources = container.get("resources") or {}
    return {**_parsed(resources.get("limits")), **_parsed(resources.get("requests"))}


def _parsed(amounts: Mapping[str, Any] | None) -> dict[str, Decimal]:
    return {name: parse_quantity(amount) for name, amount in (amounts or {}).items()}


def _sum(parts: Iterable[Mapping[str, Decimal]]) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, Decimal(0)) + amount
    return total
