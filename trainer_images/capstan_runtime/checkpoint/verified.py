"""Reading tensors out of a checkpoint's shards: straight to where they are wanted, hashed there, on several threads.

Reading and hashing both run outside Python's lock. No byte is read twice, and none whose piece is not needed.
"""

import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from capstan_runtime.checkpoint.coverage import Coverage
from capstan_runtime.checkpoint.digest import LEAF_BYTES, digest_of, name_of
from capstan_runtime.checkpoint.read_ahead import ReadAhead
from capstan_runtime.checkpoint.safetensors import numpy_dtype
from capstan_runtime.checkpoint.store import ObjectMissing, Readable, is_damage
from capstan_runtime.checkpoint.whole import Piece, WholeTensor
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.engine import Array
from capstan_runtime.errors import CorruptCheckpoint, StoreUnavailable

_SPAN_BYTES = 2 * LEAF_BYTES
"""Read at once: small enough to be still in the processor's cache when it is hashed, and to go round the threads."""
_THREADS = min(4, os.cpu_count() or 1)
_SAMPLED = 1 / 16
"""Of each file's pieces, at least one."""


class MissingTensor(KeyError):
    """The checkpoint has no tensor of that name."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One shard file of a committed checkpoint and the digests that its bytes must have."""

    key: str
    size: int
    """In bytes."""
    pieces: tuple[Piece, ...]
    """In the order of their bytes, without gaps; the first is the header."""


class Tally:
    """What reading has cost so far. Any thread may add to it."""

    def __init__(self) -> None:
        self.bytes = 0
        self.hashing_seconds = 0.0
        """Threads added up."""
        self._lock = threading.Lock()

    def add(self, count: int, hashing_seconds: float) -> None:
        with self._lock:
            self.bytes += count
            self.hashing_seconds += hashing_seconds


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that lie together in one file, and go together to one place in memory."""

    file: int
    offset: int
    target: memoryview
    whole: tuple[int, ...] = ()
    """Numbers of the file's pieces of which the span consists; none: it is a part of a piece that is not hashed."""


class VerifyingReader:
    """Reads spans of a checkpoint's files and hashes the pieces that the level says. Any thread may call."""

    def __init__(self, store: Readable, files: Sequence[StoredFile], level: VerifyLevel) -> None:
        self.files = files
        self.tally = Tally()
        self.coverage = Coverage([len(file.pieces) for file in files])
        self._ahead = ReadAhead(store)
        self._hashed = [_hashed_pieces(len(file.pieces), level) for file in files]
        self._header_locks = [threading.Lock() for _ in files]
        self._pool = ThreadPoolExecutor(_THREADS, "checkpoint-reader")

    def hashes(self, file: int, piece: int) -> bool:
        """Whether this piece is hashed when it is read."""
        return piece in self._hashed[file]

    def read(self, spans: Sequence[Span]) -> None:
        """Fills the targets of all `spans`. Raises CorruptCheckpoint at a wrong byte, StoreUnavailable."""
        if len(spans) == 1:
            self._read(spans[0])
        else:
            for _ in self._pool.map(self._read, spans):
                pass

    def _read(self, span: Span) -> None:
        if span.offset > 0 and self.hashes(span.file, 0):
            self._check_header(span.file)
        file = self.files[span.file]
        with reading(file.key):
            self._ahead.read_into(file.key, file.size, span.offset, span.target)
        started = time.perf_counter()
        for number in span.whole:
            if self.hashes(span.file, number):
                self._check(span, number)
        self.tally.add(len(span.target), time.perf_counter() - started)

    def _check_header(self, file: int) -> None:
        """Once for each file, however many threads come to it at the same time."""
        with self._header_locks[file]:
            if not self.coverage.has(file, 0):
                self._read(self._scratch(file, [0]))

    def _check(self, span: Span, number: int) -> None:
        file = self.files[span.file]
        piece = file.pieces[number]
        at = piece.offset - span.offset
        found = digest_of(span.target[at : at + piece.size])
        if found != piece.digest:
            raise CorruptCheckpoint(
                f"{file.key}: bytes {piece.offset}-{piece.offset + piece.size} are {name_of(found)}, "
                f"committed were {name_of(piece.digest)}"
            )
        self.coverage.add(span.file, number)

    def read_pieces(self, file: int, numbers: Sequence[int], done: Callable[[int], None] = lambda count: None) -> None:
        """Reads pieces of a file, in order, for the sake of their digests; `done` hears, on this thread, how many bytes
        have just been read, and may take its time. Raises as `read`."""
        runs = list(_runs(self.files[file].pieces, numbers))
        for at in range(0, len(runs), _THREADS):
            batch = [self._scratch(file, run) for run in runs[at : at + _THREADS]]
            self.read(batch)
            done(sum(len(span.target) for span in batch))

    def parts_of(self, file: int) -> Iterator[memoryview]:
        """All of a file in order, each part checked before it is given out. Raises as `read`."""
        for run in _runs(self.files[file].pieces, range(len(self.files[file].pieces))):
            span = self._scratch(file, run)
            self.read([span])
            yield span.target

    def _scratch(self, file: int, numbers: Sequence[int]) -> Span:
        pieces = self.files[file].pieces
        size = sum(pieces[number].size for number in numbers)
        return Span(file, pieces[numbers[0]].offset, memoryview(bytearray(size)), tuple(numbers))


