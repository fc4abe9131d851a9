"""A program's state, nested as it likes, as named tensors and one small document.

Tensors are called by their place: `{"params": {"weight": …}}` is `params/weight`, as in the checkpoints of Capstan's
own trainers, so `capstan checkpoint` shows, compares and converts them alike. Everything else is in the document, as
JSON: reading it runs nobody's code.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from capstan_runtime.checkpoint.safetensors import TYPES as SAVED_TYPES
from capstan_runtime.engine import Array, LocalTensor, TensorSource
from capstan_runtime.errors import ConfigError
from capstan_runtime.parallel.tiling import tile_evenly
from capstan_runtime.program.foreign import Kind, as_kind, dtype_of, elements, kind_of, shape_of

DOCUMENT = "program.json"
"""Name of the tensor of bytes that holds the document."""
_SCALARS = (bool, int, float, str)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor of the state."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    part: Callable[[int, int], Array]
    """Elements [start, stop), flattened, in host memory."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Tree:
    """A state taken apart."""

    document: Any
    """JSON: a scalar or None as it is; `{"dict": [[key, value], …]}`, `{"list": […]}`, `{"tuple": […]}` and
    `{"tensor": name, "of": library}`."""
    leaves: list[Leaf]


def take_apart(state: object) -> Tree:
    """Raises ConfigError, which names the place, for what cannot be saved."""
    leaves: dict[str, Leaf] = {}
    document = _document(state, (), leaves)
    return Tree(document, list(leaves.values()))


def _document(value: object, path: tuple[object, ...], leaves: dict[str, Leaf]) -> Any:
    kind = kind_of(value)
    if kind is not None:
        return {"tensor": _leaf(value, kind, path, leaves).name, "of": kind}
    if value is None or type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return {"dict": [[_key(key, path), _document(item, (*path, key), leaves)] for key, item in value.items()]}
    if type(value) in (list, tuple):
        assert isinstance(value, (list, tuple))
        items = [_document(item, (*path, number), leaves) for number, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    raise ConfigError(
        f"job.save: {_shown(path)} is of type {type(value).__name__}, which cannot be saved, because no code is kept "
        "in checkpoints; give arrays, numbers, text and None in dicts, lists and tuples (of a pytree: jax.tree.leaves)"
    )


def _key(key: object, path: tuple[object, ...]) -> object:
    if key is None or type(key) in _SCALARS:
        return key
    raise ConfigError(f"job.save: {_shown(path)} has the key {key!r}; keys are text or numbers: turn it into one")


def _leaf(value: Any, kind: Kind, path: tuple[object, ...], leaves: dict[str, Leaf]) -> Leaf:
    name = _shown(path)
    if name in leaves or name == DOCUMENT:
        raise ConfigError(f"job.save: two tensors would be called {name}; rename a key of one of them")
    if dtype_of(value) not in SAVED_TYPES:
        raise ConfigError(
            f"job.save: {name} has elements of type {dtype_of(value)}, which cannot be saved; "
            f"convert them to one of {', '.join(SAVED_TYPES)}"
        )
    leaf = leaves[name] = Leaf(name, shape_of(value), dtype_of(value), elements(value, kind, name))
    return leaf


def _shown(path: tuple[object, ...]) -> str:
    return "/".join(map(str, path)) or "state"


def share(tree: Tree, rank: int, world: int) -> Iterator[LocalTensor]:
    """This rank's even share of the tensors, which every rank holds in full; on rank 0 the document too."""
    if rank == 0:
        text = json.dumps(tree.document, separators=(",", ":")).encode()
        yield LocalTensor(DOCUMENT, (len(text),), 0, np.frombuffer(text, np.uint8))
    for part in tile_evenly([leaf.size for leaf in tree.leaves], rank, world):
        leaf = tree.leaves[part.tensor]
        yield LocalTensor(leaf.name, leaf.shape, part.start, leaf.part(part.start, part.stop))


def put_together(source: TensorSource) -> Any:
    """The state as it was saved. Raises ConfigError if no program has saved it, and as `source`."""
    try:
        text = source.read(DOCUMENT).tobytes()
    except KeyError:
        raise ConfigError(
            f"spec.program: the checkpoint has no {DOCUMENT}, so no program has saved it; start a new job"
        ) from None
    return _value(json.loads(text), source)


def _value(document: Any, source: TensorSource) -> Any:
    if not isinstance(document, dict):
        return document
    if "tensor" in document:
        return as_kind(source.read(document["tensor"]), document["of"])
    if "dict" in document:
        return {key: _value(item, source) for key, item in document["dict"]}
    if "list" in document:
        return [_value(item, source) for item in document["list"]]
    return tuple(_value(item, source) for item in document["tuple"])
