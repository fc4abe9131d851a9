"""The memory of another pod of the job, read through its supervisor: `GET /memory/<key>`."""

import http.client
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from capstan_runtime.checkpoint.store import ObjectMissing, StoreError

_STALL_SECONDS = 5.0
"""Without a byte, from memory to memory over the pods' network, the peer counts as dead."""
_CALL_SECONDS = 30.0
"""One call at most; the largest reads have 8 MiB. A restore that is slower than that is better done from the store."""
_AT_ONCE = 1 << 20


class PeerStore:
    """The `Readable` that a peer offers. Whatever it does, a call ends after 35 s at most."""

    def __init__(
        self, address: str, token: str, stall_seconds: float = _STALL_SECONDS, call_seconds: float = _CALL_SECONDS
    ) -> None:
        """`address`: `address:port` of its supervisor. `token`: the job's bearer token."""
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"}
        self._stall_seconds = stall_seconds
        self._call_seconds = call_seconds

    @property
    def place(self) -> str:
        """The pod's address."""
        return f"memory of {self._address}"

    def get(self, key: str) -> bytes:
        """See `Readable.get`."""
        size = self.size(key)
        if size is None:
            raise ObjectMissing(f"{key}: is not in the {self.place}")
        data = bytearray(size)
        self.read_into(key, 0, memoryview(data))
        return bytes(data)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """See `Readable.read_into`."""
        if len(target) == 0:
            return
        end = offset + len(target)
        give_up_at = time.monotonic() + self._call_seconds
        with self._asked(key, f"bytes={offset}-{end - 1}") as response:
            if response.status != http.client.PARTIAL_CONTENT or response.length != len(target):
                raise ObjectMissing(f"{key}: ends before byte {end} in the {self.place}")
            done = 0
            while done < len(target):
                if time.monotonic() > give_up_at:
                    raise StoreError(f"{self.place}: {key}: not read within {self._call_seconds:g} s")
                count = response.readinto(target[done : done + _AT_ONCE])
                if count == 0:
                    raise StoreError(f"{self.place}: {key}: the answer broke off after {done} bytes")
                done += count

    def size(self, key: str) -> int | None:
        """See `Readable.size`."""
        try:
            with self._asked(key, "bytes=0-0") as response:
                return _total(response.headers.get("Content-Range", ""), self.place)
        except ObjectMissing:
            return None

    @contextmanager
    def _asked(self, key: str, wanted: str) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request for a range: a part, or that there is no such range. Raises ObjectMissing, and
        StoreError for whatever else happens, also while the answer is read."""
        connection = http.client.HTTPConnection(self._address, timeout=self._stall_seconds)
        try:
            connection.request("GET", f"/memory/{quote(key)}", headers={**self._headers, "Range": wanted})
            response = connection.getresponse()
            if response.status == http.client.NOT_FOUND:
                raise ObjectMissing(f"{key}: is not in the {self.place}")
            if response.status not in (http.client.PARTIAL_CONTENT, http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
                raise StoreError(f"{self.place}: {key}: status {response.status}")
            yield response
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.place}: {key}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()


def _total(content_range: str, place: str) -> int:
    """The object's size as `bytes 0-0/17` or, of an empty one, `bytes */0` says."""
    total = content_range.rpartition("/")[2]
    if not (content_range.startswith("bytes ") and total.isascii() and total.isdigit()):
        raise StoreError(f"{place}: answers with the range {content_range[:60]!r}")
    return int(total)
