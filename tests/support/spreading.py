"""Runs of which several devices hold one replica."""

from typing import Any

from capstan_runtime.contract.parallelism import Parallelism

Document = dict[str, Any]
LEFT_TO_CHANCE: Document = {
    "tied": True,
    "alibi": {},
    "layerScale": {},
    "dropout": {"rate": 0.1},
    "temporalDropout": {"rate": 0.1},
    "stochasticDepth": {"rate": 0.2},
    "adaptiveDropout": {},
}
"""Components of a decoder that draw random bits, or have parameters that no axis cuts."""


def spread(parallelism: Document | None, devices: int = 1) -> Document:
    """The part of a run that spreads its model, where each worker has so many devices."""
    if parallelism is None:
        return {}
    a_replica = Parallelism.parse(parallelism).devices
    return {"parallelism": parallelism, "workersPerReplica": max(1, a_replica // devices)}
