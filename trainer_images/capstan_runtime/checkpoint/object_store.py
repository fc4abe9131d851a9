"""A store in a bucket: Amazon S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.

An object appears as a whole when its last byte has arrived. Nothing is ever renamed; of two writers of a new object one
wins by a conditional PUT.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import from_url

from capstan_runtime.checkpoint.digest import Buffer
from capstan_runtime.checkpoint.store import ObjectMissing, StoreError
from capstan_runtime.errors import ConfigError

_PART_BYTES = 16 << 20
"""A larger object goes up in parts of this size; S3 takes 10,000 of them, none below 5 MiB but the last."""
_PARTS_AT_ONCE = 4
_LISTED_AT_ONCE = 1000
"""S3 lists no more in one answer."""
_LAG_SECONDS = 10.0
"""Those that we know show at once what was written; what only speaks like them may not."""
_REQUEST_SECONDS = 60
"""For one request with its answer: 0.3 MB/s still get a part through."""
_CONNECT_SECONDS = 5
_RETRIES = 5
_RETRY_SECONDS = 60
"""After so long no further retry is begun. One call takes twice that at most."""

_VARIABLES = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    ),
    "gs": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_CLIENT_ID",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_STORAGE_TENANT_ID",
        "AZURE_STORAGE_ENDPOINT",
        "AZURE_FEDERATED_TOKEN_FILE",
    ),
}
"""Of the providers' variables those that a job sets; the process's own environment may have any."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_REGION or, for a store that is not Amazon's, "
    "AWS_ENDPOINT_URL",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS, the path of an account's key",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}
"""What a user sets who has no account of the machine's own."""
_NO_CREDENTIALS = (
    "/latest/api/token",
    "/latest/meta-data/",
    "/computeMetadata/",
    "/metadata/identity/",
    "Account must be specified",
)
"""What errors of the library have in them when it was given no account, and could not have the machine's own."""
Result = TypeVar("Result")


