"""Labelled arrays in .npz, HDF5 and Zarr files; the latter two are read sample by sample, never whole."""

import errno
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from capstan_runtime.contract.data import Arrays
from capstan_runtime.contract.env import host_path
from capstan_runtime.data.fingerprint import fingerprint_of_file, fingerprint_of_folder
from capstan_runtime.data.spec import Array, BadSample, BadSamples, DataSpec, Ids, Samples
from capstan_runtime.errors import ConfigError

_FIELD = "spec.data.arrays"
_ENDINGS = ".npz, .h5, .hdf5, .zarr"
_READ_AT_ONCE = 65536
_MOST_NAMED = 20
"""Of a file's arrays in a message."""
_STORAGE_FAILS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH)
"""Tells of disks and of servers of files, never of what a file holds."""


class _Stored(Protocol):
    """What numpy, h5py and zarr arrays have in common."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _ArraySamples:
    inputs: Any
    """A `_Stored` [N, …]."""
    labels: Array
    """[N] int32; labels are small and needed whole to check them."""
    input_shape: tuple[int, ...]
    path: str
    """As the spec says it."""
    conditions: Array | None
    """[N, K] float32, small and needed whole as labels are; None: there are none."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """HDF5 is not safe for two threads."""

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, ids: Ids) -> tuple[Array, ...]:
        # HDF5 takes ascending distinct indices only, and every store likes them.
        distinct, back = np.unique(ids, return_inverse=True)
        with self.lock, _reading(self.path, was_checked=True):
            oindex = getattr(self.inputs, "oindex", None)
            rows = np.asarray(self.inputs[distinct] if oindex is None else oindex[distinct])
        inputs = rows[back].astype(np.float32)
        if rows.dtype == np.uint8:
            inputs /= np.float32(255.0)
        elif not np.isfinite(inputs).all():
            bad = np.unique(ids[~np.isfinite(inputs).reshape(len(ids), -1).all(axis=1)])
            raise BadSamples(
                f"{_FIELD}.inputs",
                [BadSample(int(each), f"sample {each}", "holds a NaN or an infinity") for each in bad],
            )
        more = () if self.conditions is None else (self.conditions[ids],)
        return inputs.reshape(len(ids), *self.input_shape), self.labels[ids], *more


def open_arrays(
    config: Arrays, environ: Mapping[str, str], alive: Callable[[], None] = lambda: None
) -> tuple[Samples, DataSpec]:
    """Inputs [N, H, W] or [N, H, W, C] are images, [N, F] are vectors; labels [N] are integers from 0.

    uint8 is scaled to [0, 1]; every other type keeps its values, as float32. There are as many classes as the largest
    label says. An .npz file is unpacked into memory, because it is compressed as a whole. `alive` is called for every
    file of a folder, and every 65,536 labels and conditions that are read.
    """
    path = Path(host_path(config.path, environ))
    if not path.exists():
        raise ConfigError(f"{_FIELD}.path: {config.path} does not exist in the pod; mount it, or correct the path")
    inputs, labels = (_member(path, config, name, what) for name, what in _names(config))
    with _reading(config.path):
        checked = _checked_labels(config, labels, alive)
        input_shape = _input_shape(config, inputs, len(checked))
        conditions = _conditions(path, config, len(checked), alive)
    spec = DataSpec(
        kind="vector" if len(input_shape) == 1 else "image",
        input_shape=input_shape,
        outputs=int(checked.max()) + 1,
        fingerprint=_fingerprint(path, inputs, checked, conditions, alive),
        condition=0 if conditions is None else conditions.shape[1],
    )
    return _ArraySamples(inputs, checked, input_shape, config.path, conditions), spec


@contextmanager
def _reading(path: str, *, was_checked: bool = False) -> Iterator[None]:
    """Raises ConfigError for whatever NumPy, HDF5 or Zarr raise of a broken file: what their parsers stumble over, of
    any type. Memory for arrays as large as a broken header says is among it.

    Errors of the storage stay what they are, for they pass: a run that has trained for days is to be tried again. Of a
    file that `was_checked` so does every error that has a number, which parsers cause by broken headers only, and a
    lack of memory.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _STORAGE_FAILS or (was_checked and (number is not None or isinstance(error, MemoryError))):
            raise
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{_FIELD}.path: {path} cannot be read as {Path(path).suffix}: {told}") from error


