"""Small objects beside a commit that say what somebody did with it: pinned it, or read it back.

They are no part of the checkpoint and no digest covers them. So none of them can make a checkpoint count that does
not, and one that is damaged is as good as none. A pin alone holds whatever its content: to keep too much is safe.
"""

import json
import time

from capstan_runtime.checkpoint.layout import PINNED, VERIFIED, SaveName
from capstan_runtime.checkpoint.store import ObjectMissing, Store, is_damage


def pin(store: Store, name: SaveName) -> None:
    """Retention keeps the checkpoint until `unpin`. Raises OSError."""
    _put_pin(store, name, registered_as(store, name))


def pin_registered(store: Store, name: SaveName, model: str) -> None:
    """The same for good: it is, or is about to be, a version of `model`, and versions stay. Raises OSError."""
    _put_pin(store, name, sorted({*registered_as(store, name), model}))


def registered_as(store: Store, name: SaveName) -> list[str]:
    """Names of the models that the checkpoint was pinned for by `pin_registered`. Raises OSError."""
    try:
        models = json.loads(store.get(f"{name}/{PINNED}")).get("registered", [])
        return [str(model) for model in models]
    except OSError as error:
        if not is_damage(error):
            raise
        return []
    except (ObjectMissing, ValueError, AttributeError, TypeError, RecursionError):
        return []


def _put_pin(store: Store, name: SaveName, registered: list[str]) -> None:
    note: dict[str, object] = {"at": time.time()}
    store.put(f"{name}/{PINNED}", [_note(note | {"registered": registered} if registered else note)])
    store.settle(str(name))


def unpin(store: Store, name: SaveName) -> None:
    """Undoes `pin`. Who asks has looked at `registered_as`. Raises OSError."""
    store.remove(f"{name}/{PINNED}")
    store.settle(str(name))


def is_pinned(store: Store, name: SaveName) -> bool:
    """Raises OSError."""
    return store.size(f"{name}/{PINNED}") is not None


def mark_verified(store: Store, name: SaveName, root: str, at: float) -> None:
    """Notes that all bytes below `root` were read back at `at`, seconds since 1970. Raises OSError."""
    store.put(f"{name}/{VERIFIED}", [_note({"root": root, "at": at})])
    store.settle(str(name))


def verified_at(store: Store, name: SaveName, root: str) -> float | None:
    """Seconds since 1970 when all bytes below `root` were read back; None: nobody says so. Raises OSError."""
    try:
        note = json.loads(store.get(f"{name}/{VERIFIED}"))
        return float(note["at"]) if note["root"] == root else None
    except OSError as error:
        if not is_damage(error):
            raise
        return None
    except (ObjectMissing, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _note(document: dict[str, object]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