def open_bucket(url: str, environ: Mapping[str, str]) -> "ObjectStore":
    """The store at `s3://bucket/prefix`, `gs://…` or `az://…`; asks nothing of it yet. Raises ConfigError."""
    scheme = url.split(":", 1)[0]
    config = {name: environ[name] for name in _VARIABLES[scheme] if environ.get(name)}
    try:
        bucket = from_url(
            url.rstrip("/"),
            config=cast(Any, config),
            client_options={
                # Whoever gives an http:// address wants it; without one, the provider's https:// is used.
                "allow_http": True,
                "timeout": timedelta(seconds=_REQUEST_SECONDS),
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            },
            retry_config={
                "max_retries": _RETRIES,
                "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=10),
                    "base": 2,
                },
            },
        )
    except (BaseError, ValueError) as error:
        raise ConfigError(f"checkpoint store: {url}: {_explained(url, error)}") from error
    return ObjectStore(url, bucket)


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as it was listed."""

    key: str
    size: int
    """In bytes."""
    version: str
    """Its entity tag, which another content does not have; empty where the provider gives none."""


class ObjectStore:
    """The `Store` in a bucket."""

    def __init__(self, url: str, bucket: Any) -> None:
        """`bucket`: one of obstore's stores, with the URL's prefix."""
        self._url = url
        self._bucket = bucket

    @property
    def place(self) -> str:
        """The URL."""
        return self._url

    @property
    def lag_seconds(self) -> float:
        """See `Store.lag_seconds`."""
        return _LAG_SECONDS

    def put(self, key: str, pieces: Iterable[Buffer]) -> None:
        """See `Store.put`. When `pieces` raises, or a request fails, the parts that have arrived are thrown away."""

        def upload() -> None:
            # Not obstore.put(…, pieces): it would run the caller's iterator on a thread that may not wait for anything.
            with obstore.open_writer(
                self._bucket, key, buffer_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
            ) as writer:
                for piece in pieces:
                    writer.write(bytes(piece))  # it keeps what it is given until a part is full, and copies nothing

        self._ask(upload)

    def put_new(self, key: str, data: bytes) -> bool:
        """See `Store.put_new`. After an answer that was lost on its way, False may mean that this very call has won:
        whoever must know compares the content."""
        try:
            self._ask(lambda: obstore.put(self._bucket, key, data, mode="create", use_multipart=False))
        except _Exists:
            return False
        return True

    def settle(self, prefix: str) -> None:
        """See `Store.settle`. Nothing to do: what a bucket has acknowledged stays."""

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self._ask_for(key, lambda: bytes(obstore.get(self._bucket, key).bytes()))

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """See `Store.read_into`."""
        count = len(target)
        if count == 0:
            return
        try:
            data = self._ask_for(
                key, lambda: memoryview(obstore.get_range(self._bucket, key, start=offset, length=count))
            )
        except StoreError:
            size = self.size(key)
            if size is None or offset < size:
                raise
            data = memoryview(b"")  # S3 answers a range after the end with an error
        if len(data) < count:
            raise ObjectMissing(f"{key}: ends at byte {offset + len(data)}, {offset + count} were expected")
        target[:] = data

    def size(self, key: str) -> int | None:
        """See `Store.size`."""
        try:
            return self._ask_for(key, lambda: int(obstore.head(self._bucket, key)["size"]))
        except ObjectMissing:
            return None

    def children(self, prefix: str = "") -> list[str]:
        """See `Store.children`."""
        listed = self._ask(lambda: obstore.list_with_delimiter(self._bucket, prefix or None))
        paths = [*listed["common_prefixes"], *(each["path"] for each in listed["objects"])]
        return sorted({path.rsplit("/", 1)[-1] for path in paths})

    def objects(self, prefix: str, alive: Callable[[], None] = lambda: None) -> list[Stored]:
        """The object `prefix`, or else all below it, in the order of their keys. `alive` is called after every
        thousand. Raises StoreError."""
        try:
            found = [self._ask_for(prefix, lambda: obstore.head(self._bucket, prefix))] if prefix else None
        except ObjectMissing:
            found = None
        if found is None:
            found = self._ask(lambda: self._all_below(prefix, alive))
        listed = [Stored(each["path"], int(each["size"]), each.get("e_tag") or "") for each in found]
        return sorted((each for each in listed if not each.key.endswith("/")), key=lambda each: each.key)

    def _all_below(self, prefix: str, alive: Callable[[], None]) -> list[Any]:
        found: list[Any] = []
        for page in obstore.list(self._bucket, prefix or None, chunk_size=_LISTED_AT_ONCE):
            found += page
            alive()
        return found

    def piece(self, stored: Stored, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of `stored`. Raises StoreError, also if it is not what was listed any more."""
        options: dict[str, Any] = {"range": (start, start + length)}
        if stored.version:
            options["if_match"] = stored.version
        data = self._ask(lambda: bytes(obstore.get(self._bucket, stored.key, options=cast(Any, options)).bytes()))
        if len(data) != length:
            raise StoreError(f"{self._url}: {stored.key} gave {len(data)} of {length} bytes")
        return data

    def remove(self, key: str) -> None:
        """See `Store.remove`."""
        self._remove([key])

    def remove_all(self, prefix: str) -> None:
        """See `Store.remove_all`."""
        listed = self._ask(lambda: [each["path"] for each in obstore.list(self._bucket, prefix or None).collect()])
        if listed:
            self._remove(listed)

    def _remove(self, keys: list[str]) -> None:
        try:
            self._ask_for(keys[0], lambda: obstore.delete(self._bucket, keys))
        except ObjectMissing:
            return  # some providers say so when somebody else has removed it

    def _ask_for(self, key: str, request: Callable[[], Result]) -> Result:
        """As `_ask`, for an object that need not be there. Raises ObjectMissing too."""
        try:
            return self._ask(request)
        except StoreError as error:
            if isinstance(error.__cause__, (FileNotFoundError, NotFoundError)):
                raise ObjectMissing(f"{key}: is missing") from error
            raise

    def _ask(self, request: Callable[[], Result]) -> Result:
        """The answer. Whatever the library raises becomes StoreError, or _Exists."""
        try:
            return request()
        except AlreadyExistsError as error:
            raise _Exists from error
        except (BaseError, FileNotFoundError, PermissionError, NotImplementedError) as error:
            raise StoreError(f"{self._url}: {_explained(self._url, error)}") from error


class _Exists(Exception):
    """There is an object of this key already."""


def _explained(url: str, error: Exception) -> str:
    """One line: what the library says, and what to set if it has no account to go by."""
    message = _first_line(error)
    if not any(part in message for part in _NO_CREDENTIALS):
        return message
    return f"no credentials: set {_CREDENTIALS[url.split(':', 1)[0]]}; without them: {message}"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
