"""Quantities in the canonical form in which Kubernetes stores them: 0.5 -> 500m, 1024Ki -> 1Mi, 1500m -> 1500m."""

import re
from decimal import ROUND_CEILING, Decimal
from typing import Any

from capstan_local.quantity import parse_quantity

Object = dict[str, Any]

_BINARY = ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki")
_DECIMAL = (("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("", 0), ("m", -3), ("u", -6), ("n", -9))


def canonical(value: Any) -> Any:
    """The canonical string of a quantity; what is none is returned as it is, for validation to name."""
    text = str(value)
    try:
        amount = parse_quantity(text)
    except (ValueError, ArithmeticError):
        return value
    amount = amount.quantize(Decimal("1e-9"), rounding=ROUND_CEILING)
    if amount == 0:
        return "0"
    if text.endswith("i"):
        return _binary(amount)
    exponent = re.search(r"[eE]([+-]?\d+)$", text)
    return _decimal(amount, with_suffix=not exponent)


def _binary(amount: Decimal) -> str:
    for power, unit in zip(range(len(_BINARY), 0, -1), _BINARY, strict=True):
        scale = Decimal(1024) ** power
        if amount % scale == 0:
            return f"{int(amount / scale)}{unit}"
    return _decimal(amount, with_suffix=True)


def _decimal(amount: Decimal, *, with_suffix: bool) -> str:
    for unit, power in _DECIMAL:
        scaled = amount.scaleb(-power)
        if scaled == scaled.to_integral_value():
            if with_suffix or power == 0:
                return f"{int(scaled)}{unit}"
            return f"{int(scaled)}e{power}"
    return f"{int(amount.scaleb(9).to_integral_value(rounding=ROUND_CEILING))}n"


def canonicalise(amounts: Any) -> None:
    """Rewrite a map of quantities in place."""
    if isinstance(amounts, dict):
        for name, value in amounts.items():
            amounts[name] = canonical(value)
