"""Sequences of tokens out of one long row: the bytes of text files, or ids that were made before.

Sample i is the tokens [i T, i T + T] (T + 1 of them): the inputs are all but the last, the targets all but the first.
"""

import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from capstan_runtime.contract.data import Text, Tokens
from capstan_runtime.contract.env import host_path
from capstan_runtime.data.fingerprint import fingerprint_of, fingerprint_of_file
from capstan_runtime.data.spec import Array, DataSpec, Ids, Samples
from capstan_runtime.errors import ConfigError

_STDLIB = "$(PYTHON_STDLIB)"
_NOT_STDLIB = frozenset({"site-packages", "dist-packages"})
"""Folders that installers put inside the standard library's; what is in them differs from machine to machine."""
_BYTE_VALUES = 256


@dataclass(frozen=True, slots=True)
class _Windows:
    """Overlapping by one token, so that every token but the first is a target once."""

    tokens: Array
    """[total], memory-mapped."""
    sequence_length: int
    vocabulary: int
    field: str

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.sequence_length

    def fetch(self, ids: Ids) -> tuple[Array, Array]:
        offsets = np.arange(self.sequence_length + 1, dtype=np.int64)
        raw = self.tokens[ids[:, None] * self.sequence_length + offsets]
        if raw.size and (largest := int(raw.max())) >= self.vocabulary:
            raise ConfigError(
                f"{self.field}.vocabulary: the data holds token {largest}, but every token must be below "
                f"{self.vocabulary}; set vocabulary to {largest + 1} or more, or check dtype"
            )
        windows = raw.astype(np.int32)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def open_text(config: Text, environ: Mapping[str, str]) -> tuple[Samples, DataSpec]:
    """The bytes of the files under `config.path` that match its pattern, sorted by path, with a 0 byte between files.

    They are strung together once into a temporary file that has no name, and mapped: memory stays free, and the file
    vanishes with the process.
    """
    field = "spec.data.text"
    files = _matching_files(config, environ)
    digest = blake3()
    with tempfile.TemporaryFile() as joined:
        for number, file in enumerate(files):
            contents = (b"\0" if number else b"") + file.read_bytes()
            digest.update(contents)
            joined.write(contents)
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
    return _Windows(tokens, config.sequence_length, _BYTE_VALUES, field), spec


def _matching_files(config: Text, environ: Mapping[str, str]) -> list[Path]:
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
        for file in root.glob(config.pattern)
        if file.is_file() and not (is_stdlib and _NOT_STDLIB.intersection(file.relative_to(root).parts))
    )
    if not found:
        raise ConfigError(
            f"spec.data.text.pattern: {config.pattern} matches no file under {config.path}; correct pattern or path"
        )
    return [root / file for file in found]


def open_tokens(config: Tokens, environ: Mapping[str, str]) -> tuple[Samples, DataSpec]:
    """The ids of one file, read through the page cache. Each one is checked against the vocabulary as it is fetched,
    the first MiB of them at once."""
    field = "spec.data.tokens"
    path = Path(host_path(config.path, environ))
    if not path.is_file():
        raise ConfigError(f"{field}.path: {config.path} does not exist in the pod; mount it, or correct the path")
    dtype = np.dtype(config.dtype).newbyteorder("<")
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise ConfigError(
            f"{field}.path: {config.path} has {size} bytes, no multiple of the {dtype.itemsize} of a {config.dtype}; "
            "check dtype, or write the file again"
        )
    total = size // dtype.itemsize
    _require_a_sample(total, config.sequence_length, field, config.path)
    samples = _Windows(np.memmap(path, dtype, "r"), config.sequence_length, config.vocabulary, field)
    samples.fetch(np.arange(min(len(samples), max(1, (1 << 20) // config.sequence_length)), dtype=np.int64))
    spec = DataSpec(
        kind="tokens",
        input_shape=(config.sequence_length,),
        outputs=config.vocabulary,
        fingerprint=fingerprint_of_file(path, "tokens", config.dtype, config.sequence_length, config.vocabulary),
    )
    return samples, spec


def _require_a_sample(tokens: int, sequence_length: int, field: str, source: str) -> None:
    if tokens < 2 * sequence_length + 1:
        raise ConfigError(
            f"{field}.sequenceLength: {sequence_length} needs {2 * sequence_length + 1} tokens for one sample to train "
            f"on and one to validate with, but {source} hold {tokens}; give more data or a smaller sequenceLength"
        )
