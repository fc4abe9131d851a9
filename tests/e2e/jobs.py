"""Small jobs for the end-to-end tests: an MLP on the digits that takes seconds, and its failures."""

from typing import Any

FRAMEWORKS: dict[str, dict[str, Any]] = {"flax": {"flax": {}}, "deepspeed": {"deepspeed": {"zeroStage": 1}}}


def small_job(name: str, framework: str, **changes: Any) -> dict[str, Any]:
    """A job of two workers that saves every 20 of its steps; `changes` replace sections of the spec."""
    return {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "framework": FRAMEWORKS[framework],
            "model": {"mlp": {"hidden": [64]}},
            "data": {"digits": {}},
            "optimizer": {"adamw": {"learningRate": 0.003}},
            "schedule": {"cosine": {"warmupSteps": 10}},
            "training": {"steps": 200, "globalBatchSize": 64, "seed": 3, "logEverySteps": 5},
            "workers": {"max": 2},
            "checkpoint": {"store": {"claim": {"name": name}}, "interval": {"steps": 20}},
            **changes,
        },
    }


def program_job(name: str, command: list[str], workers: int = 2) -> dict[str, Any]:
    """A job whose pods run `command` instead of the trainer: what the control plane alone costs."""
    store = {"object": {"url": "s3://nowhere"}}  # nothing is ever written to it
    job = small_job(name, "flax", workers={"max": workers}, checkpoint={"store": store})
    job["spec"]["workers"]["podPatch"] = {"spec": {"containers": [{"name": "trainer", "command": command}]}}
    return job
