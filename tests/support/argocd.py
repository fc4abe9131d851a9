"""What Argo CD makes of our objects, by the Lua that it runs out of the chart's ConfigMap."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import lupa
import yaml

CONFIG_MAP = Path(__file__).parents[2] / "charts/capstan/argocd/argocd-cm.yaml"


def health_of(document: dict[str, Any]) -> dict[str, str]:
    """`status` (the word that Argo CD shows) and `message`."""
    runtime = lupa.LuaRuntime(unpack_returned_tuples=True)
    runtime.globals().obj = runtime.table_from(document, recursive=True)
    return dict(runtime.execute(_scripts()[f"resource.customizations.health.capstan.dev_{document['kind']}"]))


@lru_cache
def _scripts() -> dict[str, str]:
    scripts: dict[str, str] = yaml.safe_load(CONFIG_MAP.read_text())["data"]
    return scripts
