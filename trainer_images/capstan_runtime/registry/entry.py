"""What a registry says: records, and how they are kept so that a changed byte is noticed.

<store>/
  _models/digits/                          no namespace can have that first part in its name, so no run is there
    versions/1.4.0                         one ModelEntry, written once
    stages/production/000000000003         the third promotion to that stage; the newest one counts

Each object is one canonical line of JSON and the digest of it in a second line; an entry may carry a signature of the
first in a third. All of them are put with a condition, and none is ever written again: of two writers one wins, who
dies leaves all or nothing, and a stage moves with a single object.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.layout import MODELS
from capstan_runtime.checkpoint.manifest import canonical_bytes, is_canonical
from capstan_runtime.checkpoint.reader import LaterFormat
from capstan_runtime.contract.base import Record
from capstan_runtime.contract.registry import ModelName, ModelVersion, StageName
from capstan_runtime.contract.signature import Signature
from capstan_runtime.errors import CorruptCheckpoint

VERSIONS = "versions"
STAGES = "stages"
AnyRecord = TypeVar("AnyRecord", bound=Record)


class Code(Record):
    """What computed a model."""

    package: str
    """Version of this package."""
    image: str | None = None
    """Container image, as the pod was asked to run it; None: nobody said."""


class Lineage(Record):
    """Where a model comes from."""

    job: str
    """`namespace/name` of the TrainingJob."""
    uid: str
    parent: str | None
    """Root of the checkpoint before it in its run; None: it is the first."""
    data_fingerprint: str
    seed: int
    config: dict[str, Any] | None = None
    """The run's configuration. None: it was registered by hand, and a checkpoint does not say."""
    code: Code | None = None
    """None: as `config`."""


class ModelEntry(Record):
    """One version of one model. It never changes."""

    format: Literal["capstan-model/1"] = "capstan-model/1"
    name: ModelName
    version: ModelVersion
    root: str
    """Digest of the checkpoint's manifest, which covers its every byte."""
    logical: str
    """Digest of its tensors alone."""
    run: str
    """Folder of its run in the store; empty: the store is that of the run."""
    checkpoint: str
    """Folder of the checkpoint in that."""
    step: Annotated[int, Field(ge=0)]
    framework: str
    size_bytes: Annotated[int, Field(ge=0)]
    """Of the checkpoint's files, optimizer state included."""
    parameters: Annotated[int, Field(ge=0)]
    """Elements of all parameters."""
    metrics: dict[str, float]
    model: Signature | None
    """What it computes; None: the checkpoint does not say. A user's own code made it, or an older version."""
    lineage: Lineage
    registered_at: float
    """Seconds since 1970."""
    registered_by: str


class Promotion(Record):
    """One move of a stage."""

    format: Literal["capstan-promotion/1"] = "capstan-promotion/1"
    name: ModelName
    stage: StageName
    number: Annotated[int, Field(ge=1)]
    """Of this move among all of this stage."""
    version: ModelVersion
    root: str
    """Of that version."""
    previous: ModelVersion | None
    """What the stage was before; None: this is its first."""
    at: float
    """Seconds since 1970."""
    by: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """An object's first line and its signature."""

    data: bytes
    """Canonical JSON: what a signature is over."""
    signature: bytes | None
    """A Sigstore bundle; None: it is not signed."""


def model_key(name: str) -> str:
    return f"{MODELS}/{name}"


def entry_key(name: str, version: str) -> str:
    return f"{model_key(name)}/{VERSIONS}/{version}"


def promotion_key(name: str, stage: str, number: int) -> str:
    return f"{model_key(name)}/{STAGES}/{stage}/{number:012d}"


def sealed(record: Record, signature: bytes | None = None) -> bytes:
    """The content of the record's object. `signature`: a Sigstore bundle over `canonical_bytes(record)`."""
    data = canonical_bytes(record)
    lines = [data, name_of(digest_of(data)).encode()]
    if signature is not None:
        lines.append(json.dumps(json.loads(signature), separators=(",", ":")).encode())
    return b"\n".join(lines)


def unsealed(kind: type[AnyRecord], key: str, content: bytes) -> tuple[AnyRecord, Sealed]:
    """The record and what it was read from. Raises CorruptCheckpoint unless it is what was written, and LaterFormat for
    what only a later version of Capstan can have written."""
    data, _, rest = content.partition(b"\n")
    digest, _, signature = rest.partition(b"\n")
    found = name_of(digest_of(data))
    if digest != found.encode():
        raise CorruptCheckpoint(f"{key}: is {found}, registered was {digest[:80].decode(errors='replace')}")
    try:
        record = kind.model_validate_json(data)
    except ValidationError as error:  # the digest says that these bytes were registered: they are no damage
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise LaterFormat(
            f"{key}: {where}: {first['msg']}: a later version of Capstan registered it; use that, or a newer one"
        ) from error
    if not is_canonical(data):
        raise CorruptCheckpoint(f"{key}: is not in canonical form")
    return record, Sealed(data, signature or None)
