"""`capstan checkpoint ls|show|verify`, as a user sees it."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.checkpoint.cli import add_arguments, run
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.layout import SHARDS, SaveName, new_attempt
from capstan_runtime.checkpoint.reader import open_checkpoint, read_manifest
from capstan_runtime.checkpoint.retention import remove_checkpoint
from capstan_runtime.contract.exit_codes import ExitCode
from tests.support.checkpoints import RUN, folder_of, save

cli = "capstan_runtime.checkpoint.cli"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two checkpoints and a torn save, three folders down."""
    store = tmp_path / "default" / "digits" / RUN
    first = save(store, 10)
    save(store, 20, parent=first.root)
    (store / str(SaveName(30, 1, new_attempt(RUN))) / SHARDS).mkdir(parents=True)
    return store


def capstan_checkpoint(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def test_ls_finds_checkpoints_in_any_folder_above_them(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for uri in (str(store), str(tmp_path), f"file://{tmp_path}"):
        assert capstan_checkpoint("ls", uri) == 0
        header, *rows = capsys.readouterr().out.splitlines()
        assert header.split() == ["STEP", "FENCE", "RANKS", "LOSS", "SIZE", "SAVED", "STATE", "ROOT", "PATH"]
        found = [(row.split()[0], state) for row in rows for state in ("Committed", "Torn") if state in row]
        assert found == [("10", "Committed"), ("20", "Committed"), ("30", "Torn")]


def test_ls_as_json_is_complete(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert capstan_checkpoint("ls", str(store), "--output", "json") == 0
    first = json.loads(capsys.readouterr().out)[0]
    folder = folder_of(store, first["root"])
    assert first == {
        "state": "Committed",
        "step": 10,
        "fence": 1,
        "createdAt": 1010.0,
        "world": 2,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "loss": 1 / 11,
        "root": first["root"],
        "path": str(folder),
        "problem": None,
    }


def test_a_checkpoint_that_its_run_removes_meanwhile_is_neither_listed_nor_called_bad(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(folder: Path) -> Any:
        if folder.name.startswith("000000000010") and folder.exists():
            remove_checkpoint(folder, Disk())
        return folder

    for command in ("ls", "verify"):
        shutil.copytree(store, store.parent / command)
        with monkeypatch.context() as patch:
            patch.setattr(f"{cli}.read_manifest", lambda folder: read_manifest(removed(folder)))
            patch.setattr(f"{cli}.open_checkpoint", lambda folder: open_checkpoint(removed(folder)))
            assert capstan_checkpoint(command, str(store.parent / command), "--output", "json") == 0
        found = json.loads(capsys.readouterr().out)
        assert {Path(each["path"]).name[:12] for each in found} <= {"000000000020", "000000000030"}
        assert all(each["problem"] in (None, "was never committed") for each in found)


def test_show_tells_lineage_state_and_tensors(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = next(path for path in store.iterdir() if path.name.startswith("000000000020"))
    assert capstan_checkpoint("show", str(folder)) == 0
    shown = capsys.readouterr().out
    assert f"job                 default/test (uid {RUN})" in shown
    assert "saved by            flax, 2 ranks, fence 1" in shown
    assert "  F32   13 x 7            params/kernel" in shown
    assert "  I64   scalar            optimizer/count" in shown
    assert capstan_checkpoint("show", str(folder), "--output", "json") == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["trainer"]["step"] == 20


def test_verify_reads_everything_and_names_what_is_wrong(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capstan_checkpoint("verify", str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 checkpoints verified"
    newest = next(path for path in store.iterdir() if path.name.startswith("000000000020"))
    shard = newest / SHARDS / "r0-0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x99")
    assert capstan_checkpoint("verify", str(tmp_path)) == ExitCode.CORRUPT_CHECKPOINT
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 checkpoints verified"
    assert f"{newest.name}/{SHARDS}/r0-0.safetensors: leaf 0 " in lines[1]
    assert capstan_checkpoint("verify", str(newest), "--output", "json") == ExitCode.CORRUPT_CHECKPOINT
    (result,) = json.loads(capsys.readouterr().out)
    assert "leaf 0" in result["problem"]


@pytest.mark.parametrize(
    ("uri", "code", "message"),
    [
        ("s3://bucket/x", ExitCode.CONFIG, "URI: s3://bucket/x is not supported; give a path or file:///path"),
        ("/no/such/folder", ExitCode.CONFIG, "URI: /no/such/folder is not a folder; give a store, a checkpoint or"),
    ],
)
def test_a_wrong_uri_is_explained(uri: str, code: ExitCode, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert capstan_checkpoint("ls", uri) == code
    assert message in capsys.readouterr().err


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert capstan_checkpoint("verify", str(tmp_path)) == 1
    assert capsys.readouterr().err.startswith(f"no checkpoint in {tmp_path}")
