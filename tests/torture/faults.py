"""What can happen to a stored checkpoint: one function each, on the objects of a store that holds two of them.

`Scene.older` and `Scene.newest` are the folders of the two. A fault changes `objects` and says what must come of it.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from capstan_runtime.checkpoint.digest import digest_of, name_of, pack_digests
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, PINNED, SHARDS, VERIFIED, SaveName, new_attempt
from capstan_runtime.checkpoint.manifest import (
    Commit,
    Manifest,
    RankEntry,
    RankManifest,
    SaveFacts,
    TensorEntry,
    canonical_bytes,
    logical_root,
)
from capstan_runtime.checkpoint.safetensors import item_bytes
from capstan_runtime.checkpoint.writer import build_manifest
from tests.support.checkpoints import RUN

PAGE = 4096


class Expected(Enum):
    """The law of one fault. Anything else that happens is a miss."""

    PASSED_OVER = "the newest is reported, and the one before is resumed from"
    IGNORED = "the newest is resumed from, bit by bit, and nothing is reported"
    COPY_REPORTED = "the newest is resumed from, bit by bit, and the forgery in front of it is reported"


@dataclass
class Scene:
    """A store in memory. Faults change `objects`, and nothing else."""

    objects: dict[str, bytes]
    older: str
    newest: str
    strays: Mapping[str, bytes]
    """Objects of a whole checkpoint of the same run, of a later step and an older fence, that are not in the store."""
    chance: random.Random

    def of(self, folder: str) -> list[str]:
        """Keys, sorted."""
        return sorted(key for key in self.objects if key.startswith(f"{folder}/"))

    def some(self) -> str:
        """Key of an object of the newest checkpoint. Half of the time a shard, where most bytes are."""
        keys = self.of(self.newest)
        shards = [key for key in keys if key.endswith(".safetensors")]
        return self.chance.choice(shards if self.chance.random() < 0.5 else keys)

    def counterpart(self, key: str) -> str:
        """Key of the same object of the checkpoint before."""
        return key.replace(self.newest, self.older)


Fault = Callable[[Scene], Expected]


def _block(scene: Scene, size: int) -> slice:
    """A page, where a disk has its borders, or what there is of one."""
    start = scene.chance.randrange((size + PAGE - 1) // PAGE) * PAGE
    return slice(start, min(start + PAGE, size))


def _other_than(scene: Scene, old: bytes, new: bytes) -> bytes:
    """`new`; where it happens to be what is there already, something else."""
    return new if new != old else bytes([new[0] ^ 1 << scene.chance.randrange(8)]) + new[1:]


def _replace(scene: Scene, key: str, where: slice, new: bytes) -> Expected:
    data = scene.objects[key]
    old = data[where]
    scene.objects[key] = data[: where.start] + _other_than(scene, old, new) + data[where.stop :]
    return Expected.PASSED_OVER


def bit_flip(scene: Scene) -> Expected:
    key = scene.some()
    at = scene.chance.randrange(len(scene.objects[key]))
    byte = scene.objects[key][at] ^ 1 << scene.chance.randrange(8)
    return _replace(scene, key, slice(at, at + 1), bytes([byte]))


def burst(scene: Scene) -> Expected:
    """A run of up to 64 wrong bytes."""
    key = scene.some()
    size = len(scene.objects[key])
    start = scene.chance.randrange(size)
    where = slice(start, min(size, start + scene.chance.randint(2, 64)))
    return _replace(scene, key, where, scene.chance.randbytes(where.stop - where.start))


def zeroed_page(scene: Scene) -> Expected:
    key = scene.some()
    where = _block(scene, len(scene.objects[key]))
    return _replace(scene, key, where, bytes(where.stop - where.start))


def garbage_page(scene: Scene) -> Expected:
    key = scene.some()
    where = _block(scene, len(scene.objects[key]))
    return _replace(scene, key, where, scene.chance.randbytes(where.stop - where.start))


def stale_page(scene: Scene) -> Expected:
    """A write that was lost: what the checkpoint before had there."""
    key = scene.some()
    where = _block(scene, len(scene.objects[key]))
    before = scene.objects.get(scene.counterpart(key), b"")[where]
    return _replace(scene, key, where, before.ljust(where.stop - where.start, b"\0"))


def misdirected_page(scene: Scene) -> Expected:
    """A write that went to another object of the same checkpoint."""
    key, other = scene.some(), scene.some()
    where = _block(scene, len(scene.objects[key]))
    strange = scene.objects[other][_block(scene, len(scene.objects[other]))]
    return _replace(scene, key, where, strange.ljust(where.stop - where.start, b"\0")[: where.stop - where.start])


def truncation(scene: Scene) -> Expected:
    key = scene.some()
    data = scene.objects[key]
    scene.objects[key] = data[: scene.chance.randrange(len(data))]
    return Expected.PASSED_OVER


def growth(scene: Scene) -> Expected:
    scene.objects[scene.some()] += bytes(scene.chance.choice([1, 8, PAGE]))
    return Expected.PASSED_OVER


def missing_object(scene: Scene) -> Expected:
    del scene.objects[scene.some()]
    return Expected.PASSED_OVER


def swapped_objects(scene: Scene) -> Expected:
    keys = scene.of(scene.newest)
    one, other = scene.some(), scene.chance.choice(keys)
    while scene.objects[one] == scene.objects[other]:
        one, other = scene.chance.choice(keys), scene.chance.choice(keys)
    scene.objects[one], scene.objects[other] = scene.objects[other], scene.objects[one]
    return Expected.PASSED_OVER


def stale_object(scene: Scene) -> Expected:
    """One object of the checkpoint before."""
    key = scene.some()
    while scene.objects.get(scene.counterpart(key)) in (None, scene.objects[key]):
        key = scene.some()
    scene.objects[key] = scene.objects[scene.counterpart(key)]
    return Expected.PASSED_OVER


def mixed_steps(scene: Scene) -> Expected:
    """Some of both, as a save into one folder would leave it that died half-way."""
    keys = [key for key in scene.of(scene.newest) if scene.objects.get(scene.counterpart(key)) != scene.objects[key]]
    for key in scene.chance.sample(keys, scene.chance.randint(1, len(keys) - 1)):
        older = scene.objects.get(scene.counterpart(key))
        if older is None:
            del scene.objects[key]
        else:
            scene.objects[key] = older
    return Expected.PASSED_OVER


def forged_manifest(scene: Scene) -> Expected:
    """A claim that the shards contradict, with a root in COMMIT that fits."""
    manifest = _manifest(scene)
    _commit_as(scene, manifest.model_copy(update=scene.chance.choice(_CONTRADICTIONS)(scene, manifest)))
    return Expected.PASSED_OVER


def _drop_tensor(scene: Scene, manifest: Manifest) -> dict[str, object]:
    tensors = list(manifest.tensors)
    del tensors[scene.chance.randrange(len(tensors))]
    return {"tensors": tuple(tensors), "logical": logical_root(tensors)}


def _rename_tensor(scene: Scene, manifest: Manifest) -> dict[str, object]:
    tensors = list(manifest.tensors)
    at = scene.chance.randrange(len(tensors))
    tensors[at] = tensors[at].model_copy(update={"name": f"{tensors[at].name}x"})
    return {"tensors": tuple(tensors), "logical": logical_root(tensors)}


def _reshape_tensor(scene: Scene, manifest: Manifest) -> dict[str, object]:
    tensors = list(manifest.tensors)
    at = next(number for number, tensor in enumerate(tensors) if len(tensor.shape) == 2)
    tensors[at] = tensors[at].model_copy(update={"shape": tensors[at].shape[::-1]})
    return {"tensors": tuple(tensors), "logical": logical_root(tensors)}


def _add_tensor(scene: Scene, manifest: Manifest) -> dict[str, object]:
    extra = TensorEntry(name="params/zzz", dtype="F32", shape=(1,), digest=name_of(digest_of(b"")))
    return {"tensors": (*manifest.tensors, extra), "logical": logical_root((*manifest.tensors, extra))}


def _another_rank(scene: Scene, manifest: Manifest) -> dict[str, object]:
    ranks = list(manifest.ranks)
    at = scene.chance.randrange(len(ranks))
    ranks[at] = ranks[at].model_copy(update={"digest": name_of(digest_of(scene.chance.randbytes(8)))})
    return {"ranks": tuple(ranks)}


_CONTRADICTIONS: tuple[Callable[[Scene, Manifest], dict[str, object]], ...] = (
    lambda scene, manifest: {"step": manifest.step + scene.chance.randint(1, 9)},
    lambda scene, manifest: {"fence": manifest.fence + 1},
    lambda scene, manifest: {"attempt": new_attempt(RUN)},
    lambda scene, manifest: {"world": manifest.world + scene.chance.randint(1, 3)},
    lambda scene, manifest: {"ranks": manifest.ranks[:-1], "world": max(1, manifest.world - 1)},
    lambda scene, manifest: {"ranks": (*manifest.ranks, manifest.ranks[0]), "world": manifest.world + 1},
    lambda scene, manifest: {"trainer": manifest.trainer.model_copy(update={"step": manifest.step + 1})},
    lambda scene, manifest: {"logical": name_of(digest_of(scene.chance.randbytes(8)))},
    _drop_tensor,
    _rename_tensor,
    _reshape_tensor,
    _add_tensor,
    _another_rank,
)


def forged_with_a_key(scene: Scene) -> Expected:
    """Whatever a forger likes, everything below it consistent: what the run's signature is for."""
    manifest = _manifest(scene)
    trainer = manifest.trainer
    likes: tuple[dict[str, object], ...] = (
        {"metrics": {"accuracy": 1.0}},
        {"parent": None, "created_at": manifest.created_at + 1},
        {"job": "default/another"},
        {"trainer": trainer.model_copy(update={"seed": trainer.seed + 1})},
        {"trainer": trainer.model_copy(update={"loss": 0.0})},
    )
    if scene.chance.random() < 0.5:
        _commit_as(scene, manifest.model_copy(update=scene.chance.choice(likes)))
    else:
        forge_weights(scene, manifest)
    return Expected.PASSED_OVER


