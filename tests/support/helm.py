"""Real Helm, from Python."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.control_planes import ControlPlane

needs_helm = pytest.mark.skipif(
    importlib.util.find_spec("helm_sdkpy") is None,
    reason="helm-sdkpy is not installed (pip install --ignore-requires-python helm-sdkpy)",
)


class Helm:
    def __init__(self, plane: ControlPlane, namespace: str, home: Path) -> None:
        self.plane, self.namespace, self.home = plane, namespace, home

    def __call__(self, action: str, **arguments: Any) -> Any:
        """The action's result; AssertionError with Helm's words when it fails."""
        answer = self.answer(action, **arguments)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def answer(self, action: str, **arguments: Any) -> dict[str, Any]:
        order = {"kubeconfig": str(self.plane.kubeconfig), "namespace": self.namespace, "arguments": arguments}
        script = Path(__file__).with_name("helm_action.py")
        done = subprocess.run(
            [sys.executable, script, action, json.dumps(order)],
            capture_output=True,
            text=True,
            timeout=60,
            env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
