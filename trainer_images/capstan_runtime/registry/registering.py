"""From a committed checkpoint to a version of a model.

In this order: the checkpoint is pinned, so that retention leaves it; all its bytes are proven; then the one object is
written that makes it a version. Whoever dies in between leaves a checkpoint too many, and never a version whose bytes
may go or were not proven.
"""

import getpass
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

from capstan_runtime.checkpoint.layout import COMMIT, QUARANTINED, SaveName
from capstan_runtime.checkpoint.manifest import Manifest, canonical_bytes
from capstan_runtime.checkpoint.marks import pin_registered, verified_at
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint, read_manifest
from capstan_runtime.checkpoint.signing import sign_manifest
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.registry import Bump
from capstan_runtime.errors import ConfigError, CorruptCheckpoint
from capstan_runtime.integers import integers_name
from capstan_runtime.low_rank import table_of
from capstan_runtime.registry.entry import Code, Lineage, ModelEntry
from capstan_runtime.registry.registry import IsSame, Registry

_PARAMETERS = "params/"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is to be registered."""

    store: Store
    """Of its run."""
    run: str
    """Folder of that in the registry's store; empty: it is the registry's."""
    checkpoint: SaveName
    public_key: str | None = None
    """PEM. Given: the checkpoint must be signed by this key."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """As what."""

    name: str
    version: str | None
    """None: `bump` says."""
    bump: Bump | None
    by: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Beside those that the checkpoint has."""
    config: Mapping[str, Any] | None = None
    code: Code | None = None
    signing_key: Path | None = None
    """PEM of an ECDSA key that signs the entry; None: it is not signed."""
    is_own: bool = False
    """The run asks for itself, and registers once: another save of its end, or one of an end that it came to again, is
    no other version."""

    def is_same(self, root: str | None, uid: str) -> IsSame:
        """What counts as registered already, for the checkpoint `root` of run `uid`."""

        def is_it(entry: ModelEntry) -> bool:
            return entry.root == root or (self.is_own and (entry.lineage.uid, entry.registered_by) == (uid, self.by))

        return is_it


def register(
    registry: Registry, candidate: Candidate, wanted: Wanted, done: Callable[[int], None] = lambda count: None
) -> ModelEntry:
    """The entry, on disk. A checkpoint that is a version of the model already stays that.

    A checkpoint that was read back whole after its commit is believed; of any other all bytes are read, and `done`
    hears how many. Raises CorruptCheckpoint, ConfigError (Taken too), StoreUnavailable, OSError.
    """
    store, name = candidate.store, candidate.checkpoint
    if store.size(f"{name}/{COMMIT}") is None:
        raise ConfigError(f"checkpoint: {store.place}/{name} is not committed; register one that is")
    if store.size(f"{name}/{QUARANTINED}") is not None:
        raise CorruptCheckpoint(f"{store.place}/{name} is quarantined; register one that is whole")
    if wanted.version is not None:
        root, manifest = read_manifest(store, name)
        # Who is refused leaves no pin behind.
        registry.who_has(wanted.name, wanted.version, wanted.is_same(root, manifest.run))
    pin_registered(store, name, wanted.name)
    opened = open_checkpoint(store, name, candidate.public_key)  # only now: until it is pinned, retention may take it
    if verified_at(store, name, opened.root) is None:
        opened.verify("full", done)

    def make(version: str) -> tuple[ModelEntry, bytes | None]:
        entry = _entry(opened, candidate.run, wanted, version)
        key = wanted.signing_key
        return entry, sign_manifest(canonical_bytes(entry), key) if key is not None else None

    is_same = wanted.is_same(opened.root, opened.manifest.run)
    if wanted.version is not None:
        entry, signature = make(wanted.version)
        return registry.add(entry, is_same, signature)
    assert wanted.bump is not None
    return registry.add_next(wanted.name, wanted.bump, is_same, make)


def _entry(opened: OpenCheckpoint, run: str, wanted: Wanted, version: str) -> ModelEntry:
    manifest = opened.manifest
    return ModelEntry(
        name=wanted.name,
        version=version,
        root=opened.root,
        logical=manifest.logical,
        run=run,
        checkpoint=str(opened.name),
        step=manifest.step,
        framework=manifest.framework,
        size_bytes=opened.size,
        parameters=_parameters(manifest),
        metrics={**manifest.figures, **wanted.metrics},
        model=manifest.signature,
        lineage=Lineage(
            job=manifest.job,
            uid=manifest.run,
            parent=manifest.parent,
            data_fingerprint=manifest.trainer.data_fingerprint,
            seed=manifest.trainer.seed,
            config=dict(wanted.config) if wanted.config is not None else None,
            code=wanted.code,
        ),
        registered_at=time.time(),
        registered_by=wanted.by,
    )


def _parameters(manifest: Manifest) -> int:
    """Elements of all parameters. What integers of 4 bits are of, the model knows."""
    held = {one.name: one for one in manifest.tensors}
    as_they_are = sum(prod(one.shape) for name, one in held.items() if name.startswith(_PARAMETERS))
    table = () if manifest.signature is None else table_of(manifest.signature)
    return as_they_are + sum(spec.size for spec in table if integers_name(spec.name) in held)


def this_code(image: str | None) -> Code:
    """What runs here."""
    try:
        return Code(package=version("capstan"), image=image)
    except PackageNotFoundError:  # the folder was copied, and nothing installed
        return Code(package="unknown", image=image)


def this_user() -> str:
    """`user@host`, as far as the machine knows."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user has no name
        return f"somebody@{socket.gethostname()}"
