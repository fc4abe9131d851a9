"""Where checkpoints are kept: the same words for the job that writes them and the service that reads them."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Record, cel
from capstan_runtime.contract.data import BUCKET_URL


class Claim(Record):
    """A PersistentVolumeClaim that all workers can write to at once."""

    name: Annotated[str, Field(min_length=1, description="Name of the claim, in the job's namespace.")]


class HostPath(Record):
    """A folder that exists on every node, such as a mounted parallel file system. Only where the operator runs with
    --allow-host-path: who may read such a folder may read every namespace's part of it."""

    model_config = cel(
        (
            "self.path.startsWith('/')",
            "'path: ' + self.path + ' is not absolute; give the whole path on the nodes, such as /checkpoints'",
        )
    )

    path: Annotated[str, Field(max_length=4096, description="Absolute path on the nodes, such as /checkpoints.")]

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        if not self.path.startswith("/"):
            raise ValueError(
                f"path: {self.path} is not absolute; give the whole path on the nodes, such as /checkpoints"
            )
        return self


class ObjectStore(Record):
    """A bucket of an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage."""

    # No `pattern`: the API server would answer with the bare expression, and check none of the other rules.
    model_config = cel(
        (
            f"self.url.matches('{BUCKET_URL}')",
            "'url: ' + self.url + ' is not the URL of a bucket; give s3://bucket/prefix, gs://bucket/prefix or '"
            " + 'az://container/prefix'",
        ),
        (
            "self.url.startsWith('s3://') || !(has(self.endpoint) || has(self.region))",
            "'endpoint and region are for s3:// only, not for ' + self.url + '; remove them'",
        ),
    )

    url: Annotated[
        str,
        Field(max_length=2048, description="s3://bucket/prefix, gs://bucket/prefix or az://container/prefix."),
    ]
    endpoint: Annotated[
        str | None,
        Field(pattern=r"^https?://", description="Of an S3-compatible server. Left out: the provider's own."),
    ] = None
    region: Annotated[str | None, Field(min_length=1, description="Of the bucket, for S3.")] = None
    secret_name: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Secret in the job's namespace whose keys become environment variables of the pods, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Left out: the pods' own identity.",
        ),
    ] = None

    @model_validator(mode="after")
    def _of_a_bucket(self) -> Self:
        if re.fullmatch(BUCKET_URL, self.url) is None:
            raise ValueError(
                f"url: {self.url} is not the URL of a bucket; give s3://bucket/prefix, gs://bucket/prefix or "
                "az://container/prefix"
            )
        return self

    @model_validator(mode="after")
    def _s3_only(self) -> Self:
        if not self.url.startswith("s3://") and (self.endpoint or self.region):
            raise ValueError(f"endpoint and region are for s3:// only, not for {self.url}; remove them")
        return self


class Store(OneOf):
    """Where checkpoints are kept. Each run writes below its own `<namespace>/<job>/<uid>` in it."""

    claim: Annotated[Claim | None, Field(description="A PersistentVolumeClaim.")] = None
    host_path: Annotated[
        HostPath | None, Field(description="A folder on the nodes, where the operator allows it (--allow-host-path).")
    ] = None
    object: Annotated[ObjectStore | None, Field(description="A bucket of an object store.")] = None
