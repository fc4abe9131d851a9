"""Names inside a checkpoint store.

<store>/
  000000000120.3.5f0c2ea91b77/     one save: <step>.<fence>.<attempt>, never written again once committed
    shards/r0-0.safetensors        tensors of rank 0, readable by any safetensors reader
    shards/r0.json                 what rank 0 wrote, and the digest of every 4 MiB of it
    MANIFEST.json                  the whole checkpoint; its BLAKE3 digest is the root, the checkpoint's name
    MANIFEST.sig                   a signature over MANIFEST.json, where the run has a signing key
    COMMIT                         written last: without it there is no checkpoint
    QUARANTINED                    written by a reader that found wrong bytes; nobody resumes from here again
    VERIFIED                       written by who read every byte back after the commit and found it whole
    PINNED                         written by a person: retention never removes it
  claims/000000000003.5f0c2ea91b77.json   the commits that attempt saw when it took over
  teacher.json                     which checkpoint the run learns from, where spec.compression.distill asks
  origin.json                      which one it began from, where spec.compression.lowRank.from asks
  data-quality.json                what was found in the data, where spec.dataQuality asks
  record.3.r0.json                 how long the steps of that attempt took on rank 0, where the run records them
  tracking/                        what trackers write, where the run has some that write files
  profile/                         traces of steps, where the run was asked for some
"""

import re
import secrets
from dataclasses import dataclass
from typing import Self

from blake3 import blake3

from capstan_runtime.contract.data_quality import REPORT

COMMIT = "COMMIT"
MANIFEST = "MANIFEST.json"
SIGNATURE = "MANIFEST.sig"
QUARANTINED = "QUARANTINED"
VERIFIED = "VERIFIED"
PINNED = "PINNED"
SHARDS = "shards"
CLAIMS = "claims"
TRACKING = "tracking"
PROFILE = "profile"
TEACHER = "teacher.json"
ORIGIN = "origin.json"
MODELS = "_models"
"""In the store above those of the runs: the registry (`registry/entry.py`). No namespace can be called so."""
PART = ".part"
"""Ending of a file that is still being written."""

_FOLDER = re.compile(r"(\d{12})\.([1-9]\d*)\.([0-9a-f]{12})")
_RECORD = re.compile(r"record\.[1-9]\d*\.r\d+\.json")
_CLAIM = re.compile(r"(\d{12})\.([0-9a-f]{12})\.json")


@dataclass(frozen=True, slots=True, order=True)
class SaveName:
    """The name of one save's folder. Sorts by step, then fence."""

    step: int
    fence: int
    attempt: str
    """12 hex digits: 6 of the run's uid, so that a torn folder still tells whose it is, and 6 by chance."""

    def __str__(self) -> str:
        return f"{self.step:012d}.{self.fence}.{self.attempt}"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """None when `name` is not the name of a save's folder."""
        match = _FOLDER.fullmatch(name)
        return cls(int(match[1]), int(match[2]), match[3]) if match else None

    def is_of_run(self, uid: str) -> bool:
        return self.attempt.startswith(_run_prefix(uid))


def _run_prefix(uid: str) -> str:
    return blake3(uid.encode()).hexdigest()[:6]


def new_attempt(uid: str) -> str:
    """A name for one life of the world that no other attempt of any run has."""
    return _run_prefix(uid) + secrets.token_hex(3)


def shard_name(rank: int, index: int) -> str:
    return f"r{rank}-{index}.safetensors"


def rank_manifest_name(rank: int) -> str:
    return f"r{rank}.json"


def claim_name(fence: int, attempt: str) -> str:
    return f"{fence:012d}.{attempt}.json"


def claim_of_run(name: str, uid: str) -> bool:
    """Whether a file of this name is a claim by an attempt of run `uid`. Names of claims sort by fence."""
    match = _CLAIM.fullmatch(name)
    return match is not None and match[2].startswith(_run_prefix(uid))


def record_name(fence: int, rank: int) -> str:
    return f"record.{fence}.r{rank}.json"


def is_beside_checkpoints(name: str) -> bool:
    """Whether what has this name is ours and none of a checkpoint: a record, a report, the folder of trackers, …"""
    return name in (REPORT, TRACKING, PROFILE, TEACHER, ORIGIN) or _RECORD.fullmatch(name) is not None
