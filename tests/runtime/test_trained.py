"""Which checkpoint a run learns from: decided once, kept for the run's life, and refused where it does not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.commands.survey import survey
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import TEACHER
from capstan_runtime.checkpoint.marks import is_pinned
from capstan_runtime.checkpoint.signing import NotSigned
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.registry import REGISTRY
from capstan_runtime.contract.signature import Signature
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.distillation import find_teacher, require_teacher_fits
from capstan_runtime.engine import Trained
from capstan_runtime.errors import ConfigError, CorruptCheckpoint
from capstan_runtime.registry.registry import Registry
from capstan_runtime.report import Reporter
from capstan_runtime.voice import Voice
from tests.runtime.test_signing import public_text
from tests.support.checkpoints import RUN, flip
from tests.support.engines import FLAX, IMAGES, MLP, TOKENS, context_of
from tests.support.teachers import run_of_teacher, values_of, write_teacher

CNN = Model.parse({"cnn": {"channels": [8], "groups": 4}})
SIGNATURE = Signature(model=CNN, kind="image", input_shape=IMAGES.input_shape, outputs=IMAGES.outputs)
STAGE = {"registry": {"name": "teacher", "stage": "production"}}


def teach(place: Path, version: str, seed: int, signature: Signature | None = SIGNATURE) -> str:
    """A version of `teacher` in the store at `place`."""
    return write_teacher(place, signature, values_of(SIGNATURE, seed), version=version, step=seed)


def context(place: Path, teacher: dict[str, Any], rank: int = 0, **more: Any) -> TrainContext:
    learning = context_of(FLAX, MLP, rank, 2, compression={"distill": {"teacher": teacher}}, **more)
    return replace(learning, environ={REGISTRY: str(place)})


def find(place: Path, teacher: dict[str, Any], rank: int = 0, uid: str = "u-1") -> Trained:
    store = FolderStore(place / "tests" / "small" / uid)
    found = find_teacher(context(place, teacher, rank), store, Voice(Reporter(None), rank, 1))
    assert found is not None
    return found


def test_a_run_keeps_the_teacher_that_it_began_with_whatever_is_promoted_meanwhile(tmp_path: Path) -> None:
    registry = Registry(FolderStore(tmp_path), {})
    first, second = teach(tmp_path, "1.0.0", 1), teach(tmp_path, "2.0.0", 2)
    registry.promote("teacher", "1.0.0", "production", "a test")
    assert find(tmp_path, STAGE).root == first
    registry.promote("teacher", "2.0.0", "production", "a test")
    again = find(tmp_path, STAGE, rank=1)
    assert (again.root, again.signature) == (first, SIGNATURE)
    assert find(tmp_path, STAGE, uid="u-2").root == second, "another run begins with what the stage means now"
    decided = json.loads((tmp_path / "tests/small/u-1" / TEACHER).read_bytes().splitlines()[0])
    assert decided == {
        "format": "capstan-trained/1",
        "asked": "teacher@1.0.0",
        "run": run_of_teacher("teacher"),
        "root": first,
    }
    assert survey(FolderStore(tmp_path / "tests/small/u-1")).foreign == ()


def test_a_checkpoint_that_teaches_stays(tmp_path: Path) -> None:
    root = teach(tmp_path, "1.0.0", 1)
    run_store = FolderStore(tmp_path / run_of_teacher("teacher"))
    (candidate,) = list_candidates(run_store, RUN).candidates
    (run_store._folder / str(candidate.name) / "PINNED").unlink()
    own = tmp_path / "tests" / "teacher" / RUN
    own.parent.mkdir(parents=True)
    shutil.copytree(run_store._folder, own)
    found = find(tmp_path, {"checkpoint": {"run": f"tests/teacher/{RUN}", "digest": root}})
    assert found.root == root
    assert is_pinned(FolderStore(own), candidate.name)


OTHER = {"checkpoint": {"run": f"default/teacher/{RUN}", "digest": "blake3:" + "0" * 64}}
GONE = {"checkpoint": {"run": f"tests/teacher/{RUN}", "digest": "blake3:" + "0" * 64}}


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (OTHER, r"checkpoint\.run: default/teacher/.* is of another namespace than tests; name a run of tests, or "),
        (GONE, r"teacher: .* holds no checkpoint blake3:0+ of run .*; it may have been removed by its retention: "),
        (
            {"registry": {"name": "nonesuch", "version": "1.0.0"}},
            r"registry\.name: nonesuch is not registered in .* \(models: teacher\); register it first",
        ),
        (STAGE, r"registry\.stage: teacher has no production \(stages: none\); promote a version to it first"),
        (
            {"registry": {"name": "teacher", "version": "3.0.0"}},
            r"registry\.version: teacher has no version 3\.0\.0 \(versions: 1\.0\.0\); choose one, or register it",
        ),
    ],
    ids=["another namespace", "no checkpoint", "no model", "no stage", "no version"],
)
def test_a_teacher_that_is_not_there_is_refused_in_one_line(
    tmp_path: Path, teacher: dict[str, Any], message: str
) -> None:
    teach(tmp_path, "1.0.0", 1)
    with pytest.raises(ConfigError, match=r"^spec\.compression\.distill\.teacher") as refused:
        find(tmp_path, teacher)
    assert "\n" not in str(refused.value)
    assert refused.match(message)


def test_a_teacher_of_somebody_elses_key_is_refused(tmp_path: Path) -> None:
    teach(tmp_path, "1.0.0", 1)
    key = ec.generate_private_key(ec.SECP256R1())
    signed = {"registry": {"name": "teacher", "version": "1.0.0", "publicKey": public_text(key)}}
    with pytest.raises(NotSigned, match=r"_models/teacher/versions/1\.0\.0: is not signed"):
        find(tmp_path, signed)


def test_a_teacher_that_does_not_say_what_it_is_is_refused(tmp_path: Path) -> None:
    teach(tmp_path, "1.0.0", 1, signature=None)
    with pytest.raises(ConfigError, match=r"teacher@1\.0\.0 does not say what model it is: "):
        find(tmp_path, {"registry": {"name": "teacher", "version": "1.0.0"}})


def test_a_changed_byte_of_a_teacher_is_noticed_before_anything_is_learnt(tmp_path: Path) -> None:
    teach(tmp_path, "1.0.0", 1)
    found = find(tmp_path, {"registry": {"name": "teacher", "version": "1.0.0"}})
    (shard, *_) = sorted((tmp_path / run_of_teacher("teacher")).glob("*/shards/*.safetensors"))
    flip(shard, shard.stat().st_size - 1)
    with pytest.raises(CorruptCheckpoint, match="safetensors"):
        list(map(found.tensors.read, found.tensors.names()))


NORMAL = {"mean": [0.5], "std": [2.0]}


@pytest.mark.parametrize(
    ("changed", "data", "more", "message"),
    [
        ({"kind": "vector"}, IMAGES, {}, "has kind of data vector, and this run image; choose one of the same"),
        ({"outputs": 7}, IMAGES, {}, "has outputs 7, and this run 10; choose one with as many"),
        ({"condition": 3}, IMAGES, {}, "takes 3 numbers of data.arrays.condition, and the data has 0; "),
        ({"input_shape": (8, 8, 3)}, IMAGES, {}, "was trained on 8 x 8 x 3, and this run on 8 x 8 x 1; "),
        (
            {"normalize": NORMAL},
            IMAGES,
            {},
            r"has augmentation.normalize mean \[0.5\] and std \[2.0\], and this run none; set ",
        ),
        (
            {"model": Model.parse(MLP)},
            IMAGES,
            {"augmentation": {"multiScale": {"sizes": [8, 16]}}},
            "is an mlp, which takes pictures of one size, and spec.augmentation.multiScale changes it; ",
        ),
        (
            {"kind": "tokens", "input_shape": (8,), "outputs": 64},
            TOKENS,
            {},
            "was trained on 8, and this run on 16; choose one of the same size or longer",
        ),
        ({"kind": "tokens", "input_shape": (32,), "outputs": 64, "text": True}, TOKENS, {}, "has text True, and this"),
    ],
    ids=["kind", "outputs", "condition", "channels", "normalize", "sizes", "length", "text"],
)
def test_a_teacher_that_cannot_answer_what_the_run_asks_is_refused(
    changed: dict[str, Any], data: DataSpec, more: dict[str, Any], message: str
) -> None:
    fits = replace(context(Path("/nowhere"), STAGE, **more), data=data)
    teacher = Signature.model_validate({**SIGNATURE.model_dump(), **changed}, by_name=True)
    with pytest.raises(ConfigError, match=rf"^spec\.compression\.distill\.teacher: {message}") as refused:
        require_teacher_fits(teacher, fits)
    assert "\n" not in str(refused.value)


def test_a_teacher_may_see_pictures_of_another_size_if_its_model_can(tmp_path: Path) -> None:
    teach(tmp_path, "1.0.0", 1)
    wider = SIGNATURE.model_copy(update={"input_shape": (16, 16, 1)})
    require_teacher_fits(wider, context(tmp_path, STAGE))