def forge_weights(scene: Scene, manifest: Manifest) -> None:
    """Changes some bytes of one rank's share of a tensor, and mends every digest from there up to the root."""
    forged = scene.chance.randrange(manifest.world)
    ranks: list[tuple[RankEntry, RankManifest]] = []
    for number, entry in enumerate(manifest.ranks):
        key = f"{scene.newest}/{SHARDS}/{entry.name}"
        record = RankManifest.model_validate_json(scene.objects[key])
        if number == forged:
            record = _forged_rank(scene, record)
            scene.objects[key] = canonical_bytes(record)
            entry = entry.model_copy(update={"digest": name_of(digest_of(scene.objects[key]))})
        ranks.append((entry, record))

    def read(name: str, offset: int, target: memoryview) -> None:
        target[:] = scene.objects[f"{scene.newest}/{SHARDS}/{name}"][offset : offset + len(target)]

    facts = SaveFacts(**{name: getattr(manifest, name) for name in SaveFacts.model_fields if name != "format"})
    _commit_as(scene, build_manifest(facts, ranks, read))


def _forged_rank(scene: Scene, record: RankManifest) -> RankManifest:
    number = scene.chance.choice([number for number, chunk in enumerate(record.chunks) if chunk.count])
    chunk = record.chunks[number]
    key = f"{scene.newest}/{SHARDS}/{record.files[chunk.file].name}"
    where = slice(chunk.offset, chunk.offset + chunk.count * item_bytes(chunk.dtype))
    at = where.start + scene.chance.randrange(where.stop - where.start)
    _replace(scene, key, slice(at, at + 1), bytes([scene.objects[key][at] ^ 1]))
    leaves = pack_digests([digest_of(scene.objects[key][where])])  # such small tensors have one leaf
    chunks = list(record.chunks)
    chunks[number] = chunk.model_copy(update={"leaves": leaves})
    return record.model_copy(update={"chunks": tuple(chunks)})


