"""Who else is told how a run goes, beside status and Prometheus.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Record, cel

SecretName = Annotated[str | None, Field(min_length=1, max_length=253)]
_PLAIN_HTTP = r"^https?://[^@\s]+$"


class CsvFile(Record):
    """`tracking/metrics.csv` beside the checkpoints: a row for each report, a column for each metric."""


class JsonLinesFile(Record):
    """`tracking/metrics.jsonl` beside the checkpoints: an object on a line for each report."""


class TensorBoard(Record):
    """`tracking/tensorboard/` beside the checkpoints: event files for `tensorboard --logdir`."""


class WeightsAndBiases(Record):
    """A run of Weights & Biases, the same one in every attempt."""

    model_config = cel(
        (
            "!has(self.mode) || self.mode != 'online' || has(self.secretName)",
            "'mode online needs an API key; set secretName, or mode to offline'",
        ),
        (
            "self.mode != 'offline' || !has(self.secretName)",
            "'mode offline asks no server, and needs no API key; remove secretName, or set mode to online'",
        ),
    )

    project: Annotated[str, Field(min_length=1, max_length=128, description="Project of the run.")]
    entity: Annotated[
        str | None, Field(min_length=1, description="User or team. Left out: the default of the API key's owner.")
    ] = None
    base_url: Annotated[
        str | None,
        Field(pattern=_PLAIN_HTTP, description="Of a server of your own. Left out: https://api.wandb.ai."),
    ] = None
    mode: Annotated[
        Literal["online", "offline"],
        Field(
            description="offline writes to tracking/wandb/ beside the checkpoints and asks no server; `wandb sync` "
            "uploads it."
        ),
    ] = "online"
    secret_name: Annotated[
        SecretName, Field(description="Secret in the job's namespace whose key api-key holds the API key.")
    ] = None

    @model_validator(mode="after")
    def _key_suits_mode(self) -> Self:
        if self.mode == "online" and self.secret_name is None:
            raise ValueError("mode online needs an API key; set secretName, or mode to offline")
        if self.mode == "offline" and self.secret_name is not None:
            raise ValueError(
                "mode offline asks no server, and needs no API key; remove secretName, or set mode to online"
            )
        return self


class MLflow(Record):
    """A run on an MLflow server, the same one in every attempt."""

    uri: Annotated[
        str,
        Field(
            pattern=_PLAIN_HTTP,
            description="The tracking server, http://host:port or https://host. User and password are secretName's.",
        ),
    ]
    experiment: Annotated[str, Field(min_length=1, max_length=250, description="It is made if there is none.")]
    secret_name: Annotated[
        SecretName,
        Field(
            description="Secret in the job's namespace with the keys username and password, or token. Left out: the "
            "server asks for none."
        ),
    ] = None


class Tracking(Record):
    """Who is told of every metric, besides status and Prometheus. Each is told if it is named; none can stop or slow
    the run."""

    csv: Annotated[CsvFile | None, Field(description="A table of comma-separated values.")] = None
    jsonl: Annotated[JsonLinesFile | None, Field(description="JSON, one object a line.")] = None
    tensorboard: Annotated[TensorBoard | None, Field(description="TensorBoard.")] = None
    wandb: Annotated[
        WeightsAndBiases | None, Field(description="Weights & Biases; the image needs the package wandb.")
    ] = None
    mlflow: Annotated[MLflow | None, Field(description="MLflow; the image needs the package mlflow-skinny.")] = None
