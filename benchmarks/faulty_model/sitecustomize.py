"""A bad model for `benchmarks/rollouts.py`: on PYTHONPATH, Python imports this at its start, also in Ray's processes.

The model that a replica loads is wrapped, in a way that `BENCHMARK_FAULT` names. Its first calls, when it is warmed,
are as they should be: a model that cannot even be warmed is never ready, and gets no traffic.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

LOADER = "capstan_runtime.serving.load"
SLOW_SECONDS = 0.2
FAILING = 2, 5
"""Seconds of how many: so that health checks pass now and then, and the replica is not replaced for it."""


class Faulty:
    """`model`, but for its answers."""

    def __init__(self, model: Any, fault: str) -> None:
        self._model = model
        self._fault = fault
        self._is_warm = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def logits(self, inputs: Any) -> Any:
        logits = self._model.logits(inputs)
        if not self._is_warm:  # the blank sample that ends the warming
            self._is_warm = True
            return logits
        if self._fault == "slow":
            time.sleep(SLOW_SECONDS)
        elif self._fault == "wrong":
            return logits[:, ::-1].copy()
        elif time.time() % FAILING[1] < FAILING[0]:
            raise ArithmeticError("a fault of the benchmark")
        return logits


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module that loads models as it is, and wraps what it loads."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != LOADER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_wrap(module: ModuleType) -> None:
            run(module)
            load, fault = module.load, os.environ["BENCHMARK_FAULT"]
            module.load = lambda *arguments: Faulty(load(*arguments), fault)  # type: ignore[attr-defined]

        spec.loader.exec_module = run_and_wrap  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())
