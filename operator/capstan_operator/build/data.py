"""What a pod needs for data that is in a bucket: an account, and a place for copies."""

from typing import Any

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_runtime.contract import env
from capstan_runtime.contract.data import Bucket, Located

DATA_VOLUME = "data"
DATA_CACHE = "/var/cache/capstan/data"


def is_fetched(spec: TrainingJobSpec) -> bool:
    """Whether something of the data is in a bucket, and copied by every pod."""
    reference = spec.data_quality.reference if spec.data_quality else None
    return _is_in_bucket(spec) or (reference is not None and "://" in reference)


def data_env_from(spec: TrainingJobSpec) -> list[dict[str, Any]]:
    """The account of the data's bucket, which never passes through the operator. Under names of its own: the
    checkpoints' bucket may have another."""
    bucket = _bucket(spec)
    if bucket is None or not bucket.secret_name:
        return []
    return [{"prefix": env.DATA_ACCOUNT, "secretRef": {"name": bucket.secret_name}}]


def data_volume(spec: TrainingJobSpec) -> dict[str, Any]:
    """The place for copies, which goes with the pod."""
    bucket = _bucket(spec)
    # Kubernetes writes binary units without their B.
    limit = {"sizeLimit": bucket.cache_size.removesuffix("B")} if bucket and bucket.cache_size else {}
    return {"name": DATA_VOLUME, "emptyDir": limit}


def _is_in_bucket(spec: TrainingJobSpec) -> bool:
    files = _files(spec)
    return files is not None and files.is_in_bucket


def _bucket(spec: TrainingJobSpec) -> Bucket | None:
    files = _files(spec)
    return files.bucket if files is not None else None


def _files(spec: TrainingJobSpec) -> Located | None:
    """What data there is in files; None: there is none, or a program has its own."""
    data = spec.data.value if spec.data is not None else None
    return data if isinstance(data, Located) else None
