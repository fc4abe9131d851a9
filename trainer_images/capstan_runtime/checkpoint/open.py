"""Which store a place means: a folder, or a URL of a bucket."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.errors import ConfigError

BUCKETS = ("s3", "gs", "az")
"""Schemes of URLs that name a bucket: Amazon S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage."""


def open_store(place: str, environ: Mapping[str, str]) -> Store:
    """The store at `place`: a folder, `file:///folder`, or `s3://bucket/prefix`, `gs://…`, `az://…`.

    For a URL the provider's usual variables in `environ` apply (AWS_ENDPOINT_URL, …). Asks nothing of the store yet.
    Raises ConfigError for any other place.
    """
    folder = folder_of(place)
    if folder is not None:
        return FolderStore(folder)
    from capstan_runtime.checkpoint.object_store import open_bucket  # loads a library that only buckets need

    return open_bucket(place, environ)


def folder_of(place: str) -> Path | None:
    """The folder that `place` is; None: it is a bucket. Raises ConfigError for any other place."""
    parts = urlsplit(place)
    if parts.scheme in BUCKETS and parts.netloc:
        return None
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    if parts.scheme and "://" in place:
        raise ConfigError(
            f"checkpoint store: {place} is not supported; give a folder, or s3://, gs:// or az:// with a bucket"
        )
    return Path(place)
