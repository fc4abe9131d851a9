"""`diff`: which tensors of two checkpoints are not the same, and by how much."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from capstan_runtime.checkpoint.commands.text import counted, print_table, short
from capstan_runtime.checkpoint.manifest import TensorEntry
from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.safetensors import item_bytes
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.engine import Array

_READ_BYTES = 64 << 20
"""Of each of the two at once: bounds the memory."""


@dataclass(frozen=True, slots=True)
class Change:
    """A tensor that both have, with other content."""

    name: str
    was: str
    """Type and shape in the first."""
    now: str
    elements: int
    """Of the first."""
    changed: int | None
    """Elements whose bits are not the same; None: type or shape is not."""
    max_difference: float | None
    """Largest absolute difference of two finite elements; None: as `changed`, or there are none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two states."""

    added: list[str]
    removed: list[str]
    changes: list[Change]
    same: int
    """Tensors whose digests agree."""


def compare(one: OpenCheckpoint, other: OpenCheckpoint) -> Difference:
    """From `one` to `other`. Only tensors whose digests differ are read, and verified as they are.

    Raises CorruptCheckpoint, StoreUnavailable.
    """
    ours = {entry.name: entry for entry in one.manifest.tensors}
    theirs = {entry.name: entry for entry in other.manifest.tensors}
    both = sorted(ours.keys() & theirs.keys())
    differing = [name for name in both if ours[name] != theirs[name]]
    return Difference(
        added=sorted(theirs.keys() - ours.keys()),
        removed=sorted(ours.keys() - theirs.keys()),
        changes=[_change(one, other, ours[name], theirs[name]) for name in differing],
        same=len(both) - len(differing),
    )


def _change(one: OpenCheckpoint, other: OpenCheckpoint, was: TensorEntry, now: TensorEntry) -> Change:
    elements = math.prod(was.shape)
    changed: int | None = None
    most: float | None = None
    if (was.dtype, was.shape) == (now.dtype, now.shape):
        changed = 0
        for before, after in _parts(one, other, was):
            width = f"u{before.dtype.itemsize}"
            changed += int(np.count_nonzero(before.view(width) != after.view(width)))
            apart = _distance(before, after)
            most = apart if most is None else most if apart is None else max(most, apart)
    return Change(was.name, _form(was), _form(now), elements, changed, most)


def _parts(one: OpenCheckpoint, other: OpenCheckpoint, entry: TensorEntry) -> Iterator[tuple[Array, Array]]:
    ours, theirs = one.tensors(), other.tensors()
    elements, step = math.prod(entry.shape), _READ_BYTES // item_bytes(entry.dtype)
    for start in range(0, elements, step):
        stop = min(start + step, elements)
        yield ours.read_range(entry.name, start, stop), theirs.read_range(entry.name, start, stop)


def _distance(before: Array, after: Array) -> float | None:
    """None when no two elements are finite."""
    wide = before.astype(np.float64), after.astype(np.float64)
    is_finite = np.isfinite(wide[0]) & np.isfinite(wide[1])
    return float(np.abs(wide[0] - wide[1])[is_finite].max()) if is_finite.any() else None


def _form(entry: TensorEntry) -> str:
    return f"{entry.dtype}[{', '.join(map(str, entry.shape))}]"


def diff(one: OpenCheckpoint, other: OpenCheckpoint, output: str) -> int:
    """0, whether they differ or not. Raises as `compare`."""
    found = compare(one, other)
    is_same = one.manifest.logical == other.manifest.logical
    if output == "json":
        sides = {
            side: {
                "place": opened.store.place,
                "name": str(opened.name),
                "step": opened.name.step,
                "root": opened.root,
                "logical": opened.manifest.logical,
            }
            for side, opened in (("a", one), ("b", other))
        }
        changes = [
            {"maxAbsDifference" if key == "max_difference" else key: value for key, value in asdict(each).items()}
            for each in found.changes
        ]
        document = {
            **sides,
            "sameState": is_same,
            "added": found.added,
            "removed": found.removed,
            "changed": changes,
            "same": found.same,
        }
        print(json.dumps(document, indent=2))
        return ExitCode.OK
    for side, opened in (("a", one), ("b", other)):
        print(f"{side}  {opened.store.place}/{opened.name}  logical {short(opened.manifest.logical)}")
    for name in found.removed:
        print(f"only in a: {name}")
    for name in found.added:
        print(f"only in b: {name}")
    if found.changes:
        print_table(("TENSOR", "TYPE", "CHANGED", "MAX ABS DIFFERENCE"), map(_cells, found.changes))
    verdict = "the same state, digest by digest" if is_same else "different states"
    print(f"{verdict}: {counted(found.same, 'tensor')} the same, {len(found.changes)} not")
    return ExitCode.OK


def _cells(change: Change) -> tuple[str, ...]:
    if change.changed is None:
        return change.name, f"{change.was} -> {change.now}", "all", "-"
    apart = "-" if change.max_difference is None else f"{change.max_difference:.6g}"
    return change.name, change.was, f"{change.changed:,} of {change.elements:,}", apart
