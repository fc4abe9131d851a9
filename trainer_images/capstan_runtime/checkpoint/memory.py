"""What a pod holds in memory of the newest saves: the record beside the shards, and how it is found again.

<memory>/
  000000000120.3.5f0c2ea91b77/     the same names as in a store
    shards/r1-0.safetensors        this rank's tensors, the staging area itself
    HELD.json                      which save this is, and the digest of the next
    shards/r1.json                 written last: the shards are complete and hashed
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.disk import Disk, write_file
from capstan_runtime.checkpoint.layout import SHARDS, SaveName
from capstan_runtime.checkpoint.manifest import Count, RankEntry, RankManifest, SaveFacts, canonical_bytes
from capstan_runtime.contract.base import Record

HELD = "HELD.json"


class Held(Record):
    """One rank's complete part of one save."""

    format: Literal["capstan-held/1"] = "capstan-held/1"
    facts: SaveFacts
    """Rank 0's are the checkpoint's; those of the others name the same save."""
    rank: Count
    manifest: RankEntry
    """The rank manifest, which has the digests of all bytes."""

    @property
    def name(self) -> SaveName:
        return SaveName(self.facts.step, self.facts.fence, self.facts.attempt)


def write_held(folder: Path, facts: SaveFacts, manifest: RankManifest, manifest_name: str) -> Held:
    """The save in `folder` counts as complete from now on. Raises OSError."""
    data = canonical_bytes(manifest)
    held = Held(
        facts=facts, rank=manifest.rank, manifest=RankEntry(name=manifest_name, digest=name_of(digest_of(data)))
    )
    disk = Disk()
    write_file(disk, folder / HELD, [canonical_bytes(held)])
    write_file(disk, folder / SHARDS / manifest_name, [data])
    return held


def held_saves(memory: Path, run: str) -> list[Held]:
    """The complete saves of `run` in the folder `memory`, the most recently made first.

    The shards' bytes are not looked at: whoever reads them verifies them. What is torn or belongs to another run is
    left out; so is everything when there is no such folder.
    """
    try:
        folders = [path for path in memory.iterdir() if SaveName.parse(path.name) is not None]
    except OSError:
        return []
    found = [held for folder in folders if (held := _held_in(folder, run)) is not None]
    return sorted(found, key=lambda held: (held.name.fence, held.name.step), reverse=True)


def _held_in(folder: Path, run: str) -> Held | None:
    try:
        held = Held.model_validate_json((folder / HELD).read_bytes())
        data = (folder / SHARDS / held.manifest.name).read_bytes()
        if name_of(digest_of(data)) != held.manifest.digest:
            return None
        manifest = RankManifest.model_validate_json(data)
        sizes = [(folder / SHARDS / file.name).stat().st_size for file in manifest.files]
    except (OSError, ValidationError):
        return None  # torn: the process died while it staged, or is staging just now
    is_whole = sizes == [file.bytes for file in manifest.files]
    return held if is_whole and held.facts.run == run and str(held.name) == folder.name else None
