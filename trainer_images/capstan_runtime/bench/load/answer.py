"""Reads HTTP/1.1 answers as far as load needs it: the status, where the answer ends, and whether the connection is good
for another (RFC 9112). Bodies are counted, not kept. What breaks the rules ends the connection, never the run."""

from enum import Enum

LONGEST_HEAD = 65536
_LONGEST_LINE = 8192


class BadAnswer(Exception):
    """What came is no HTTP answer. One line."""


class _Body(Enum):
    HEAD = "head"
    LENGTH = "length"
    CHUNKS = "chunks"
    REST = "rest"
    """Until the connection ends."""


class AnswerReader:
    """One answer at a time: `feed` until it says so; then `status`, `size` and `is_reusable` hold, until `restart`."""

    __slots__ = ("_body", "_chunk", "_pending", "_remaining", "is_reusable", "size", "status")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._body = _Body.HEAD
        self._pending = b""
        self._remaining = 0
        self._chunk = "size"
        self.status = 0
        self.size = 0
        """Bytes of the body."""
        self.is_reusable = True

    def feed(self, data: bytes) -> bool:
        """Whether the answer is complete. Raises BadAnswer."""
        if self._body is _Body.HEAD:
            whole = self._pending + data if self._pending else data
            end = whole.find(b"\r\n\r\n")
            if end < 0:
                self._hold(whole, LONGEST_HEAD)
                return False
            self._pending = b""
            data = whole[end + 4 :]
            self._read_head(whole[:end])
            if self.status < 200:  # an interim answer; the one that counts follows
                return self.feed(data) if data else False
        if self._body is _Body.LENGTH:
            self._remaining -= len(data)
            self.size += len(data)
            if self._remaining < 0:
                raise BadAnswer("more follows than content-length says")
            return self._remaining == 0
        if self._body is _Body.CHUNKS:
            return self._read_chunks(data)
        self.size += len(data)
        return False

    def end(self) -> bool:
        """Whether the answer is complete, now that the connection has ended."""
        return self._body is _Body.REST

    def _hold(self, data: bytes, longest: int) -> None:
        if len(data) > longest:
            raise BadAnswer(f"{len(data)} bytes without an end of line")
        self._pending = data

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.lower().split(b"\r\n")
        if not (first.startswith(b"http/1.") and first[9:12].isdigit()) or first[8:9] != b" ":
            raise BadAnswer("the first line is no status of HTTP/1")
        self.status = int(first[9:12])
        is_chunked, length = False, None
        self.is_reusable = first[7:8] != b"0"
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"content-length":
                length = _whole_number(value.strip(), 10, length)
            elif name == b"transfer-encoding":
                is_chunked = value.strip().endswith(b"chunked")
                length = None if is_chunked else length
            elif name == b"connection":
                self.is_reusable = b"keep-alive" in value or (self.is_reusable and b"close" not in value)
        if self.status == 101:
            raise BadAnswer("status 101 was not asked for")
        if self.status < 200:
            return
        if self.status in (204, 304):
            self._body, self._remaining = _Body.LENGTH, 0
        elif is_chunked:
            self._body = _Body.CHUNKS
        elif length is not None:
            self._body, self._remaining = _Body.LENGTH, length
        else:
            self._body, self.is_reusable = _Body.REST, False

    def _read_chunks(self, data: bytes) -> bool:
        """A chunk: its size, a line end, its bytes, a line end. One of size 0 is the last; trailers, an empty line."""
        data = self._pending + data if self._pending else data
        self._pending = b""
        while data:
            if self._chunk == "bytes":
                taken = min(len(data), self._remaining)
                self._remaining -= taken
                data = data[taken:]
                if not self._remaining:
                    self._chunk = "end"
                continue
            line, found, rest = data.partition(b"\r\n")
            if not found:
                self._hold(data, _LONGEST_LINE)
                return False
            data = rest
            if self._chunk == "end":
                if line:
                    raise BadAnswer("a chunk is longer than it says")
                self._chunk = "size"
            elif self._chunk == "size":
                size = _whole_number(line.partition(b";")[0].strip(), 16, None)
                self.size += size
                self._remaining = size
                self._chunk = "bytes" if size else "trailer"
            elif not line:
                if data:
                    raise BadAnswer("more follows than the last chunk")
                return True
        return False


def _whole_number(text: bytes, base: int, before: int | None) -> int:
    try:
        number = int(text, base) if text.isalnum() and len(text) <= 18 else -1
    except ValueError:
        number = -1
    if number < 0 or before not in (None, number):
        raise BadAnswer("a length is no whole number, or there are two")
    return number
