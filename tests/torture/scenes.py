"""Stores to damage, made once, and the judgement of what a reader made of a damaged one."""

import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from capstan_runtime.checkpoint.layout import MANIFEST, SIGNATURE
from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.signing import sign_manifest
from capstan_runtime.checkpoint.verified import VerifyingReader
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.contract.state import Quarantine
from capstan_runtime.errors import ConfigError, CorruptCheckpoint
from tests.support.checkpoints import Arrays, arrays_of, choose, save, trainer_state
from tests.torture.faults import Expected, Fault, Scene

OLDER, NEWEST, STRAY = 10, 20, 30


@dataclass(frozen=True, slots=True)
class Kind:
    """What the checkpoints of a store are like."""

    world: int
    is_large: bool = False
    """Tensors of several leaves, some of them cut within a leaf by the ranks' shares."""
    is_signed: bool = False


KINDS = tuple(Kind(world) for world in (1, 2, 3))
LARGE_KINDS = tuple(Kind(world, is_large=True) for world in (1, 2, 3))
SIGNED_KIND = Kind(2, is_signed=True)


@dataclass(frozen=True, slots=True)
class Stage:
    """A store on disk with two checkpoints and two claims, and all that must be known to judge a reader of it."""

    folder: Path
    objects: dict[str, bytes]
    strays: dict[str, bytes]
    roots: dict[int, str]
    arrays: Mapping[int, Arrays]
    public_key: str | None

    @property
    def older(self) -> str:
        return next(key for key in self.objects if key.startswith(f"{OLDER:012d}")).split("/")[0]

    @property
    def newest(self) -> str:
        return next(key for key in self.objects if key.startswith(f"{NEWEST:012d}")).split("/")[0]


@cache
def _base() -> TemporaryDirectory[str]:
    """In memory where there is such a place: what is tested here is no disk. Removed when this process ends; those that
    it forks use it too."""
    shared_memory = Path("/dev/shm")
    return TemporaryDirectory(prefix="torture", dir=shared_memory if shared_memory.is_dir() else None)


def scratch() -> Path:
    """A new folder."""
    return Path(mkdtemp(dir=_base().name))


@cache
def stage_of(kind: Kind) -> Stage:
    """Made once in a process."""
    folder, elsewhere = scratch() / "store", scratch() / "store"
    arrays = {step: _large_arrays(step) if kind.is_large else arrays_of(step) for step in (OLDER, NEWEST, STRAY)}
    roots: dict[int, str] = {}
    shard_bytes = 3 << 20 if kind.is_large else 256
    for step in (OLDER, NEWEST):
        checkpoint = save(
            folder,
            step,
            arrays=arrays[step],
            world=kind.world,
            fence=2,
            parent=roots.get(OLDER),
            shard_bytes=shard_bytes,
        )
        roots[step] = checkpoint.root
    public_key = _sign(folder) if kind.is_signed else None
    for fence in (3, 4):
        assert choose(folder, fence=fence, public_key=public_key) is not None
    save(elsewhere, STRAY, arrays=arrays[STRAY], world=kind.world, fence=2, shard_bytes=shard_bytes)
    return Stage(folder, _objects(folder), _objects(elsewhere), roots, arrays, public_key)


def _large_arrays(step: int) -> Arrays:
    chance = np.random.default_rng(step)
    return {
        "params/embed": chance.random((1100, 1200), np.float32),
        "params/head": chance.random((300, 300), np.float32),
        "optimizer/step": np.array(step, np.int64),
    }


