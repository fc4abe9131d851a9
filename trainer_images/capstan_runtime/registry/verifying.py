"""Whether a version is still what was registered: its entry, its checkpoint, and every byte of that."""

from collections.abc import Callable

from capstan_runtime.checkpoint.layout import SaveName
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.signing import NotSigned, check_signature
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.errors import CorruptCheckpoint
from capstan_runtime.registry.entry import ModelEntry, entry_key
from capstan_runtime.registry.registry import Registry


def checkpoint_of(entry: ModelEntry, run_store: Store) -> OpenCheckpoint:
    """The checkpoint that was registered, everything proven but the tensors' bytes. `run_store`: see `store_of`.
    Raises CorruptCheckpoint, StoreUnavailable, LaterFormat."""
    name = SaveName.parse(entry.checkpoint)
    if name is None:
        raise CorruptCheckpoint(f"{entry.name} {entry.version}: {entry.checkpoint[:80]!r} is no checkpoint's folder")
    opened = open_checkpoint(run_store, name)
    if opened.root != entry.root:
        raise CorruptCheckpoint(
            f"{entry.name} {entry.version}: {run_store.place}/{name} is {opened.root}, registered was {entry.root}"
        )
    return opened


def store_of(registry: Registry, entry: ModelEntry) -> Store:
    """That of the run which made it. Raises CorruptCheckpoint for what would lead out of the registry's store."""
    parts = entry.run.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise CorruptCheckpoint(f"{entry.name} {entry.version}: {entry.run[:80]!r} is no folder of a run")
    return open_store(f"{registry.store.place.rstrip('/')}/{entry.run}", registry.environ)


def require_signed(registry: Registry, entry: ModelEntry, public_key: str) -> None:
    """Returns when the entry carries a signature of the owner of `public_key`, the text of a PEM. Raises NotSigned,
    ConfigError for what is no key, and as `Registry.entry`."""
    _, content = registry.sealed_entry(entry.name, entry.version)
    try:
        check_signature(content.data, content.signature, public_key)
    except NotSigned as error:
        what = "does not carry a signature of this key" if content.signature else "is not signed"
        raise NotSigned(f"{entry_key(entry.name, entry.version)}: {what}") from error


def verify_entry(
    registry: Registry,
    entry: ModelEntry,
    public_key: str | None,
    opened: Callable[[OpenCheckpoint], None] = lambda checkpoint: None,
    done: Callable[[int], None] = lambda count: None,
) -> None:
    """Returns when every byte is what was registered and, with `public_key`, the entry is signed. `opened` hears of the
    checkpoint before its bytes are read, `done` how many were. Raises CorruptCheckpoint, StoreUnavailable, OSError."""
    if public_key is not None:
        require_signed(registry, entry, public_key)
    checkpoint = checkpoint_of(entry, store_of(registry, entry))
    opened(checkpoint)
    checkpoint.verify("full", done)
