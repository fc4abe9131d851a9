"""A checkpoint as plain safetensors files with a model card, for everything that knows nothing of Capstan.

Tensors are whole, parameters have the names of their modules, and every byte is verified while it is read. The folder
appears when it is complete: who finds it may use it.
"""

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from blake3 import blake3

from capstan_runtime.checkpoint.digest import LEAF_BYTES
from capstan_runtime.checkpoint.layout import PART
from capstan_runtime.checkpoint.manifest import Manifest, TensorEntry
from capstan_runtime.checkpoint.model_card import Provenance, WrittenFile, model_card
from capstan_runtime.checkpoint.safetensors import framed_header, item_bytes
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError
from capstan_runtime.integers import INTEGERS, SCALES

FILE_BYTES = 5_000_000_000
"""Tensor bytes of one file at most; a single larger tensor has a file of its own. What model hubs take."""
_READ_BYTES = 16 * LEAF_BYTES
"""Read at once: bounds the memory, whatever the size of a tensor."""
_PARAMETERS, _AVERAGES = "params/", "ema/"
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written."""

    folder: Path
    files: tuple[WrittenFile, ...]
    tensors: int

    @property
    def size(self) -> int:
        """Bytes of all safetensors files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the checkpoint and what it is called outside."""

    entry: TensorEntry
    name: str

    @property
    def elements(self) -> int:
        return math.prod(self.entry.shape)

    @property
    def size(self) -> int:
        return self.elements * item_bytes(self.entry.dtype)


def convert(
    root: str,
    manifest: Manifest,
    source: TensorSource,
    target: Path,
    *,
    with_optimizer: bool = False,
    file_bytes: int = FILE_BYTES,
    done: Callable[[int], None] = lambda count: None,
) -> Converted:
    """The new folder `target`, complete and on disk; until then there is none.

    `done` hears how many bytes were copied since the last call. Raises CorruptCheckpoint from `source`, ConfigError
    when `target` exists or nothing is to be written, OSError.
    """
    if target.exists() or target.is_symlink():
        raise ConfigError(f"--to: {target} exists; give a folder that does not, it is made")
    tensors = _chosen(manifest, with_optimizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PART}")
    part.mkdir()
    try:
        provenance = Provenance(root, manifest, with_optimizer)
        files = tuple(_write_files(part, tensors, source, provenance, file_bytes, done))
        _write(part / CARD, model_card(provenance, files, sum(tensor.elements for tensor in tensors)).encode())
        _sync_folder(part)
        part.rename(target)
        _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # what matters is the error on its way
        raise
    return Converted(target, files, len(tensors))


def _chosen(manifest: Manifest, with_optimizer: bool) -> list[_Tensor]:
    """Under the names of their modules: of what the run kept an average of, the average, else the tensor itself.
    Weights that are integers stay that, and their scales are `<name>.scales`."""
    averaged = {entry.name.removeprefix(_AVERAGES) for entry in manifest.tensors if entry.name.startswith(_AVERAGES)}
    chosen = {
        entry.name: entry.name.removeprefix(prefix)
        for entry in manifest.tensors
        for prefix in (_AVERAGES, _PARAMETERS)
        if entry.name.startswith(prefix) and (prefix == _AVERAGES or entry.name.removeprefix(prefix) not in averaged)
    }
    chosen |= {
        entry.name: f"{entry.name.removeprefix(prefix)}{suffix}"
        for entry in manifest.tensors
        for prefix, suffix in ((INTEGERS, ""), (SCALES, ".scales"))
        if entry.name.startswith(prefix)
    }
    tensors = [
        _Tensor(entry, chosen.get(entry.name, entry.name))
        for entry in manifest.tensors
        if with_optimizer or entry.name in chosen
    ]
    if not tensors:
        raise ConfigError(f"the checkpoint of step {manifest.step} has no parameters; --optimizer takes all tensors")
    names = [tensor.name for tensor in tensors]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise ConfigError(f"two tensors of the checkpoint would be called {min(twice)}; leave out --optimizer")
    return tensors


def _write_files(
    folder: Path,
    tensors: Sequence[_Tensor],
    source: TensorSource,
    provenance: Provenance,
    file_bytes: int,
    done: Callable[[int], None],
) -> Iterator[WrittenFile]:
    groups = list(_grouped(tensors, file_bytes))
    total = len(groups)
    weights: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = MODEL if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
        weights |= {tensor.name: name for tensor in group}
        yield _write_file(folder / name, group, source, provenance, done)
    if total > 1:
        size = sum(tensor.size for tensor in tensors)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weights.items()))}
        _write(folder / INDEX, json.dumps(index, indent=2).encode())


def _grouped(tensors: Iterable[_Tensor], file_bytes: int) -> Iterator[list[_Tensor]]:
    """Tensors file by file, in the order of their names; no tensor is cut."""
    group: list[_Tensor] = []
    size = 0
    for tensor in tensors:
        if group and size + tensor.size > file_bytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.size
    yield group


def _write_file(
    path: Path, group: Sequence[_Tensor], source: TensorSource, provenance: Provenance, done: Callable[[int], None]
) -> WrittenFile:
    ordered = sorted(group, key=lambda tensor: -item_bytes(tensor.entry.dtype))  # so that all are aligned
    hasher = blake3()
    with path.open("wb") as file:

        def append(data: bytes | memoryview) -> None:
            file.write(data)
            hasher.update(data)

        append(_header(ordered, provenance))
        for tensor in ordered:
            for data in _bytes_of(tensor, source):
                append(data)
                done(len(data))
        _to_disk(file)
        size = file.tell()
    return WrittenFile(path.name, size, f"blake3:{hasher.hexdigest()}")


def _header(ordered: Sequence[_Tensor], provenance: Provenance) -> bytes:
    # Readers of models ask for `format`, the framework whose layout of weights it is: [outputs, inputs], as in torch.
    header: dict[str, object] = {"__metadata__": {"format": "pt", **provenance.labels()}}
    offset = 0
    for tensor in ordered:
        end = offset + tensor.size
        header[tensor.name] = {
            "dtype": tensor.entry.dtype,
            "shape": list(tensor.entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    return framed_header(header)


def _bytes_of(tensor: _Tensor, source: TensorSource) -> Iterator[memoryview]:
    step = max(1, _READ_BYTES // item_bytes(tensor.entry.dtype))
    for start in range(0, tensor.elements, step):
        part = source.read_range(tensor.entry.name, start, min(start + step, tensor.elements))
        yield part.view(np.uint8).data


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _to_disk(file)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