def duplicated_commit(scene: Scene) -> Expected:
    """The newest checkpoint once more, under a name that is not its own and sorts before it."""
    name = SaveName.parse(scene.newest)
    assert name is not None
    copy = scene.chance.choice(
        [
            SaveName(name.step + scene.chance.randint(1, 9), name.fence, name.attempt),
            SaveName(name.step, name.fence + 1, name.attempt),
            SaveName(name.step + 1, name.fence + 3, new_attempt(RUN)),
        ]
    )
    for key in scene.of(scene.newest):
        scene.objects[key.replace(scene.newest, str(copy))] = scene.objects[key]
    return Expected.COPY_REPORTED


def commit_in_a_torn_save(scene: Scene) -> Expected:
    """A save that died before its manifest, and a COMMIT that somebody put there."""
    name = SaveName.parse(scene.newest)
    assert name is not None
    torn = SaveName(name.step + 10, name.fence, new_attempt(RUN))
    for key in scene.of(scene.newest):
        if SHARDS in key or (key.endswith(MANIFEST) and scene.chance.random() < 0.5) or key.endswith(COMMIT):
            scene.objects[key.replace(scene.newest, str(torn))] = scene.objects[key]
    return Expected.COPY_REPORTED


def stale_fence(scene: Scene) -> Expected:
    """A whole commit of a later step by an attempt that a claim had superseded."""
    scene.objects.update(scene.strays)
    return Expected.IGNORED


