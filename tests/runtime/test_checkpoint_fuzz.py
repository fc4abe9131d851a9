"""Whatever happens to a stored checkpoint, it is noticed; and what is whole is never accused."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, SHARDS
from capstan_runtime.checkpoint.manifest import Commit, Manifest, canonical_bytes
from capstan_runtime.contract.state import Quarantine
from tests.support.checkpoints import arrays_of, choose, folder_of, save

Damage = Callable[[Path, random.Random], None]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_a_bit(folder: Path, chance: random.Random) -> None:
    path = chance.choice(files_of(folder))
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(folder: Path, chance: random.Random) -> None:
    path = chance.choice(files_of(folder))
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def append(folder: Path, chance: random.Random) -> None:
    with chance.choice(files_of(folder)).open("ab") as file:
        file.write(b"\0" * chance.randint(1, 9))


def zero_a_page(folder: Path, chance: random.Random) -> None:
    path = chance.choice(files_of(folder))
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data))
    page = data[start : start + 64]
    data[start : start + 64] = bytes(byte ^ 0xFF if not any(page) else 0 for byte in page)
    path.write_bytes(data)


def lose_a_file(folder: Path, chance: random.Random) -> None:
    chance.choice([path for path in files_of(folder) if path.name != COMMIT]).unlink()


def swap_two_files(folder: Path, chance: random.Random) -> None:
    one, other = chance.sample(files_of(folder), 2)
    ours, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(ours)


def take_a_file_of_another_step(folder: Path, chance: random.Random) -> None:
    path = chance.choice(files_of(folder))
    other = next(each for each in folder.parent.iterdir() if each.name.startswith("000000000010"))
    shutil.copy(other / path.relative_to(folder), path)


def forge_the_manifest(folder: Path, chance: random.Random) -> None:
    """Another step, with a digest in COMMIT that fits."""
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    forged = manifest.model_copy(update={"step": manifest.step + chance.randint(1, 9)})
    write_with_commit(folder, forged)


def forge_a_rank_digest(folder: Path, chance: random.Random) -> None:
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    ranks = list(manifest.ranks)
    index = chance.randrange(len(ranks))
    ranks[index] = ranks[index].model_copy(update={"digest": name_of(digest_of(chance.randbytes(8)))})
    write_with_commit(folder, manifest.model_copy(update={"ranks": tuple(ranks)}))


def drop_a_tensor_from_the_list(folder: Path, chance: random.Random) -> None:
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    tensors = list(manifest.tensors)
    del tensors[chance.randrange(len(tensors))]
    write_with_commit(folder, manifest.model_copy(update={"tensors": tuple(tensors)}))


def write_with_commit(folder: Path, manifest: Manifest) -> None:
    data = canonical_bytes(manifest)
    (folder / MANIFEST).write_bytes(data)
    note = Commit.model_validate_json((folder / COMMIT).read_bytes())
    (folder / COMMIT).write_bytes(canonical_bytes(note.model_copy(update={"root": name_of(digest_of(data))})))


def commit_twice(folder: Path, chance: random.Random) -> None:
    """A COMMIT in a folder it was not made for."""
    other = next(each for each in folder.parent.iterdir() if each.name.startswith("000000000010"))
    shutil.copy(other / COMMIT, folder / COMMIT)


DAMAGES: tuple[Damage, ...] = (
    flip_a_bit,
    truncate,
    append,
    zero_a_page,
    lose_a_file,
    swap_two_files,
    take_a_file_of_another_step,
    forge_the_manifest,
    forge_a_rank_digest,
    drop_a_tensor_from_the_list,
    commit_twice,
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("fuzz") / "pristine"
    first = save(store, 10)
    save(store, 20, parent=first.root)
    return store


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_damage_is_detected_and_the_checkpoint_before_is_taken(pristine: Path, damage: Damage, seed: int) -> None:
    store = pristine.parent / "damaged"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(pristine, store)
    newest = next(folder for folder in store.iterdir() if folder.name.startswith("000000000020"))
    damage(newest, random.Random(seed))
    quarantined: list[Quarantine] = []
    chosen = choose(store, quarantined=quarantined)
    assert chosen is not None
    assert (chosen.manifest.step, [each.step for each in quarantined]) == (10, [20])
    assert quarantined[0].reason


def test_what_is_whole_is_never_accused(pristine: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(pristine, store)
    (store / "notes.txt").write_text("a stranger's file")
    (store / "000000000099.9.zzzzzzzzzzzz").mkdir()
    for fence in range(2, 12):
        quarantined: list[Quarantine] = []
        chosen = choose(store, fence=fence, quarantined=quarantined)
        assert chosen is not None
        tensors = chosen.tensors()
        assert {name: tensors.read(name).tolist() for name in tensors.names()} == {
            name: array.tolist() for name, array in arrays_of(20).items()
        }
        assert quarantined == []
    assert folder_of(store, chosen.root).parent.joinpath("notes.txt").exists()
    assert (folder_of(store, chosen.root) / SHARDS).is_dir()
