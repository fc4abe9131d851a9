"""A run on an MLflow server, found again by every attempt of the job by a tag.

What a server has been told it cannot be made to forget: points of a timeline that was abandoned stay, and the metric
`fence` at their steps tells them apart.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from capstan_runtime.contract import tracking as contract
from capstan_runtime.tracking.sink import Point, RunFacts, flat

if TYPE_CHECKING:
    from mlflow.entities import Run

_SECONDS = "10"
"""For one request. MLflow waits for 120 s, and would still wait when the run has ended."""
_RETRIES = "2"
_MOST_METRICS = 1000
_MOST_PARAMETERS = 100
_LONGEST_PARAMETER = 6000
"""What MLflow's REST API takes in one request."""
_UID = "capstan.uid"
_KEYS = ("username", "password", "token")
"""Of the Secret."""


class MlflowSink:
    """Raises ImportError where the image has no MLflow, and MLflow's errors."""

    def __init__(self, plan: contract.MLflow, facts: RunFacts, secret: Path | None) -> None:
        """`secret` is the folder of the Secret's keys; None: the server asks for none."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _SECONDS)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
        os.environ.update(_read(secret) if secret is not None else {})
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=plan.uri)
        self._fence = facts.fence
        experiment = self._experiment(plan.experiment)
        run = self._find(experiment, facts.uid) or self._create(experiment, facts)
        self._run: str = run.info.run_id
        self._client.update_run(self._run, status="RUNNING")
        self._tag({"capstan.fence": str(facts.fence), "capstan.world": str(facts.world)})
        if facts.resumed_from is not None:
            self._tag({"capstan.resumedFrom": facts.resumed_from})

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another job was quicker
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _find(self, experiment: str, uid: str) -> "Run | None":
        found = self._client.search_runs([experiment], filter_string=f"tags.`{_UID}` = '{uid}'", max_results=1)
        return found[0] if found else None

    def _create(self, experiment: str, facts: RunFacts) -> "Run":
        from mlflow.entities import Param

        tags = {_UID: facts.uid, "capstan.job": facts.job, "capstan.store": facts.store}
        run = self._client.create_run(experiment, run_name=facts.job, tags=tags)
        leaves = flat(facts.config)
        parameters = [Param(name, str(value)[:_LONGEST_PARAMETER]) for name, value in leaves.items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(run.info.run_id, params=parameters[first : first + _MOST_PARAMETERS])
        return run

    def write(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(point.at * 1000), point.step)
            for point in points
            for name, value in {**point.values, "fence": float(self._fence)}.items()
        ]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[first : first + _MOST_METRICS])
        saved = [point for point in points if point.checkpoint is not None]
        if saved:
            self._tag({"capstan.checkpoint": saved[-1].checkpoint or "", "capstan.checkpointStep": str(saved[-1].step)})

    def _tag(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_tag(self._run, name, value)

    def close(self, is_finished: bool) -> None:
        if is_finished:
            self._client.set_terminated(self._run, "FINISHED")


def _read(secret: Path) -> dict[str, str]:
    """Variables of MLflow's client. Raises OSError where the Secret has no key that it knows."""
    found = {key: secret / key for key in _KEYS if (secret / key).exists()}
    if not found:
        raise OSError(f"the Secret of tracking.mlflow.secretName is missing, or has none of {', '.join(_KEYS)}")
    # MLflow's client takes them from nowhere else.
    return {f"MLFLOW_TRACKING_{key.upper()}": path.read_text().strip() for key, path in found.items()}
