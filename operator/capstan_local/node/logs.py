"""What containers print, as files: one log per restart, each line with the time it was read.

A line on disk is `2026-01-31T12:00:00.123456789Z F text`, with P for F when the line goes on in the next record: the
container printed part of it only. A log is two files at most, of LOG_BYTES each; the older half is dropped when the
newer one is full.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

LOG_BYTES = 10 * 1024 * 1024
READ_BYTES = 64 * 1024
STAMP_BYTES = len("2026-01-31T12:00:00.123456789Z ")
DRAIN_SECONDS = 1.0
KEPT_RESTARTS = 2


def stamp(nanoseconds: int) -> str:
    """RFC 3339 with nine decimals, which sorts as text."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


class LogWriter:
    """The log of one run of a container, fed from a pipe by the event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._size = 0
        self._reader: int | None = None
        self.closed = asyncio.Event()
        self.followers: set[asyncio.Event] = set()
        """Set whenever there is more to read, or nothing more will come."""

    def pipe(self) -> int:
        """The writing end for the container; the caller closes its copy once the container has it."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        self._reader = reader
        asyncio.get_running_loop().add_reader(reader, self._on_readable)
        return writer

    def write(self, chunk: bytes) -> None:
        """Appends what was just read: at most READ_BYTES."""
        now = stamp(time.time_ns()).encode()
        lines = chunk.split(b"\n")
        ends_open = bool(lines[-1])
        if not ends_open:
            lines.pop()
        records = [now + b" F " + line + b"\n" for line in lines]
        if ends_open:
            records[-1] = now + b" P " + lines[-1] + b"\n"
        data = b"".join(records)
        if self._size + len(data) > LOG_BYTES and self._size:
            self._rotate()
        self._file.write(data)
        self._size += len(data)
        self._wake()

    async def finish(self) -> None:
        """Reads what is still in the pipe, then closes. Whoever else holds the pipe open is waited for only briefly."""
        if self._reader is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await self.closed.wait()
        self.close()

    def close(self) -> None:
        if self._reader is not None:
            asyncio.get_running_loop().remove_reader(self._reader)
            os.close(self._reader)
            self._reader = None
        self._file.close()
        self.closed.set()
        self._wake()

    def _on_readable(self) -> None:
        if self._reader is None:
            return
        try:
            chunk = os.read(self._reader, READ_BYTES)
        except BlockingIOError:
            return
        if chunk:
            self.write(chunk)
        else:
            self.close()

    def _rotate(self) -> None:
        self._file.close()
        self.path.replace(older(self.path))
        self._file = self.path.open("wb", buffering=0)
        self._size = 0

    def _wake(self) -> None:
        for follower in self.followers:
            follower.set()


def older(path: Path) -> Path:
    return path.with_suffix(".log.1")


def log_path(folder: Path, restart: int) -> Path:
    return folder / f"{restart}.log"


def drop_old_logs(folder: Path, restart: int) -> None:
    """Keeps the logs of this restart and the one before."""
    for gone in range(max(0, restart - KEPT_RESTARTS - 1), restart - KEPT_RESTARTS + 1):
        log_path(folder, gone).unlink(missing_ok=True)
        older(log_path(folder, gone)).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What of a log is wanted; None: no such limit."""

    tail_lines: int | None = None
    since: str | None = None
    """Earliest time, as `stamp` writes it."""
    limit_bytes: int | None = None
    timestamps: bool = False
    follow: bool = False


async def read_log(path: Path, query: LogQuery, writer: LogWriter | None) -> AsyncIterator[bytes]:
    """The log as the container printed it, in chunks. With `follow` and a `writer`, until that one is closed."""
    budget = query.limit_bytes
    async for records in _records(path, query, writer):
        chunk = b"".join(_printed(record, query) for record in records)
        if budget is not None:
            chunk = chunk[:budget]
            budget -= len(chunk)
        if chunk:
            yield chunk
        if budget == 0:
            return


def _printed(record: bytes, query: LogQuery) -> bytes:
    if query.since is not None and record[: STAMP_BYTES - 1].decode() < query.since:
        return b""
    text = record[STAMP_BYTES + 2 :]
    if record[STAMP_BYTES : STAMP_BYTES + 1] == b"P":
        text = text[:-1]
    return record[:STAMP_BYTES] + text if query.timestamps else text


async def _records(path: Path, query: LogQuery, writer: LogWriter | None) -> AsyncIterator[list[bytes]]:
    changed = asyncio.Event()
    if writer is not None:
        writer.followers.add(changed)
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(p.open("rb", buffering=0)) for p in (older(path), path) if p.exists()]
            if not files:
                return
            if query.tail_lines is not None:
                _seek_to_tail([file.fileno() for file in files], query.tail_lines)
            for file in files:
                for records in _complete_records(file.fileno()):
                    yield records
                    await asyncio.sleep(0)
            current = files[-1]
            while query.follow and writer is not None:
                ended = writer.closed.is_set()
                changed.clear()
                for records in _complete_records(current.fileno()):
                    yield records
                if _is_rotated(current.fileno(), path):
                    current = stack.enter_context(
                        path.open("rb", buffering=0)
                    )  # it was rotated; read on in the new one
                elif ended:
                    return
                else:
                    await changed.wait()
    finally:
        if writer is not None:
            writer.followers.discard(changed)


def _is_rotated(descriptor: int, path: Path) -> bool:
    return path.exists() and os.fstat(descriptor).st_ino != path.stat().st_ino


def _complete_records(descriptor: int) -> Iterator[list[bytes]]:
    """From the current position to the end, in pieces. A record whose end is not written yet is left for later."""
    while True:
        chunk = os.read(descriptor, 2 * READ_BYTES)  # more than any record: one is written per read of READ_BYTES
        end = chunk.rfind(b"\n") + 1
        os.lseek(descriptor, end - len(chunk), os.SEEK_CUR)
        if end == 0:
            return
        yield [record + b"\n" for record in chunk[: end - 1].split(b"\n")]


def _seek_to_tail(descriptors: list[int], lines: int) -> None:
    """Moves each file so that together they start at the last `lines` records."""
    for descriptor in reversed(descriptors):
        position = os.lseek(descriptor, 0, os.SEEK_END)
        missing = lines + 1  # the newline that ends the record before the first one wanted
        while position > 0 and missing > 0:
            start = max(0, position - READ_BYTES)
            chunk = os.pread(descriptor, position - start, start)
            while missing > 0 and (found := chunk.rfind(b"\n")) >= 0:
                missing -= 1
                chunk = chunk[:found]
                position = start + found
            if missing > 0:
                position = start
        os.lseek(descriptor, position + 1 if missing == 0 else 0, os.SEEK_SET)
        lines = missing - 1 if missing > 0 else 0
