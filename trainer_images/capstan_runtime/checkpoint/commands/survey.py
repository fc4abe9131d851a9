"""What a store holds: every save in whatever condition, why it does not count, and everything that is not ours."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from capstan_runtime.checkpoint.candidates import Candidate, is_superseded, look_at
from capstan_runtime.checkpoint.claims import newest_claim
from capstan_runtime.checkpoint.layout import CLAIMS, COMMIT, PINNED, SHARDS, VERIFIED, SaveName, is_beside_checkpoints
from capstan_runtime.checkpoint.manifest import Claim, Manifest
from capstan_runtime.checkpoint.marks import verified_at
from capstan_runtime.checkpoint.safetensors import item_bytes
from capstan_runtime.checkpoint.store import Store


class Condition(StrEnum):
    """Only what is Committed is resumed from."""

    COMMITTED = "Committed"
    QUARANTINED = "Quarantined"
    CORRUPT = "Corrupt"
    UNREADABLE = "Unreadable"
    SUPERSEDED = "Superseded"
    LATER = "LaterFormat"
    TORN = "Torn"


@dataclass(frozen=True, slots=True)
class Row:
    """One save."""

    name: SaveName
    condition: Condition
    problem: str | None
    """Why it does not count; None: it does."""
    root: str | None
    manifest: Manifest | None
    """None, as `root`, where it cannot be read."""
    size: int
    """Bytes of its tensors; where there is no manifest, of whatever is there."""
    verified_at: float | None
    is_pinned: bool

    def document(self) -> dict[str, Any]:
        """The fields of `ls --output json`; names stay as they are."""
        manifest = self.manifest
        return {
            "name": str(self.name),
            "step": self.name.step,
            "fence": self.name.fence,
            "condition": self.condition,
            "problem": self.problem,
            "root": self.root,
            "logical": manifest.logical if manifest else None,
            "parent": manifest.parent if manifest else None,
            "job": manifest.job if manifest else None,
            "run": manifest.run if manifest else None,
            "framework": manifest.framework if manifest else None,
            "world": manifest.world if manifest else None,
            "bytes": self.size,
            "createdAt": manifest.created_at if manifest else None,
            "verifiedAt": self.verified_at,
            "pinned": self.is_pinned,
            "metrics": manifest.figures if manifest else {},
        }


@dataclass(frozen=True, slots=True)
class Survey:
    """One look at one store."""

    place: str
    rows: tuple[Row, ...]
    """The oldest step first: what matters most is nearest to the prompt."""
    foreign: tuple[str, ...]
    """Names of what is not ours. Nobody touches it."""

    def document(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "checkpoints": [row.document() for row in self.rows],
            "foreign": list(self.foreign),
        }


def survey(store: Store) -> Survey:
    """Raises OSError, StoreUnavailable."""
    rows: list[Row] = []
    foreign: list[str] = []
    claims: dict[str, Claim | None] = {}
    for text in store.children():
        if text == CLAIMS or is_beside_checkpoints(text):
            continue
        name = SaveName.parse(text)
        marks, candidate = look_at(store, name) if name is not None else (frozenset(), None)
        if name is None or (not marks and store.size(text) is not None):
            foreign.append(text)
        elif COMMIT not in marks:
            rows.append(Row(name, Condition.TORN, "is not committed", None, None, _size_of(store, name), None, False))
        elif candidate is not None:
            rows.append(_row(store, candidate, claims))
    return Survey(store.place, tuple(sorted(rows, key=lambda row: row.name)), tuple(foreign))


def _row(store: Store, candidate: Candidate, claims: dict[str, Claim | None]) -> Row:
    """`claims`: the newest of each run, as far as it has been looked up."""
    name, root, manifest = candidate.name, candidate.root, candidate.manifest
    is_pinned = PINNED in candidate.marks
    if candidate.is_unreadable:
        return Row(name, Condition.UNREADABLE, candidate.problem, None, None, 0, None, is_pinned)
    if root is None or manifest is None:
        condition = Condition.LATER if candidate.is_later else Condition.CORRUPT
        return Row(name, condition, candidate.problem, None, None, _size_of(store, name), None, is_pinned)
    if manifest.run not in claims:
        claims[manifest.run] = newest_claim(store, manifest.run)
    claim = claims[manifest.run]
    condition, problem = Condition.COMMITTED, None
    if candidate.is_quarantined:
        condition, problem = Condition.QUARANTINED, candidate.problem
    elif claim is not None and is_superseded(candidate, claim):
        condition, problem = Condition.SUPERSEDED, f"was committed after fence {claim.fence} had taken over"
    proven = verified_at(store, name, root) if VERIFIED in candidate.marks else None
    return Row(name, condition, problem, root, manifest, _state_bytes(manifest), proven, is_pinned)


def _state_bytes(manifest: Manifest) -> int:
    return sum(math.prod(tensor.shape) * item_bytes(tensor.dtype) for tensor in manifest.tensors)


def _size_of(store: Store, name: SaveName) -> int:
    folders = (str(name), f"{name}/{SHARDS}")
    return sum(store.size(f"{folder}/{each}") or 0 for folder in folders for each in store.children(folder))
