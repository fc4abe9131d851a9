"""Runs one Helm action and prints its result as JSON: `helm_action.py ACTION JSON`.

A process of its own, because the library brings a whole Go runtime with its threads and signal handlers.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import helm_sdkpy


def run(action: str, kubeconfig: str, namespace: str, arguments: dict[str, Any]) -> Any:
    config = helm_sdkpy.Configuration(namespace=namespace, kubeconfig=kubeconfig)
    return asyncio.run(getattr(helm_sdkpy, action)(config).run(**arguments))


if __name__ == "__main__":
    try:
        print(json.dumps({"result": run(sys.argv[1], **json.loads(sys.argv[2]))}))
    except helm_sdkpy.HelmError as error:
        print(json.dumps({"error": str(error)}))
