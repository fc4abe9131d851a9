"""Real Helm, from Python."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
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
        """`{"result": …}`, or `{"error": Helm's words}`."""
        (answer,) = self.answers([(action, arguments)])
        return answer

    def answers(self, steps: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Of each step, in one process: its start costs as much as an upgrade."""
        order = {"kubeconfig": str(self.plane.kubeconfig), "namespace": self.namespace, "steps": steps}
        script = Path(__file__).with_name("helm_action.py")
        done = subprocess.run(
            [sys.executable, script, json.dumps(order)],
            capture_output=True,
            text=True,
            timeout=120 * len(steps),
            env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return answers
