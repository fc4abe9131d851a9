"""Sequences of tokens out of one long row: the bytes of text files, or ids that were made before.

Sample i is the tokens [i T, i T + T] (T + 1 of them): the inputs are all but the last, the targets all but the first.
"""

import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from capstan_runtime.contract.data import Text, Tokens
from capstan_runtime.contract.env import host_path
from capstan_runtime.data.fingerprint import fingerprint_of, fingerprint_of_file, fingerprint_of_files
from capstan_runtime.data.spec import Array, BadSample, BadSamples, DataSpec, Ids, Samples
from capstan_runtime.errors import ConfigError

_STDLIB = "$(PYTHON_STDLIB)"
_NOT_STDLIB = frozenset({"site-packages", "dist-packages"})
"""Folders that installers put inside the standard library's; what is in them differs from machine to machine."""
_BYTE_VALUES = 256
_USUAL_PATTERN = "*.bin"
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _File:
    """One row of tokens."""

    name: str
    """For people."""
    tokens: Array
    """[total], memory-mapped."""


class _Windows:
    """Of one file after the other. Within one they overlap by one token: each but its first is a target once."""

    def __init__(self, files: Sequence[_File], sequence_length: int, vocabulary: int, field: str) -> None:
        self._files = files
        self._length = sequence_length
        self._vocabulary = vocabulary
        self._field = field
        self._ends = np.cumsum([(len(file.tokens) - 1) // sequence_length for file in files])
        """Of each file, the number of samples in it and all before it."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fetch(self, ids: Ids) -> tuple[Array, Array]:
        windows = np.empty((len(ids), self._length + 1), np.int32)
        offsets = np.arange(self._length + 1, dtype=np.int64)
        of_file = np.searchsorted(self._ends, ids, side="right")
        for number in np.unique(of_file):
            rows = np.flatnonzero(of_file == number)
            first = self._ends[number - 1] if number else 0
            raw = self._files[number].tokens[(ids[rows] - first)[:, None] * self._length + offsets]
            # Ids of 2^31 and more become negative.
            windows[rows] = raw
        if windows.size and (int(windows.max()) >= self._vocabulary or int(windows.min()) < 0):
            self._complain(ids, windows)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])

    def _complain(self, ids: Ids, windows: Array) -> None:
        found = windows.view(np.uint32)
        rows = np.flatnonzero((found >= self._vocabulary).any(axis=1))
        by_id = {int(ids[row]): int(found[row].max()) for row in rows}
        raise BadSamples(
            f"{self._field}.vocabulary",
            [
                BadSample(
                    sample,
                    f"sample {sample} in {self._files[int(np.searchsorted(self._ends, sample, side='right'))].name}",
                    f"holds token {largest}, but every token must be below {self._vocabulary}: set vocabulary to "
                    f"{largest + 1} or more, or check dtype",
                )
                for sample, largest in sorted(by_id.items())
            ],
        )


def open_text(
    config: Text, environ: Mapping[str, str], alive: Callable[[], None] = lambda: None
) -> tuple[Samples, DataSpec]:
    """The bytes of the files under `config.path` that match its pattern, sorted by path, with a 0 byte between files.

    They are strung together once into a temporary file that has no name, and mapped: memory stays free, and the file
    vanishes with the process. `alive` is called for every file that is found, and every 16 MiB that are read.
    """
    field = "spec.data.text"
    files = _matching_files(config, environ, alive)
    digest = blake3()
    with tempfile.TemporaryFile() as joined:
        for number, file in enumerate(files):
            for piece in _pieces(file, b"\0" if number else b""):
                digest.update(piece)
                joined.write(piece)
                alive()
        joined.flush()
        total = joined.tell()
        _require_a_sample(total, config.sequence_length, field, f"{len(files)} files")
        tokens = np.memmap(joined, np.uint8, "r", shape=(total,))  # the mapping outlives the file object
    spec = DataSpec(
        kind="tokens",
        input_shape=(config.sequence_length,),
        outputs=_BYTE_VALUES,
        fingerprint=fingerprint_of("text", config.sequence_length, digest.digest()),
    )
    return _Windows([_File(config.path, tokens)], config.sequence_length, _BYTE_VALUES, field), spec


def _pieces(path: Path, before: bytes) -> Iterator[bytes]:
    """`before`, and what is in the file."""
    yield before
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _matching_files(config: Text, environ: Mapping[str, str], alive: Callable[[], None]) -> list[Path]:
    is_stdlib = _STDLIB in config.path
    path = config.path.replace(_STDLIB, sysconfig.get_path("stdlib"))
    # The standard library is part of the image, never of a mount.
    root = Path(path if is_stdlib else host_path(path, environ))
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ConfigError(
            f"spec.data.text.path: {config.path} does not exist in the pod; mount it, or correct the path"
        )
    found = sorted(
        file.relative_to(root)
        for file in _glob(root, config.pattern, "spec.data.text", alive)
        if file.is_file() and not (is_stdlib and _NOT_STDLIB.intersection(file.relative_to(root).parts))
    )
    if not found:
        raise ConfigError(
            f"spec.data.text.pattern: {config.pattern} matches no file under {config.path}; correct pattern or path"
        )
    return [root / file for file in found]


def open_tokens(
    config: Tokens, environ: Mapping[str, str], alive: Callable[[], None] = lambda: None
) -> tuple[Samples, DataSpec]:
    """The ids of one file, or of all in a folder that match its pattern, sorted by path; read through the page cache.

    Each one is checked against the vocabulary as it is fetched. `alive` is called for every file that is found.
    """
    field = "spec.data.tokens"
    root = Path(host_path(config.path, environ))
    paths = [root] if root.is_file() else _matching(root, config, field, alive)
    dtype = np.dtype(config.dtype).newbyteorder("<")
    files: list[_File] = []
    for path in paths:
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise ConfigError(
                f"{field}.path: {path} has {size} bytes, no multiple of the {dtype.itemsize} of a {config.dtype}; "
                "check dtype, or write the file again"
            )
        if size:
            files.append(_File(path.name, np.memmap(path, dtype, "r")))
    # Of several files, one that is too short for a sample has none.
    total = max((len(file.tokens) for file in files), default=0) if len(paths) == 1 else _whole_windows(files, config)
    _require_a_sample(total, config.sequence_length, field, config.path)
    samples = _Windows(files, config.sequence_length, config.vocabulary, field)
    facts = ("tokens", config.dtype, config.sequence_length, config.vocabulary)
    if root.is_file():
        fingerprint = fingerprint_of_file(root, *facts)
    else:
        listing = [(path.relative_to(root).as_posix(), path.stat().st_size) for path in paths]
        fingerprint = fingerprint_of_files(root, listing, *facts)
    spec = DataSpec("tokens", (config.sequence_length,), config.vocabulary, fingerprint, config.end_of_text)
    return samples, spec


def _whole_windows(files: Sequence[_File], config: Tokens) -> int:
    """Tokens that are in some sample."""
    return 1 + sum((len(file.tokens) - 1) // config.sequence_length for file in files) * config.sequence_length


def _matching(root: Path, config: Tokens, field: str, alive: Callable[[], None]) -> list[Path]:
    path, pattern = config.path, config.pattern or _USUAL_PATTERN
    if not root.is_dir():
        raise ConfigError(f"{field}.path: {path} does not exist in the pod; mount it, or correct the path")
    found = sorted(file for file in _glob(root, pattern, field, alive) if file.is_file())
    if not found:
        raise ConfigError(f"{field}.pattern: {pattern} matches no file under {path}; correct pattern or path")
    return found


def _glob(root: Path, pattern: str, field: str, alive: Callable[[], None]) -> Iterator[Path]:
    try:
        for found in root.glob(pattern):
            alive()
            yield found
    except (NotImplementedError, ValueError) as error:  # it is absolute, or no glob at all
        raise ConfigError(
            f"{field}.pattern: {pattern} is no glob of files below path ({error}); give one such as **/*.txt"
        ) from error


def _require_a_sample(tokens: int, sequence_length: int, field: str, source: str) -> None:
    if tokens < 2 * sequence_length + 1:
        raise ConfigError(
            f"{field}.sequenceLength: {sequence_length} needs {2 * sequence_length + 1} tokens for one sample to train "
            f"on and one to validate with, but {source} hold {tokens}; give more data or a smaller sequenceLength"
        )