def stale_fence_and_a_bad_claim(scene: Scene) -> Expected:
    """The same, and the newest claim is damaged or gone: the one before it stands in."""
    scene.objects.update(scene.strays)
    newest = scene.of("claims")[-1]
    if scene.chance.random() < 0.5:
        del scene.objects[newest]
    else:
        scene.objects[newest] = scene.objects[newest][: scene.chance.randrange(len(scene.objects[newest]))]
    return Expected.IGNORED


def damaged_mark(scene: Scene) -> Expected:
    """What is no part of a checkpoint can make none good or bad."""
    for mark in (VERIFIED, PINNED):
        scene.objects[f"{scene.newest}/{mark}"] = scene.chance.randbytes(scene.chance.randrange(40))
    return Expected.IGNORED


def strangers(scene: Scene) -> Expected:
    """Files that are not ours, torn saves, and remains of writes."""
    torn = SaveName(scene.chance.randint(21, 99), 1, new_attempt(RUN))
    for key in (
        f"{torn}/{SHARDS}/r0-0.safetensors",
        "notes.txt",
        "000000000099.1.zzz/COMMIT",
        f"{scene.newest}/core.17",
    ):
        scene.objects[key] = scene.chance.randbytes(scene.chance.randint(1, 99))
    return Expected.IGNORED


def _manifest(scene: Scene) -> Manifest:
    return Manifest.model_validate_json(scene.objects[f"{scene.newest}/{MANIFEST}"])


def _commit_as(scene: Scene, manifest: Manifest) -> None:
    """A forger does not leave the claims, which list the true root."""
    for key in scene.of("claims"):
        del scene.objects[key]
    data = canonical_bytes(manifest)
    note = Commit.model_validate_json(scene.objects[f"{scene.newest}/{COMMIT}"])
    scene.objects[f"{scene.newest}/{MANIFEST}"] = data
    scene.objects[f"{scene.newest}/{COMMIT}"] = canonical_bytes(
        note.model_copy(update={"root": name_of(digest_of(data))})
    )


FAULTS: tuple[Fault, ...] = (
    bit_flip,
    burst,
    zeroed_page,
    garbage_page,
    stale_page,
    misdirected_page,
    truncation,
    growth,
    missing_object,
    swapped_objects,
    stale_object,
    mixed_steps,
    forged_manifest,
    duplicated_commit,
    commit_in_a_torn_save,
    stale_fence,
    stale_fence_and_a_bad_claim,
    damaged_mark,
    strangers,
)
SIGNED_FAULTS: tuple[Fault, ...] = (forged_with_a_key, bit_flip, stale_object, mixed_steps)
"""On a store whose manifests are signed, with a reader that asks for the signature."""
