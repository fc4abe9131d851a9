"""A run on an MLflow server, found again by every attempt of the job by a tag.

What a server has been told it cannot be made to forget: points of a timeline that was abandoned stay, and the metric
`fence` at their steps tells them apart.
"""

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from capstan_runtime.contract import tracking as contract
from capstan_runtime.tracking.sink import Point, RunFacts, flat

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.utils.rest_utils import MlflowHostCreds

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
        from mlflow.entities import RunStatus
        from mlflow.store.tracking.rest_store import RestStore

        # MlflowClient takes an account from the process's variables alone, which every child and a user's own code see;
        # the store that it would make asks whom it is given.
        self._store = RestStore(_account(plan.uri, _read(secret) if secret is not None else None))
        self._fence = facts.fence
        experiment = self._experiment(plan.experiment)
        run = self._find(experiment, facts.uid) or self._create(experiment, facts)
        self._run: str = run.info.run_id
        self._store.update_run_info(self._run, RunStatus.RUNNING, None, None)
        self._tag({"capstan.fence": str(facts.fence), "capstan.world": str(facts.world)})
        if facts.resumed_from is not None:
            self._tag({"capstan.resumedFrom": facts.resumed_from})

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._store.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._store.create_experiment(name))
        except MlflowException:  # another job was quicker
            found = self._store.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _find(self, experiment: str, uid: str) -> "Run | None":
        from mlflow.entities import ViewType

        found = self._store.search_runs([experiment], f"tags.`{_UID}` = '{uid}'", ViewType.ACTIVE_ONLY, max_results=1)
        return found[0] if found else None

    def _create(self, experiment: str, facts: RunFacts) -> "Run":
        from mlflow.entities import Param, RunTag

        named = {_UID: facts.uid, "capstan.job": facts.job, "capstan.store": facts.store}
        tags = [RunTag(name, value) for name, value in named.items()]
        run = self._store.create_run(experiment, "unknown", _now(), tags, facts.job)
        leaves = flat(facts.config)
        parameters = [Param(name, str(value)[:_LONGEST_PARAMETER]) for name, value in leaves.items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._store.log_batch(run.info.run_id, [], parameters[first : first + _MOST_PARAMETERS], [])
        return run

    def write(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(point.at * 1000), point.step)
            for point in points
            for name, value in {**point.values, "fence": float(self._fence)}.items()
        ]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._store.log_batch(self._run, metrics[first : first + _MOST_METRICS], [], [])
        saved = [point for point in points if point.checkpoint is not None]
        if saved:
            self._tag({"capstan.checkpoint": saved[-1].checkpoint or "", "capstan.checkpointStep": str(saved[-1].step)})

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for name, value in tags.items():
            self._store.set_tag(self._run, RunTag(name, value))

    def close(self, is_finished: bool) -> None:
        from mlflow.entities import RunStatus

        if is_finished:
            self._store.update_run_info(self._run, RunStatus.FINISHED, _now(), None)


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _account(uri: str, account: Mapping[str, str] | None) -> "Callable[[], MlflowHostCreds]":
    """What is asked before each request. None: whatever MLflow finds by itself."""
    from mlflow.utils.credentials import get_default_host_creds

    def account_of() -> "MlflowHostCreds":
        found = copy.copy(get_default_host_creds(uri))  # with the certificates that the pod names
        if account is not None:
            found.username, found.password, found.token = map(account.get, _KEYS)
        return found

    return account_of


def _read(secret: Path) -> dict[str, str]:
    """By key. Raises OSError where the Secret has none that is known."""
    found = {key: secret / key for key in _KEYS if (secret / key).exists()}
    if not found:
        raise OSError(f"the Secret of tracking.mlflow.secretName is missing, or has none of {', '.join(_KEYS)}")
    return {key: path.read_text().strip() for key, path in found.items()}