def _runs(pieces: Sequence[Piece], numbers: Iterable[int]) -> Iterator[list[int]]:
    """`numbers` in runs that lie together and are small enough for one span."""
    run: list[int] = []
    size = 0
    for number in numbers:
        if run and (number != run[-1] + 1 or size + pieces[number].size > _SPAN_BYTES):
            yield run
            run, size = [], 0
        run.append(number)
        size += pieces[number].size
    if run:
        yield run


def _hashed_pieces(count: int, level: VerifyLevel) -> range | frozenset[int]:
    """Numbers of the pieces of a file that are hashed. The header's is 0."""
    if level == "full":
        return range(count)
    if level == "manifest":
        return range(0)
    if count < 2:
        return range(count)
    some = random.sample(range(1, count), math.ceil((count - 1) * _SAMPLED))  # nosec B311  # against accidents
    return frozenset({0, *some})


class VerifiedTensors:
    """The `engine.TensorSource` of a checkpoint."""

    def __init__(self, reader: VerifyingReader, tensors: Mapping[str, WholeTensor]) -> None:
        self._reader = reader
        self._tensors = tensors
        self._numbers = {
            (piece.file, piece.offset): (file, number)
            for file, stored in enumerate(reader.files)
            for number, piece in enumerate(stored.pieces)
        }

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor. Raises MissingTensor."""
        return self._tensor(name).shape

    def read(self, name: str) -> Array:
        """The whole tensor. Raises CorruptCheckpoint if a byte is wrong, MissingTensor if there is none."""
        tensor = self._tensor(name)
        return self._elements(tensor, 0, math.prod(tensor.shape)).reshape(tensor.shape)

    def read_range(self, name: str, start: int, stop: int) -> Array:
        """Elements [start, stop) of the flattened tensor, one-dimensional. Raises as `read`, and ValueError for a range
        that the tensor does not have."""
        tensor = self._tensor(name)
        if not 0 <= start <= stop <= math.prod(tensor.shape):
            raise ValueError(f"{name}: elements {start} to {stop} of {math.prod(tensor.shape)}")
        return self._elements(tensor, start, stop)

    def _tensor(self, name: str) -> WholeTensor:
        if name not in self._tensors:
            raise MissingTensor(name)
        return self._tensors[name]

    def _elements(self, tensor: WholeTensor, start: int, stop: int) -> Array:
        dtype = numpy_dtype(tensor.dtype)
        flat = np.empty(stop - start, dtype)
        first = start * dtype.itemsize
        raw = flat.view(np.uint8).data if flat.size else memoryview(b"")
        spans: list[Span] = []
        copies: list[tuple[memoryview, memoryview]] = []
        run = _Run()
        for at, piece in _pieces_of(tensor, first, first + len(raw)):
            skip, end = max(0, first - at), min(piece.size, first + len(raw) - at)
            begin, stop_byte = at + skip - first, at + end - first
            file, number = self._numbers[piece.file, piece.offset]
            if end - skip == piece.size:
                if not run.continues(file, piece):
                    spans += run.span(raw)
                    run = _Run(file, piece.offset, begin)
                run.take(number, piece)
            elif self._reader.hashes(file, number):
                whole = memoryview(bytearray(piece.size))
                spans.append(Span(file, piece.offset, whole, (number,)))
                copies.append((raw[begin:stop_byte], whole[skip:end]))
            else:
                spans.append(Span(file, piece.offset + skip, raw[begin:stop_byte]))
        self._reader.read([*spans, *run.span(raw)])
        for target, part in copies:
            target[:] = part
        return flat


@dataclass(slots=True)
class _Run:
    """Whole pieces of one tensor that lie together in a file: read at once, up to the size of a span."""

    file: int = -1
    offset: int = 0
    begin: int = 0
    """In the memory that is filled. Pieces that touch in a file touch there too: nothing lies between them."""
    size: int = 0
    numbers: list[int] = field(default_factory=list)

    def continues(self, file: int, piece: Piece) -> bool:
        return (self.file, self.offset + self.size) == (file, piece.offset) and self.size + piece.size <= _SPAN_BYTES

    def take(self, number: int, piece: Piece) -> None:
        self.numbers.append(number)
        self.size += piece.size

    def span(self, raw: memoryview) -> list[Span]:
        """One, or none for an empty run."""
        if not self.numbers:
            return []
        return [Span(self.file, self.offset, raw[self.begin : self.begin + self.size], tuple(self.numbers))]


def _pieces_of(tensor: WholeTensor, first: int, end: int) -> Iterator[tuple[int, Piece]]:
    """The pieces that hold bytes [first, end) of the tensor, each with its first byte in the tensor."""
    if first == end:
        return
    for number in range(first // LEAF_BYTES, (end - 1) // LEAF_BYTES + 1):
        at = number * LEAF_BYTES
        for piece in tensor.leaves[number]:
            if at < end and at + piece.size > first:
                yield at, piece
            at += piece.size


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Turns what a store says into what it means for a checkpoint."""
    try:
        yield
    except ObjectMissing as error:
        raise CorruptCheckpoint(str(error)) from error
    except OSError as error:
        if is_damage(error):
            raise CorruptCheckpoint(f"{key}: the disk cannot read it: {error}") from error
        raise StoreUnavailable(f"checkpoint store: {error}") from error
