"""Files of this pod's memory tier, for its peers: read-only, and nothing outside the folder."""

import asyncio
import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

_MOST_AT_ONCE = 4
SECONDS = 60.0
"""For one answer, its turn included. A part of a save is read in ranges, from memory to memory."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
"""No name begins with a dot: neither `..` nor a file that is still being written."""
_LONGEST_KEY = 500
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")


class NoSuchFile(Exception):
    """The key names no regular file of the tier; the message says which."""


@dataclass(frozen=True, slots=True)
class MemoryTier:
    """The folder. It outlives trainers, which write it; this process only reads and, in the end, empties it."""

    folder: Path

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """The file under `key`, names separated by `/`. Raises NoSuchFile.

        Each name is opened relative to the folder before it, and links are refused: whatever a trainer may have put
        there, nothing else of this pod can be read.
        """
        names = key.split("/")
        if len(key) > _LONGEST_KEY or not all(_NAME.fullmatch(name) for name in names):
            raise NoSuchFile(f"{key[:_LONGEST_KEY]!r} is no name of a file in this pod's memory")
        try:
            with contextlib.ExitStack() as folders:
                folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                folders.callback(os.close, folder)
                for name in names[:-1]:
                    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                    folders.callback(os.close, folder)
                # Without O_NONBLOCK, opening a named pipe would wait for its writer.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(names[-1], flags, dir_fd=folder)
        except OSError as error:
            raise NoSuchFile(f"{key}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NoSuchFile(f"{key} is no file")
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            yield file

    def empty(self) -> None:
        """Removes what is in the folder; the folder itself is a mount. Raises OSError."""
        for entry in os.scandir(self.folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).unlink()


class MemoryFiles:
    """`GET /memory/<key>`: a file, or one range of it, sent by the kernel. A few at once; the others wait."""

    def __init__(self, tier: MemoryTier | None) -> None:
        """None: this pod has no memory tier, and no file is found."""
        self._tier = tier
        self._turns = asyncio.Semaphore(_MOST_AT_ONCE)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Raises HTTPNotFound and HTTPRequestRangeNotSatisfiable."""
        if self._tier is None:
            raise web.HTTPNotFound(text="this pod has no memory tier")
        async with self._turns:
            try:
                with self._tier.open(request.match_info["key"]) as file:
                    return await _send(request, file)
            except NoSuchFile as error:
                raise web.HTTPNotFound(text=str(error)) from None


async def _send(request: web.Request, file: BinaryIO) -> web.StreamResponse:
    size = os.fstat(file.fileno()).st_size
    response = web.StreamResponse(headers={"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"})
    first, end = 0, size
    wanted = request.headers.get("Range")
    if wanted is not None:
        match = _RANGE.fullmatch(wanted)
        first = int(match[1]) if match else size
        end = min(size, int(match[2]) + 1) if match and match[2] else size
        if first >= end:
            raise web.HTTPRequestRangeNotSatisfiable(
                headers={"Content-Range": f"bytes */{size}"}, text=f"{wanted[:100]} of {size} bytes cannot be sent"
            )
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    response.content_length = end - first
    await response.prepare(request)
    assert request.transport is not None
    try:
        await asyncio.get_running_loop().sendfile(request.transport, file, first, end - first)
    except BaseException:
        # Half an answer cannot be mended: the client sees it break off, and asks another time.
        request.transport.abort()
        raise
    await response.write_eof()
    return response
