"""Who asks: API keys from a folder of files, as a Secret is mounted."""

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from capstan_runtime.errors import ConfigError
from capstan_runtime.serving.refusal import Outcome, Refusal

_LOOK_SECONDS = 1.0
"""Between two looks whether the folder has changed."""
_BEARER = b"bearer "
_Look = tuple[tuple[str, int, int, int], ...]


class ApiKeys:
    """Of the keys only salted SHA-256 digests stay in memory. A key is found by its digest: with a salt that nobody
    knows, the time that takes says nothing about the keys that exist; the match itself is compared in constant time.
    """

    def __init__(self, folder: Path, clock: Callable[[], float], warn: Callable[[str], None]) -> None:
        """Each file is a client's: its name, and its key as content. Files whose name begins with a dot are the
        kubelet's. Raises ConfigError if the folder cannot be read."""
        self._folder = folder
        self._clock = clock
        self._warn = warn
        self._salt = os.urandom(32)
        try:
            self._seen = self._look()
            self._clients = self._read()
        except OSError as error:
            raise ConfigError(f"guards.auth: {folder}: {error.strerror}; mount the Secret of API keys there") from error
        self._look_at = clock() + _LOOK_SECONDS

    def client_of(self, headers: Mapping[bytes, bytes]) -> str:
        """Name of the client whose key came with the request. Raises Refusal 401."""
        self._reload_if_due()
        authorization = headers.get(b"authorization", b"")
        if authorization[: len(_BEARER)].lower() == _BEARER:
            key = authorization[len(_BEARER) :].strip()
        else:
            key = headers.get(b"x-api-key", b"")
        if not key:
            raise _unauthorized("an API key is missing; send Authorization: Bearer KEY, or X-Api-Key: KEY")
        digest = self._digest(key)
        known = self._clients.get(digest)
        if known is None or not hmac.compare_digest(known[0], digest):
            raise _unauthorized("the API key is not known")
        return known[1]

    def _reload_if_due(self) -> None:
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        try:
            seen = self._look()
            if seen != self._seen:
                self._clients = self._read()
                self._seen = seen
        except OSError as error:  # in the midst of a change: the next look finds it complete
            self._warn(f"API keys: {self._folder}: {error.strerror}; those read before stay valid")

    def _look(self) -> _Look:
        """What changes when a key does: a Secret's files are links to a new folder then."""
        states = ((path.name, path.stat()) for path in self._files())
        return tuple((name, state.st_ino, state.st_mtime_ns, state.st_size) for name, state in states)

    def _read(self) -> dict[bytes, tuple[bytes, str]]:
        clients: dict[bytes, tuple[bytes, str]] = {}
        for path in self._files():
            if key := path.read_bytes().strip():
                digest = self._digest(key)
                clients[digest] = (digest, path.name)
        return clients

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if not path.name.startswith(".") and path.is_file())

    def _digest(self, key: bytes) -> bytes:
        return hashlib.sha256(self._salt + key).digest()


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, message, outcome=Outcome.UNAUTHORIZED, headers=((b"www-authenticate", b"Bearer"),))