def _names(config: Arrays) -> tuple[tuple[str, str], tuple[str, str]]:
    return (config.inputs, "inputs"), (config.labels, "labels")


def _member(path: Path, config: Arrays, name: str, what: str) -> Any:
    """The array `name` of the file, opened as lazily as its format allows."""
    with _reading(config.path):
        container = _open_container(path, config)
        names = sorted(str(each) for each in container)
        found = container[name] if name in names else None
    if found is None or not hasattr(found, "shape"):
        raise ConfigError(f"{_FIELD}.{what}: {config.path} has no array {name!r}; it has {_listed(names)}")
    return found


def _listed(names: Sequence[str]) -> str:
    """In one line, whatever a file names its arrays."""
    shown = [name if name.isprintable() else repr(name) for name in names[:_MOST_NAMED]]
    more = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return ", ".join(shown + more) or "none"


def _open_container(path: Path, config: Arrays) -> Any:
    match path.suffix:
        case ".npz":
            return np.load(path, allow_pickle=False)
        case ".h5" | ".hdf5":
            import h5py

            return h5py.File(path, "r")
        case ".zarr":
            import zarr

            return zarr.open_group(str(path), mode="r")
        case _:
            raise ConfigError(f"{_FIELD}.path: {config.path} must end in one of {_ENDINGS}")


def _read(stored: Any, dtype: Any, alive: Callable[[], None]) -> Array:
    """All of it; where each element is a file of its own, that takes its time."""
    parts = []
    for start in range(0, max(1, stored.shape[0]), _READ_AT_ONCE):
        parts.append(np.asarray(stored[start : start + _READ_AT_ONCE], dtype))
        alive()
    return np.concatenate(parts)


def _checked_labels(config: Arrays, labels: _Stored, alive: Callable[[], None]) -> Array:
    where = f"{_FIELD}.labels: {config.labels!r}"
    if len(labels.shape) != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"{where} is {labels.dtype} of shape {labels.shape}; it must be one integer per sample")
    values = _read(labels, np.int64, alive)
    if not values.size:
        raise ConfigError(f"{where} is empty; give at least two samples")
    if values.min() < 0 or values.max() >= np.iinfo(np.int32).max:
        raise ConfigError(f"{where} holds {values.min()} … {values.max()}; class ids must count from 0")
    return values.astype(np.int32)


def _input_shape(config: Arrays, inputs: _Stored, num_labels: int) -> tuple[int, ...]:
    where = f"{_FIELD}.inputs: {config.inputs!r}"
    if len(inputs.shape) not in (2, 3, 4) or not all(inputs.shape):
        raise ConfigError(f"{where} has shape {inputs.shape}; it must be [N, F], [N, H, W] or [N, H, W, C], none of 0")
    if not (np.issubdtype(inputs.dtype, np.floating) or np.issubdtype(inputs.dtype, np.integer)):
        raise ConfigError(f"{where} has type {inputs.dtype}; it must be floating-point or integer")
    if inputs.shape[0] != num_labels:
        raise ConfigError(
            f"{where} has {inputs.shape[0]} samples but {config.labels!r} has {num_labels}; they must be as many"
        )
    return (*inputs.shape[1:], 1) if len(inputs.shape) == 3 else tuple(inputs.shape[1:])


def _conditions(path: Path, config: Arrays, num_labels: int, alive: Callable[[], None]) -> Array | None:
    if config.condition is None:
        return None
    where = f"{_FIELD}.condition: {config.condition!r}"
    stored = _member(path, config, config.condition, "condition")
    if len(stored.shape) != 2 or stored.shape[0] != num_labels or not stored.shape[1]:
        raise ConfigError(
            f"{where} has shape {stored.shape}; it must be [N, K] with a row for each of {num_labels} labels"
        )
    values = _read(stored, np.float32, alive)
    if not np.isfinite(values).all():
        raise ConfigError(f"{where} holds a NaN or an infinity; every condition must be finite")
    return values


def _fingerprint(
    path: Path, inputs: _Stored, labels: Array, conditions: Array | None, alive: Callable[[], None]
) -> str:
    more = () if conditions is None else (conditions.tobytes(),)
    facts = ("arrays", inputs.shape, str(inputs.dtype), labels.tobytes(), *more)
    if path.is_file():
        return fingerprint_of_file(path, *facts)
    return fingerprint_of_folder(path, *facts, alive=alive)
