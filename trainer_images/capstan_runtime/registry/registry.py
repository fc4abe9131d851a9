"""The registry in a store: versions that never change, and stages that move between them.

It keeps nothing in memory: each question reads the store, so any number of writers and readers may use one at a time.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from semver import Version

from capstan_runtime.checkpoint.layout import MODELS
from capstan_runtime.checkpoint.store import ObjectMissing, Store, is_damage
from capstan_runtime.contract.registry import Bump, is_version
from capstan_runtime.errors import ConfigError, CorruptCheckpoint
from capstan_runtime.registry.entry import (
    STAGES,
    VERSIONS,
    AnyRecord,
    ModelEntry,
    Promotion,
    Sealed,
    entry_key,
    model_key,
    promotion_key,
    sealed,
    unsealed,
)

_MOST_TRIES = 100
"""Others may have been quicker so often in a row: then somebody registers in a loop, and that is the trouble."""


IsSame = Callable[[ModelEntry], bool]
"""Whether what is registered is what was to be: then it is done, however often it is asked for."""
MakeEntry = Callable[[str], tuple[ModelEntry, bytes | None]]
"""Of a version: its entry, and a signature if there is to be one."""


class NotRegistered(ConfigError):
    """There is no such model, version or stage. The message lists what there is."""


class Taken(ConfigError):
    """The version, or the next promotion, is somebody else's."""