def _sign(folder: Path) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    private = folder.parent / "private.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    for manifest in folder.glob(f"*/{MANIFEST}"):
        manifest.with_name(SIGNATURE).write_bytes(sign_manifest(manifest.read_bytes(), private))
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def _objects(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@contextmanager
def damaged(stage: Stage, objects: dict[str, bytes]) -> Iterator[Path]:
    """The stage's folder holding `objects`; afterwards it is what it was."""
    changed = {key for key in {*stage.objects, *objects} if stage.objects.get(key) is not objects.get(key)}
    for key in changed:
        _put(stage.folder / key, objects.get(key))
    try:
        yield stage.folder
    finally:
        for path in sorted(stage.folder.iterdir()):
            if path.name not in (stage.older, stage.newest, "claims"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in sorted(stage.folder.rglob("*")):
            if path.is_file() and str(path.relative_to(stage.folder)) not in stage.objects:
                path.unlink()
        for key, data in stage.objects.items():
            if key in changed or not (stage.folder / key).exists():  # the reader removes old claims
                _put(stage.folder / key, data)


def _put(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader made of a store."""

    root: str | None
    """None: it refused them all."""
    step: int
    differs: str
    """The first thing that is not what was saved under this root; empty when all is."""
    reported: tuple[int, ...]
    """Steps passed over."""
    message: str


def read(stage: Stage, fence: int = 5, floor_step: int = NEWEST, verify: VerifyLevel = "full") -> Reading:
    """As a new attempt reads that knows, from the operator, that `floor_step` was committed."""
    quarantined: list[Quarantine] = []
    found: dict[str, np.ndarray] = {}

    def load(opened: OpenCheckpoint, reader: VerifyingReader) -> None:
        found.clear()
        tensors = opened.tensors(reader)
        found.update({name: tensors.read(name) for name in tensors.names()})

    try:
        chosen = choose(
            stage.folder,
            fence=fence,
            floor_step=floor_step,
            verify=verify,
            quarantined=quarantined,
            load=load,
            public_key=stage.public_key,
            visible_seconds=0.0,
        )
    except (CorruptCheckpoint, ConfigError) as error:
        return Reading(None, 0, "", tuple(each.step for each in quarantined), str(error))
    assert chosen is not None, "a run that has checkpoints never starts from step 0"
    step = chosen.manifest.step
    differs = _difference(stage.arrays[step], found) if step in stage.arrays else f"nobody saved step {step}"
    if not differs and chosen.manifest.trainer != trainer_state(step):
        differs = "the trainer's state"
    reasons = "; ".join(each.reason for each in quarantined)
    return Reading(chosen.root, step, differs, tuple(each.step for each in quarantined), reasons)


def _difference(wanted: Arrays, found: Arrays) -> str:
    if wanted.keys() != found.keys():
        return "the names of the tensors"
    for name, array in wanted.items():
        if (array.dtype, array.shape, array.tobytes()) != (found[name].dtype, found[name].shape, found[name].tobytes()):
            return name
    return ""


def judge(stage: Stage, expected: Expected, reading: Reading) -> str:
    """Empty when the law holds, else what was wrong."""
    if reading.root is None:
        return f"everything was refused: {reading.message}"
    step = OLDER if expected is Expected.PASSED_OVER else NEWEST
    if reading.root != stage.roots[step]:
        return f"step {reading.step} was taken, not {step}"
    if reading.differs:
        return f"what was read of step {step} is not what was saved: {reading.differs}"
    if expected is Expected.PASSED_OVER and reading.reported != (NEWEST,):
        return f"reported were {reading.reported}, not {NEWEST}"
    if expected is Expected.COPY_REPORTED and len(reading.reported) != 1:
        return f"reported were {reading.reported}, not the copy"
    if expected is Expected.IGNORED and reading.reported:
        return f"falsely accused: {reading.message}"
    return ""


def suffer(kind: Kind, fault: Fault, seed: int, verify: VerifyLevel = "full") -> tuple[Expected, str]:
    """One fault: its law, and what was wrong; empty: nothing."""
    stage = stage_of(kind)
    scene = Scene(dict(stage.objects), stage.older, stage.newest, stage.strays, random.Random(seed))
    expected = fault(scene)
    with damaged(stage, scene.objects):
        return expected, judge(stage, expected, read(stage, verify=verify))


def clean(seed: int) -> str:
    """Two checkpoints of a random state, world and cut, read back whole: what was wrong; empty: nothing."""
    chance = random.Random(seed)
    folder = scratch_store()
    states = {step: _random_arrays(chance, step) for step in (OLDER, NEWEST)}
    stage = Stage(folder, {}, {}, {}, states, None)
    for step, arrays in states.items():
        world, shard_bytes = chance.randint(1, 3), chance.choice([64, 256, 1 << 20])
        stage.roots[step] = save(folder, step, arrays=arrays, world=world, shard_bytes=shard_bytes).root
    try:
        return judge(stage, Expected.IGNORED, read(stage))
    finally:
        shutil.rmtree(folder)


@cache
def _clean_scratch() -> Path:
    return scratch()


def scratch_store() -> Path:
    """A folder for one store; the caller removes it."""
    return _clean_scratch() / "store"


_TYPES = (np.float32, np.float16, np.float64, np.int64, np.int32, np.uint8, np.bool_)


def _random_arrays(chance: random.Random, step: int) -> Arrays:
    bytes_of = np.random.default_rng(chance.getrandbits(32)).bytes
    arrays: dict[str, np.ndarray] = {"params/step": np.array(step, np.int64)}
    for number in range(chance.randint(1, 5)):
        shape = tuple(chance.randint(0, 9) for _ in range(chance.randint(0, 3)))
        dtype = np.dtype(chance.choice(_TYPES))
        count = int(np.prod(shape))
        raw = np.frombuffer(bytes_of(count * dtype.itemsize), np.uint8)
        arrays[f"params/{number}"] = (raw & 1 if dtype == np.bool_ else raw).view(dtype).reshape(shape)
    return arrays
