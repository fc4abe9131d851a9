"""Fencing without locks: an attempt writes down what it found before it trains, and later readers go by that.

A process that should be dead, cut off on a node nobody reaches, may still commit. Its fence is older than the newest
claim's, and its commit is not among those the claim lists; so it does not count, whenever it arrives.
"""

from pathlib import Path

from pydantic import ValidationError

from capstan_runtime.checkpoint.disk import Disk, write_file
from capstan_runtime.checkpoint.layout import CLAIMS, claim_name, claim_of_run
from capstan_runtime.checkpoint.manifest import Claim, canonical_bytes

_KEPT = 2
"""The newest decides; the one before stands in if its bytes are bad."""


def newest_claim(store: Path, run: str) -> Claim | None:
    """The claim of `run` with the highest fence; None before the first attempt. Unreadable ones are passed over."""
    for path in _claim_files(store, run):
        try:
            claim = Claim.model_validate_json(path.read_bytes())
        except (ValidationError, FileNotFoundError):
            continue  # torn by a dying disk, or removed by a newer attempt just now: the one before is nearly as good
        if claim.run == run:
            return claim
    return None


def newer_fence(store: Path, run: str, fence: int) -> int | None:
    """The fence of an attempt that has taken over from `fence`; None: there is none. Raises OSError."""
    claim = newest_claim(store, run)
    return claim.fence if claim is not None and claim.fence > fence else None


def write_claim(store: Path, claim: Claim, disk: Disk) -> None:
    """From the moment this returns, older fences can add nothing to the store. Raises OSError."""
    folder = store / CLAIMS
    disk.make_folder(folder)
    write_file(disk, folder / claim_name(claim.fence, claim.attempt), [canonical_bytes(claim)])
    disk.sync_folder(folder)
    disk.sync_folder(store)
    for path in _claim_files(store, claim.run)[_KEPT:]:
        disk.remove(path)


def withdraw_claim(store: Path, claim: Claim, disk: Disk) -> None:
    """Undoes `write_claim` for an attempt that found nothing to go on from: what somebody copies back into the store
    must not be taken for the work of a dead process. Raises OSError."""
    disk.remove(store / CLAIMS / claim_name(claim.fence, claim.attempt))
    disk.sync_folder(store / CLAIMS)


def _claim_files(store: Path, run: str) -> list[Path]:
    """Newest fence first."""
    folder = store / CLAIMS
    names = sorted((path.name for path in folder.iterdir()), reverse=True) if folder.is_dir() else []
    return [folder / name for name in names if claim_of_run(name, run)]
