"""Data that is in a bucket, as files of this pod: each object is copied once, and is the one that was listed.

Copies are kept below one folder, by what was listed: keys, sizes and entity tags. So a restart finds them again, and
data that has changed meanwhile is other data. Of several processes that need the same, one copies and the others wait.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.object_store import ObjectStore, Stored, open_bucket
from capstan_runtime.checkpoint.store import StoreError
from capstan_runtime.contract import env
from capstan_runtime.contract.data import Bucket, Data, Located
from capstan_runtime.contract.sizes import size_bytes
from capstan_runtime.data.fingerprint import fingerprint_of
from capstan_runtime.errors import ConfigError, StoreUnavailable

Alive = Callable[[], None]
"""Called now and then while something long goes on."""
_PIECE_BYTES = 16 << 20
_LOCK_AGAIN_SECONDS = 0.2
_AT_ONCE = 8
"""One connection gets some 100 MB/s out of S3, a node's network several times that."""
_ACCOUNT_OF_NOBODY = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""What is said of the checkpoints' bucket and would be wrong for another one."""
_TOKENS_OF_THE_POD = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AZURE_FEDERATED_TOKEN_FILE")
"""Files in which the cluster says who the pod is: to whom that is somebody, an account's role or client says."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where something is, and what is needed to get it."""

    field: str
    """Of the spec that names it, for messages."""
    url: str
    bucket: Bucket | None


def fetch(source: Source, environ: Mapping[str, str], alive: Alive = lambda: None) -> Path:
    """The copy of `source.url` in this pod: a file if it is an object, else the folder of all objects below it.

    `alive` is called after every piece, and every thousand objects that are listed. Raises ConfigError when there is
    nothing or it does not fit, StoreUnavailable when the bucket does not answer or gives no access.
    """
    parent, name = source.url.rstrip("/").rsplit("/", 1)
    try:
        if parent.endswith(":/"):  # the whole bucket
            store, prefix = open_bucket(source.url, _account(source.bucket, environ)), ""
        else:
            store, prefix = open_bucket(parent, _account(source.bucket, environ)), name
        objects = store.objects(prefix, alive)
    except StoreError as error:
        raise StoreUnavailable(f"{source.field}: {error}") from error
    if not objects:
        raise ConfigError(f"{source.field}: {source.url} is neither an object nor a prefix of any; correct it")
    for each in objects:
        if {"", ".", ".."}.intersection(each.key.split("/")):
            raise ConfigError(f"{source.field}: {source.url} has {each.key!r}, which cannot be a file; rename it")
    folder = Path(environ.get(env.DATA_CACHE) or Path.home() / ".cache" / "capstan" / "data")
    listing = [(each.key, each.size, each.version) for each in objects]
    target = folder / fingerprint_of(source.url, listing).removeprefix("blake3:")[:32]
    with _alone(folder, alive):
        _require_room(source, folder, target, objects)
        _copy_all(store, objects, target, source, alive)
    return target / prefix if prefix else target


def fetched(data: Data, environ: Mapping[str, str], alive: Alive = lambda: None) -> Data:
    """`data` with the copies' paths for those in buckets. Raises as `fetch`."""
    if not data.is_in_bucket:
        return data
    config: Located = data.value
    copy = fetch(Source(f"spec.data.{data.kind}.path", config.path, config.bucket), environ, alive)
    return data.model_copy(update={data.kind: config.model_copy(update={"path": str(copy), "bucket": None})})


def _account(bucket: Bucket | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The provider's variables that hold for the bucket of the data. Of its own Secret alone, since half of each of two
    accounts is none, with the pod's token where that names a role to take by it; without a Secret, those that the pod
    has anyway, but for where the checkpoints' bucket is."""
    if bucket is None:
        return dict(environ)
    own = {
        name.removeprefix(env.DATA_ACCOUNT): value
        for name, value in environ.items()
        if name.startswith(env.DATA_ACCOUNT)
    }
    if not own:
        others = {name: value for name, value in environ.items() if name not in _ACCOUNT_OF_NOBODY}
    elif any("KEY" in name or "SECRET" in name for name in own):
        others = {}
    else:
        others = {name: environ[name] for name in _TOKENS_OF_THE_POD if name in environ}
    said = {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_REGION": bucket.region}
    return {**others, **own, **{name: value for name, value in said.items() if value}}


@contextmanager
def _alone(folder: Path, alive: Alive) -> Iterator[None]:
    """Only one process of the pod is in here. Waiting is bounded by the supervisor's watch over whoever is inside."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        while not _is_locked(lock.fileno()):
            alive()
            time.sleep(_LOCK_AGAIN_SECONDS)
        yield


def _is_locked(descriptor: int) -> bool:
    """By us, from now on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _require_room(source: Source, folder: Path, target: Path, objects: list[Stored]) -> None:
    missing = sum(each.size for each in objects if not _is_whole(target / each.key, each.size))
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise ConfigError(
            f"{source.field}: {source.url} has {missing:,} bytes that are not here yet, and {folder} has room for "
            f"{free:,}; give the nodes more disk, or put the data on a volume"
        )
    limit = source.bucket.cache_size if source.bucket else None
    if limit is not None and missing + _used(folder) > size_bytes(limit):
        raise ConfigError(
            f"{source.field}: {source.url} has {sum(each.size for each in objects):,} bytes, and bucket.cacheSize is "
            f"{limit}; raise it, or put the data on a volume"
        )


def _used(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _is_whole(file: Path, size: int) -> bool:
    """A file gets its name only once all its bytes are there."""
    return file.is_file() and file.stat().st_size == size


def _copy_all(store: ObjectStore, objects: list[Stored], target: Path, source: Source, alive: Alive) -> None:
    missing = [each for each in objects if not _is_whole(target / each.key, each.size)]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="download") as threads:
        copies = [threads.submit(_copy, store, each, target / each.key, alive) for each in missing]
        try:
            for copy in copies:
                copy.result()
        except StoreError as error:
            raise StoreUnavailable(f"{source.field}: {error}") from error
        finally:
            threads.shutdown(cancel_futures=True)


def _copy(store: ObjectStore, stored: Stored, file: Path, alive: Alive) -> None:
    """Raises StoreError if the object is another one by now."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as copy:
        for start in range(0, stored.size, _PIECE_BYTES):
            copy.write(store.piece(stored, start, min(_PIECE_BYTES, stored.size - start)))
            alive()
        copy.flush()
        os.fsync(copy.fileno())
    part.rename(file)
