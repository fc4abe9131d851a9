"""The Secrets of a run's trackers, as files in its own pods: rank 0, which alone tells trackers, may be any of them."""

from typing import Any

from capstan_runtime.contract.tracking import Tracking

TRACKER_VOLUME = "tracker-secrets"
TRACKER_FOLDER = "/capstan/tracker-secrets"
KEYS = {"wandb": ("api-key",), "mlflow": ("username", "password", "token")}
"""Of each tracker's Secret; each becomes a file `<tracker>/<key>`, and nothing else of the Secret does."""


def tracker_secrets(tracking: Tracking | None) -> dict[str, str]:
    """Name of the Secret of each tracker that has one."""
    if tracking is None:
        return {}
    named = {"wandb": tracking.wandb, "mlflow": tracking.mlflow}
    return {tracker: plan.secret_name for tracker, plan in named.items() if plan is not None and plan.secret_name}


def tracker_volume(tracking: Tracking | None) -> dict[str, Any]:
    """The volume of all of them. A Secret that is missing stops no pod: the run would be held up by its tracker."""
    sources = [
        {
            "secret": {
                "name": name,
                "optional": True,
                "items": [{"key": key, "path": f"{tracker}/{key}"} for key in KEYS[tracker]],
            }
        }
        for tracker, name in tracker_secrets(tracking).items()
    ]
    return {"name": TRACKER_VOLUME, "projected": {"sources": sources, "defaultMode": 0o440}}
