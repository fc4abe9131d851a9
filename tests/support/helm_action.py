"""Runs Helm's actions one after the other and prints their results as JSON: `helm_action.py ORDER`.

A process of its own, because the library brings a whole Go runtime with its threads and signal handlers.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import helm_sdkpy


def run(config: helm_sdkpy.Configuration, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": asyncio.run(getattr(helm_sdkpy, action)(config).run(**arguments))}
    except helm_sdkpy.HelmError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    configuration = helm_sdkpy.Configuration(namespace=order["namespace"], kubeconfig=order["kubeconfig"])
    print(json.dumps([run(configuration, action, arguments) for action, arguments in order["steps"]]))
