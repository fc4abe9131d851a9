"""What the arguments STORE and CHECKPOINT mean."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.commands.survey import Condition, Row, survey
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import CLAIMS, MODELS, SaveName
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.errors import ConfigError

_DEEPEST = 8
"""Folders below the place that are looked into; a run's store is at most <mount>/<namespace>/<job>/<uid> deep."""
_ROOT = re.compile(r"(?:blake3:([0-9a-f]{4,64})|([0-9a-f]{6,64}))")
NEWEST = "newest"
_LOST = (Condition.QUARANTINED, Condition.CORRUPT, Condition.UNREADABLE, Condition.LATER)
"""Once committed, and not to be had now. What is Torn or Superseded nobody ever counted on."""
_LOST_AND_FOUND = "lost+found"
"""In the top folder of a volume with ext4: nobody's, and only root may look into it."""


class Usage(Exception):
    """The command line names something that is not there, or more than one thing. One line; exit code 2."""


@dataclass(frozen=True, slots=True)
class Place:
    """A store, and the one checkpoint in it if that was named."""

    store: Store
    only: SaveName | None = None


def find_places(place: str, environ: Mapping[str, str]) -> list[Place]:
    """The stores at and below `place`, in order; at least one. Raises Usage when there is none, OSError."""
    above, _, last = place.rstrip("/").rpartition("/")
    only = SaveName.parse(last)
    if only is not None:
        store = _opened(above or ("/" if place.startswith("/") else "."), environ)
        if not store.children(last):
            raise Usage(f"STORE: there is no {last} in {store.place}")
        return [Place(store, only)]
    store = _opened(place, environ)
    found = list(_stores_below(store, "", _DEEPEST))
    if not found:
        raise Usage(f"STORE: there is no checkpoint in {store.place} or the {_DEEPEST} levels of folders below it")
    base = place.rstrip("/") or "/"
    return [Place(_opened(f"{base}/{prefix}" if prefix else place, environ)) for prefix in found]


def one_place(place: str, environ: Mapping[str, str], of_several: str = "name one of them") -> Place:
    """The one store that `place` means. Raises Usage when there are several, which says `of_several`, or none."""
    places = find_places(place, environ)
    if len(places) > 1:
        names = ", ".join(each.store.place for each in places[:3]) + (", …" if len(places) > 3 else "")
        raise Usage(f"STORE: there are {len(places)} stores below {place} ({names}); {of_several}")
    return places[0]


def _opened(place: str, environ: Mapping[str, str]) -> Store:
    try:
        store = open_store(place, environ)
    except ConfigError as error:
        raise Usage(f"STORE: {str(error).removeprefix('checkpoint store: ')}") from error
    if isinstance(store, FolderStore) and not Path(store.place).is_dir():
        raise Usage(f"STORE: {store.place} is not a folder; give a store, a checkpoint or a folder above them")
    return store


def _stores_below(store: Store, prefix: str, depth: int) -> Iterator[str]:
    names = store.children(prefix)
    if CLAIMS in names or any(SaveName.parse(name) is not None for name in names):
        yield prefix
        return
    for name in names if depth else []:
        if name in (_LOST_AND_FOUND, MODELS):
            continue
        below = f"{prefix}/{name}" if prefix else name
        if not isinstance(store, FolderStore) or _is_real_folder(Path(store.place, below)):
            yield from _stores_below(store, below, depth - 1)


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def chosen(place: Place, which: str | None, passed_over: Callable[[str], None]) -> SaveName:
    """The checkpoint that `which` names: `newest`, a step, the start of its root or logical digest, or its
    folder's name. `passed_over` hears, in one line, of what is newer than `newest` and does not count. Raises Usage
    unless there is exactly one; an exact name may also be of a save that was never committed."""
    if place.only is not None:
        if which is not None:
            raise Usage(f"CHECKPOINT: {place.only} is a checkpoint already; leave out {which}")
        return place.only
    if which is None:
        raise Usage(
            f"CHECKPOINT: {place.store.place} is a store; name one of its checkpoints, or list them with: "
            f"capstan checkpoint ls {shlex.quote(place.store.place)}"
        )
    exact = SaveName.parse(which)
    if exact is not None:
        if not place.store.children(str(exact)):
            raise Usage(f"CHECKPOINT: there is no {exact} in {place.store.place}")
        return exact
    rows = survey(place.store).rows
    name = _only_one(_matching(rows, which), which, place.store)
    if which == NEWEST and (newer := [each for each in rows if each.name > name and each.condition in _LOST]):
        told = "; ".join(f"step {each.name.step} is newer, and is {each.condition}: {each.problem}" for each in newer)
        passed_over(f"CHECKPOINT: the newest that counts is of step {name.step}; {told}")
    return name


def _matching(found: Sequence[Row], which: str) -> list[Row]:
    """Of several, those that count, if any of them does."""
    if which == NEWEST:
        return [each for each in found if each.condition == Condition.COMMITTED][-1:]
    matching = [each for each in found if _is_called(each, which)]
    return [each for each in matching if each.condition == Condition.COMMITTED] or matching


def _is_called(row: Row, which: str) -> bool:
    if which.isdecimal():
        return row.name.step == int(which)
    match = _ROOT.fullmatch(which)
    if match is None:
        raise Usage(
            f"CHECKPOINT: {which!r} is no step, digest or folder of a checkpoint; give 120, 5f0c2ea91b (6 digits or "
            f"more of its root or logical digest), {NEWEST} or the folder's name"
        )
    start = f"blake3:{match[1] or match[2]}"
    digests = [row.root, row.manifest.logical] if row.root is not None and row.manifest is not None else []
    return any(digest is not None and digest.startswith(start) for digest in digests)


def _only_one(found: list[Row], which: str, store: Store) -> SaveName:
    if not found:
        raise Usage(
            f"CHECKPOINT: {store.place} holds no checkpoint {which}; list them with: "
            f"capstan checkpoint ls {shlex.quote(store.place)}"
        )
    # Saved again by a later attempt, it is the same state, of which that one may know more.
    states = {_logical(each) for each in found}
    if len(found) > 1 and (len(states) > 1 or None in states):
        names = ", ".join(str(each.name) for each in found[:4])
        raise Usage(f"CHECKPOINT: {which} may mean any of {names}; give the folder's name")
    return max(each.name for each in found)


def _logical(row: Row) -> str | None:
    """Digest of its state; None: its manifest cannot be read."""
    return None if row.manifest is None else row.manifest.logical
