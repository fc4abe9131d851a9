"""`capstan checkpoint adopt`: a job that was made anew goes on from what its predecessor saved."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from capstan_runtime.checkpoint import writer
from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.cli import BAD_BYTES, USAGE, add_arguments, run
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import MANIFEST, SHARDS
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.run_config import Skip
from capstan_runtime.contract.state import Checkpoint
from tests.support.checkpoints import arrays_of, facts_of, flip, folder_of, save, share_of
from tests.support.s3_server import BUCKET, s3_server

NEW = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """What is left of a job's store."""
    return tmp_path / "backup"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The new job's folder, which is not there yet."""
    return tmp_path / "store" / "team" / "digits" / NEW


def adopt(
    lost: Path | str, target: Path | str, *more: str, which: str = "newest", environ: dict[str, str] | None = None
) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(["adopt", str(lost), which, "--to", str(target), *more]), environ or {})


def adopted(store: Store, public_key: str | None = None) -> OpenCheckpoint:
    """The one checkpoint that the new job finds."""
    (candidate,) = list_candidates(store, NEW).candidates
    assert candidate.problem is None
    return open_checkpoint(store, candidate.name, public_key)


def state_of(opened: OpenCheckpoint) -> dict[str, list[Any]]:
    tensors = opened.tensors()
    return {name: tensors.read(name).tolist() for name in tensors.names()}


@pytest.mark.parametrize("world", [1, 3])
def test_the_new_job_finds_the_same_state_under_its_own_name(
    lost: Path, target: Path, world: int, capsys: pytest.CaptureFixture[str]
) -> None:
    old = save(lost, 20, world=world, fence=7, metrics={"accuracy": 0.5})
    assert adopt(lost, target, "--output", "json") == 0
    told = json.loads(capsys.readouterr().out)
    found = adopted(FolderStore(target))
    manifest = found.manifest
    assert told == {
        "place": str(target),
        "job": "team/digits",
        "run": NEW,
        "step": 20,
        "root": found.root,
        "logical": old.logical,
        "parent": old.root,
    }
    assert (manifest.job, manifest.run, manifest.fence, manifest.world) == ("team/digits", NEW, 1, world)
    assert (manifest.parent, manifest.logical, manifest.metrics) == (old.root, old.logical, {"accuracy": 0.5})
    assert state_of(found) == {name: array.tolist() for name, array in arrays_of(20).items()}


def test_a_wrong_byte_is_not_adopted_and_nothing_of_it_stays(lost: Path, target: Path) -> None:
    old = save(lost, 20)
    flip(folder_of(lost, old.root) / SHARDS / "r1-0.safetensors", -1)
    assert adopt(lost, target) == BAD_BYTES
    assert FolderStore(target).children() == []


def test_an_older_one_is_not_taken_for_the_newest_unless_it_is_named(
    lost: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(lost, 10)
    newer = save(lost, 20)
    (folder_of(lost, newer.root) / MANIFEST).write_text("garbage")
    assert adopt(lost, target) == USAGE
    told = capsys.readouterr().err
    assert told.startswith(
        "capstan checkpoint: CHECKPOINT: the newest that counts is of step 10; step 20 is newer, and is Corrupt: "
    )
    assert told.endswith("; mend it, or name the checkpoint to go on from\n")
    assert told.count("\n") == 1
    assert FolderStore(target).children() == []
    assert adopt(lost, target, which="10") == 0
    assert adopted(FolderStore(target)).manifest.step == 10


def test_who_only_looks_at_the_newest_is_told_of_what_was_passed_over(
    lost: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(lost, 10)
    newer = save(lost, 20)
    (folder_of(lost, newer.root) / MANIFEST).write_text("garbage")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["verify", str(lost), "newest"]), {}) == 0
    told = capsys.readouterr()
    assert "CHECKPOINT: the newest that counts is of step 10; step 20 is newer, and is Corrupt: " in told.err


def test_a_job_that_has_trained_adopts_nothing(lost: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(lost, 20)
    save(target, 5, run=NEW)
    assert adopt(lost, target) == ExitCode.CONFIG
    assert f"--to: {target} is not empty; give the folder of a job that has not trained yet" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["digits", f"team/digits/{NEW[:-1]}", f"{NEW}"])
def test_only_a_jobs_folder_is_a_target(
    lost: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(lost, 20)
    # At the root of a file system there is no folder above the uid's.
    assert adopt(lost, f"/{place}" if place == NEW else tmp_path / place) == ExitCode.CONFIG
    assert "is not the folder of a TrainingJob; give STORE/NAMESPACE/NAME/UID" in capsys.readouterr().err


def test_what_left_batches_out_is_refused_because_the_new_job_would_not_know_of_them(
    lost: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = facts_of(20)
    skipped = facts.trainer.model_copy(update={"skips": (Skip(first=9, count=1),)})
    one = writer.Save(FolderStore(lost), facts.model_copy(update={"trainer": skipped}), 0)
    writer.write_shards(one, share_of(arrays_of(20), 0, 1))
    writer.commit(one, 1.0)
    assert adopt(lost, target) == ExitCode.CONFIG
    assert "batches were left out before step 20, which only its own job knows" in capsys.readouterr().err


def test_it_is_signed_for_a_job_that_takes_only_what_is_signed(lost: Path, target: Path, tmp_path: Path) -> None:
    save(lost, 20)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "key.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    assert adopt(lost, target, "--signing-key", str(pem)) == 0
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert adopted(FolderStore(target), public.decode()).manifest.step == 20


@pytest.mark.parametrize("option", ["--public-key", "--signing-key"])
def test_what_is_no_key_is_called_by_its_option(
    lost: Path, target: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(lost, 20)
    pem = tmp_path / "key.pem"
    pem.write_text("no key")
    assert adopt(lost, target, option, str(pem)) == ExitCode.CONFIG
    assert f"capstan checkpoint: {option}: {pem} is not an ECDSA p" in capsys.readouterr().err
    assert FolderStore(target).children() == []


def test_from_a_folder_into_a_bucket(lost: Path) -> None:
    old: Checkpoint = save(lost, 20)
    with s3_server() as server:
        place = f"s3://{BUCKET}/jobs/team/digits/{NEW}"
        assert adopt(lost, place, environ=server.environ()) == 0
        assert adopted(open_store(place, server.environ())).manifest.logical == old.logical
