"""Who asks: API keys from a folder of files, as a Secret is mounted."""

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from capstan_runtime.errors import ConfigError
from capstan_runtime.serving.mounted import Mounted, visible_files
from capstan_runtime.serving.refusal import Outcome, Refusal

_BEARER = b"bearer "


class ApiKeys:
    """Of the keys only salted SHA-256 digests stay in memory. A key is found by its digest: with a salt that nobody
    knows, the time that takes says nothing about the keys that exist; the match itself is compared in constant time.
    """

    def __init__(self, folder: Path, clock: Callable[[], float], warn: Callable[[str], None]) -> None:
        """Each file is a client's: its name, and its key as content. Files whose name begins with a dot are the
        kubelet's. Raises ConfigError if the folder cannot be read."""
        self._folder = folder
        self._warn = warn
        self._salt = os.urandom(32)
        try:
            self._clients = Mounted(folder, self._read, clock, self._note)
        except OSError as error:
            raise ConfigError(f"guards.auth: {folder}: {error.strerror}; mount the Secret of API keys there") from error

    def client_of(self, headers: Mapping[bytes, bytes]) -> str:
        """Name of the client whose key came with the request. Raises Refusal 401."""
        clients = self._clients.current()
        authorization = headers.get(b"authorization", b"")
        if authorization[: len(_BEARER)].lower() == _BEARER:
            key = authorization[len(_BEARER) :].strip()
        else:
            key = headers.get(b"x-api-key", b"")
        if not key:
            raise _unauthorized("an API key is missing; send Authorization: Bearer KEY, or X-Api-Key: KEY")
        digest = self._digest(key)
        known = clients.get(digest)
        if known is None or not hmac.compare_digest(known[0], digest):
            raise _unauthorized("the API key is not known")
        return known[1]

    def _note(self, error: OSError) -> None:
        self._warn(f"API keys: {self._folder}: {error.strerror}; those read before stay valid")

    def _read(self) -> dict[bytes, tuple[bytes, str]]:
        clients: dict[bytes, tuple[bytes, str]] = {}
        for path in visible_files(self._folder):
            if key := path.read_bytes().strip():
                digest = self._digest(key)
                clients[digest] = (digest, path.name)
        return clients

    def _digest(self, key: bytes) -> bytes:
        return hashlib.sha256(self._salt + key).digest()


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, message, outcome=Outcome.UNAUTHORIZED, headers=((b"www-authenticate", b"Bearer"),))
