"""What a checkpoint says about itself: records, and their canonical bytes."""

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.checkpoint.digest import ALGORITHM, LEAF_BYTES, digest_of, name_of
from capstan_runtime.contract.base import Record
from capstan_runtime.contract.run_config import Skip
from capstan_runtime.contract.signature import Signature
from capstan_runtime.integers import INTEGERS

Count = Annotated[int, Field(ge=0)]
Recorded = Annotated[Signature | None, Field(exclude_if=lambda signature: signature is None)]
"""A signature, or nothing at all: what was saved before there were signatures is spelled as it always was."""


class Chunk(Record):
    """A run of one tensor's elements in one file.

    The whole tensor's bytes are cut into leaves of 4 MiB; the chunk is hashed piece by piece where those cuts fall. So
    each byte is hashed once, and a leaf that lies in one chunk has the same digest however the tensor is sharded.
    """

    tensor: str
    dtype: str
    """As safetensors spells it: F32, BF16, I64, …"""
    shape: tuple[Count, ...]
    """Of the whole tensor."""
    start: Count
    """First element in the whole tensor, flattened in C order."""
    count: Count
    file: Count
    """Index into the rank manifest's `files`."""
    offset: Count
    """First byte in the file."""
    leaves: str
    """Digests of the chunk's pieces in order, as `digest.pack_digests` writes them. The first and the last piece may be
    parts of a leaf."""


class ShardFile(Record):
    """One safetensors file of a rank."""

    name: str
    bytes: Count
    header_bytes: Count
    """Of safetensors' header with its length; the chunks follow without gaps to the file's end."""
    header: str
    """Digest of the header."""


class RankManifest(Record):
    """Everything one rank wrote for one save. Its presence says that the files it names are on disk."""

    format: Literal["capstan-shards/2"] = "capstan-shards/2"
    run: str
    step: Count
    fence: int
    attempt: str
    rank: Count
    world: int
    files: tuple[ShardFile, ...]
    chunks: tuple[Chunk, ...]


class RankEntry(Record):
    """A rank manifest as the manifest knows it."""

    name: str
    digest: str


class TensorEntry(Record):
    """A whole tensor, however it is cut."""

    name: str
    dtype: str
    shape: tuple[Count, ...]
    digest: str
    """Of the digests of its leaves, end to end: of its content alone, however it is cut."""


Value = int | float | str
"""Of a callback's state. A float is finite: JSON has no word for others."""
CallbackStates = Annotated[dict[str, dict[str, Value]], Field(exclude_if=lambda states: not states)]
"""By the callback's name, each with a few numbers and words of its own; or nothing at all, as `Recorded`."""


class DigestPlan(Record):
    """How the bytes were hashed."""

    algorithm: Literal["blake3"] = ALGORITHM  # type: ignore[assignment]
    leaf_bytes: int = Field(default=LEAF_BYTES, ge=1)


class TrainerState(Record):
    """All of the run's state that is not a tensor. Data order and randomness follow from it."""

    step: Count
    """Optimizer steps done; also the position in the data."""
    seed: int
    global_batch_size: int
    virtual_ranks: int
    plan_version: int
    """Of the function that orders the samples."""
    data_fingerprint: str
    learning_rate_step: Count
    loss: float | None
    """Of the last step; None: a user's program that has not told any."""
    skips: tuple[Skip, ...] = ()
    """Batches that were left out before this step."""
    callbacks: CallbackStates = {}
    """State of what follows the run and may change its course, after this step: early stopping, a plateau, …"""


class SaveFacts(Record):
    """All that makes up a manifest beside the shards. Fixed when rank 0 stages the save, so that the save has one root,
    whether rank 0 commits it or a later attempt puts it together from what the pods hold in memory."""

    format: Literal["capstan-save/1"] = "capstan-save/1"
    job: str
    run: str
    step: Count
    fence: int
    attempt: str
    world: Annotated[int, Field(ge=1)]
    parent: str | None
    created_at: float
    trainer: TrainerState
    metrics: dict[str, float] = {}
    framework: str
    signature: Recorded = None


class Manifest(Record):
    """One checkpoint. The digest of its canonical bytes is the root."""

    format: Literal["capstan-checkpoint/2"] = "capstan-checkpoint/2"
    digest: DigestPlan = DigestPlan()
    job: str
    run: str
    """The TrainingJob's uid: a re-created job does not resume from its predecessor."""
    step: Count
    fence: int
    attempt: str
    world: Annotated[int, Field(ge=1)]
    parent: str | None
    """Root of the checkpoint before this one in the run's history; None for the first. The chain shows any fork."""
    created_at: float
    """Seconds since 1970."""
    ranks: tuple[RankEntry, ...]
    tensors: tuple[TensorEntry, ...]
    """Sorted by name."""
    trainer: TrainerState
    logical: str
    """Digest of `tensors`: equal for equal states, however sharded and by whichever framework saved."""
    metrics: dict[str, float] = {}
    """As far as known at the save: loss, accuracy, validation_loss, …; retention goes by them."""
    framework: str
    """`flax` or `deepspeed`: which trainer wrote it. `program`: a user's own."""
    signature: Recorded = None
    """With the parameters, all that a server needs to know. None: it cannot be served: it is older than signatures, or
    a user's own program saved it."""

    @property
    def has_average(self) -> bool:
        """Whether the run kept a moving average of its weights, which is served instead of them."""
        return any(tensor.name.startswith("ema/") for tensor in self.tensors)

    @property
    def has_integers(self) -> bool:
        """Whether it is a model whose weights are integers, with the scales of their channels."""
        return any(tensor.name.startswith(INTEGERS) for tensor in self.tensors)

    @property
    def figures(self) -> dict[str, float]:
        """The last step's loss, if it was told, and `metrics`."""
        loss = self.trainer.loss
        return self.metrics if loss is None else {"loss": loss, **self.metrics}


class Commit(Record):
    """The content of COMMIT: nothing that the manifest and the folder's name do not confirm.

    No digest covers it, so a later format would look like damage: it stays as it is, and the manifest's changes.
    """

    format: Literal["capstan-commit/1"] = "capstan-commit/1"
    root: str
    run: str
    step: Count
    fence: int
    attempt: str


class Claim(Record):
    """Written by an attempt before it trains: which commits it found. A commit of an older fence that is not among
    them was made by a process that should have been dead, and does not count."""

    format: Literal["capstan-claim/1"] = "capstan-claim/1"
    run: str
    fence: int
    attempt: str
    resumed: str | None
    """Root of what the attempt resumed from; None from step 0."""
    committed: tuple[str, ...]
    """Roots of the commits that counted, newest first."""


def canonical_bytes(record: Record) -> bytes:
    """The one spelling of `record` as UTF-8 JSON: sorted keys, no spaces, null where a field is None
    (`Recorded` ones are left out)."""
    return _spelled(record.model_dump(mode="json", by_alias=True))


def is_canonical(data: bytes) -> bool:
    """Whether `data` is spelled as `canonical_bytes` would spell it, whatever its fields: one that is added later, and
    may be absent, must not make older checkpoints look damaged."""
    try:
        return _spelled(json.loads(data)) == data
    except ValueError:
        return False


def _spelled(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def logical_root(tensors: Sequence[TensorEntry]) -> str:
    """The digest of the state alone: equal for equal tensors of equal names, however sharded and whoever saved them."""
    entries = [entry.model_dump(mode="json", by_alias=True) for entry in sorted(tensors, key=lambda each: each.name)]
    return name_of(digest_of(_spelled(entries)))