@dataclass(frozen=True, slots=True)
class Registry:
    """The models of one store."""

    store: Store
    environ: Mapping[str, str]
    """How the stores of runs below it are opened: see `open_store`."""

    def names(self) -> list[str]:
        """Of all models, sorted. Raises OSError."""
        return self.store.children(MODELS)

    def versions(self, name: str) -> list[str]:
        """Of a model, the newest by precedence first; none: nobody has registered it. Raises OSError."""
        found = [text for text in self.store.children(f"{model_key(name)}/{VERSIONS}") if is_version(text)]
        return sorted(found, key=Version.parse, reverse=True)

    def stages(self, name: str) -> dict[str, Promotion]:
        """The newest promotion to each stage. Raises OSError, CorruptCheckpoint, LaterFormat."""
        stages = self.store.children(f"{model_key(name)}/{STAGES}")
        found = {stage: self.newest_promotion(name, stage) for stage in stages}
        return {stage: promotion for stage, promotion in found.items() if promotion is not None}

    def entry(self, name: str, version: str) -> ModelEntry:
        """Raises NotRegistered, CorruptCheckpoint, LaterFormat, OSError."""
        return self.sealed_entry(name, version)[0]

    def sealed_entry(self, name: str, version: str) -> tuple[ModelEntry, Sealed]:
        """The same, and the bytes that a signature is over. Raises as `entry`."""
        key = entry_key(name, version)
        try:
            entry, content = self._read(ModelEntry, key)
        except ObjectMissing as error:
            raise NotRegistered(self.what_there_is(name, version)) from error
        if (entry.name, entry.version) != (name, version):
            raise CorruptCheckpoint(f"{key}: holds the entry of {entry.name} {entry.version}")
        return entry, content

    def history(self, name: str, stage: str) -> list[Promotion]:
        """All promotions to a stage, the newest first. Raises OSError, CorruptCheckpoint, LaterFormat."""
        return [self._promotion(name, stage, number) for number in reversed(self._numbers(name, stage))]

    def newest_promotion(self, name: str, stage: str) -> Promotion | None:
        """None: nobody has promoted anything to it. Raises as `history`."""
        numbers = self._numbers(name, stage)
        return self._promotion(name, stage, numbers[-1]) if numbers else None

    def promoted(self, name: str, stage: str) -> Promotion:
        """As `newest_promotion`; raises NotRegistered where that is None."""
        promotion = self.newest_promotion(name, stage)
        if promotion is None:
            known = ", ".join(sorted(self.stages(name))) or "none"
            raise NotRegistered(f"stage: {name} has no {stage} (stages: {known}); promote a version to it first")
        return promotion

    def add(self, entry: ModelEntry, is_same: IsSame, signature: bytes | None = None) -> ModelEntry:
        """The entry that has the version from now on, on disk: this one, or one before it that `is_same`. Raises Taken,
        and as `entry`."""
        self._put_new(entry_key(entry.name, entry.version), sealed(entry, signature))
        there = self.who_has(entry.name, entry.version, is_same)
        assert there is not None, "entries are never removed"
        return there

    def who_has(self, name: str, version: str, is_same: IsSame) -> ModelEntry | None:
        """The entry under this version; None: nobody has it. Raises Taken unless it `is_same`, and as `entry`."""
        if version not in self.versions(name):
            return None
        there = self.entry(name, version)
        if is_same(there):
            return there
        newest = Version.parse(self.versions(name)[0])
        raise Taken(
            f"version: {name} {version} is registered already, from {there.lineage.job} step {there.step} as "
            f"{there.root[:23]}, and versions never change; choose another, such as {newest.bump_patch()}"
        )

    def add_next(self, name: str, bump: Bump, is_same: IsSame, make: MakeEntry) -> ModelEntry:
        """`make(version)`'s entry under the version that follows the newest, counted up in `bump`; if there is one that
        `is_same`, that. Raises Taken when others are quicker 100 times, and as `entry`."""
        for _ in range(_MOST_TRIES):
            entries = (self.entry(name, version) for version in self.versions(name))
            known = next((entry for entry in entries if is_same(entry)), None)
            if known is not None:
                return known
            entry, signature = make(self.next_version(name, bump))
            if self._put_new(entry_key(name, entry.version), sealed(entry, signature)):
                return entry
        raise Taken(f"version: {name}: others have registered {_MOST_TRIES} versions meanwhile; name one yourself")

    def next_version(self, name: str, bump: Bump) -> str:
        """What follows the newest version; of a model that has none, 0.0.0 counted up. Raises OSError."""
        newest = next(iter(self.versions(name)), "0.0.0")
        return str(Version.parse(newest).next_version(bump))

    def promote(self, name: str, version: str, stage: str, by: str, expected: str | None = None) -> Promotion:
        """The stage means the version from now on, and all readers see either the old or the new one. A stage that
        means it already is left as it is.

        `expected`: the version that the stage must mean now, lest two people overrule each other unawares. Raises
        NotRegistered, Taken, CorruptCheckpoint, LaterFormat, OSError.
        """
        entry = self.entry(name, version)
        for _ in range(_MOST_TRIES):
            before = self.newest_promotion(name, stage)
            previous = before.version if before is not None else None
            if expected is not None and previous != expected:
                raise Taken(
                    f"stage: {name} {stage} is {previous or 'nothing yet'}, not {expected} as was expected; look at "
                    "what was promoted meanwhile, and promote again"
                )
            if before is not None and before.version == version:
                self.store.settle(f"{model_key(name)}/{STAGES}/{stage}")
                return before
            promotion = Promotion(
                name=name,
                stage=stage,
                number=before.number + 1 if before is not None else 1,
                version=version,
                root=entry.root,
                previous=previous,
                at=time.time(),
                by=by,
            )
            if self._put_new(promotion_key(name, stage, promotion.number), sealed(promotion)):
                return promotion
        raise Taken(f"stage: {name} {stage} was promoted {_MOST_TRIES} times meanwhile; find out who does so")

    def _put_new(self, key: str, content: bytes) -> bool:
        """Whether these bytes are the object's now. In either case what there is survives a power cut: who is told
        that another has won may rely on it."""
        is_won = self.store.put_new(key, content)
        self.store.settle(key.rpartition("/")[0])
        # An answer that was lost on its way makes a winner look like a loser; the content tells.
        return is_won or self.store.get(key) == content

    def _numbers(self, name: str, stage: str) -> list[int]:
        found = self.store.children(f"{model_key(name)}/{STAGES}/{stage}")
        return sorted(int(text) for text in found if len(text) == 12 and text.isdecimal())

    def _promotion(self, name: str, stage: str, number: int) -> Promotion:
        key = promotion_key(name, stage, number)
        promotion, _ = self._read(Promotion, key)
        if (promotion.name, promotion.stage, promotion.number) != (name, stage, number):
            raise CorruptCheckpoint(f"{key}: holds promotion {promotion.number} of {promotion.name} {promotion.stage}")
        return promotion

    def _read(self, kind: type[AnyRecord], key: str) -> tuple[AnyRecord, Sealed]:
        try:
            return unsealed(kind, key, self.store.get(key))
        except OSError as error:
            if is_damage(error):
                raise CorruptCheckpoint(f"{key}: the disk cannot read it: {error}") from error
            raise

    def what_there_is(self, name: str, version: str | None = None) -> str:
        """One line for who asked for what is not there; `version` None: for any of the model's. Raises OSError."""
        versions = self.versions(name)
        if not versions:
            known = ", ".join(self.names()[:10]) or "none"
            return f"name: {name} is not registered in {self.store.place} (models: {known}); register it first"
        shown = ", ".join(versions[:10])
        return f"version: {name} has no version {version} (versions: {shown}); choose one, or register it"
