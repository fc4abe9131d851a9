"""`capstan checkpoint`, as a user sees it."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import load_file

from capstan_runtime.checkpoint import candidates, cli
from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.claims import write_claim
from capstan_runtime.checkpoint.cli import BAD_BYTES, USAGE, add_arguments, run
from capstan_runtime.checkpoint.commands import check, look
from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import (
    COMMIT,
    MANIFEST,
    PINNED,
    QUARANTINED,
    SHARDS,
    SIGNATURE,
    VERIFIED,
    SaveName,
    new_attempt,
)
from capstan_runtime.checkpoint.manifest import Claim
from capstan_runtime.checkpoint.marks import mark_verified
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.retention import remove_checkpoint
from capstan_runtime.checkpoint.signing import sign_manifest
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.state import Checkpoint
from tests.support.checkpoints import RUN, LockedStore, arrays_of, choose, flip, folder_of, retention, save, steps_in
from tests.support.s3_server import BUCKET, s3_server

STATE_BYTES = sum(array.nbytes for array in arrays_of(1).values())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two checkpoints and a torn save, three folders down."""
    store = tmp_path / "default" / "digits" / RUN
    first = save(store, 10)
    save(store, 20, parent=first.root, metrics={"accuracy": 0.5})
    (store / str(SaveName(30, 1, new_attempt(RUN))) / SHARDS).mkdir(parents=True)
    return store


def capstan_checkpoint(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(list(map(str, arguments))), {})


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> Any:
    """What the command says as JSON."""
    capsys.readouterr()
    assert capstan_checkpoint(*arguments, "--output", "json") == code
    return json.loads(capsys.readouterr().out)


def listed(capsys: pytest.CaptureFixture[str], place: Path) -> dict[int, dict[str, Any]]:
    (found,) = answer(capsys, "ls", place)["stores"]
    return {row["step"]: row for row in found["checkpoints"]}


def folder(store: Path, step: int) -> Path:
    return next(path for path in store.iterdir() if path.name.startswith(f"{step:012d}"))


def damage(store: Path, step: int) -> None:
    flip(folder(store, step) / SHARDS / "r0-0.safetensors", -1)


def test_ls_finds_stores_in_any_folder_above_them(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "notes.txt").write_text("a stranger's file")
    for place in (str(store), f"{tmp_path}/", f"file://{tmp_path}"):
        assert capstan_checkpoint("ls", place) == 0
        where, header, *rows, foreign = capsys.readouterr().out.splitlines()
        assert where == str(store)
        assert header.split() == list(look.HEAD)
        assert [row.split()[0] for row in rows] == ["10", "20", "30"]
        assert ["Committed" in row for row in rows] == [True, True, False]
        assert rows[2].endswith("Torn       is not committed")
        assert foreign == "not ours, left alone: notes.txt"


def test_ls_as_json_has_all_fields(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = answer(capsys, "ls", store)["stores"]
    second = found["checkpoints"][1]
    first_root = found["checkpoints"][0]["root"]
    assert {**found, "checkpoints": len(found["checkpoints"])} == {
        "place": str(store),
        "checkpoints": 3,
        "foreign": [],
    }
    assert second == {
        "name": folder(store, 20).name,
        "step": 20,
        "fence": 1,
        "condition": "Committed",
        "problem": None,
        "root": second["root"],
        "logical": second["logical"],
        "parent": first_root,
        "job": "default/test",
        "run": RUN,
        "framework": "flax",
        "world": 2,
        "bytes": STATE_BYTES,
        "createdAt": 1020.0,
        "verifiedAt": None,
        "pinned": False,
        "metrics": {"loss": 1 / 21, "accuracy": 0.5},
    }
    assert second["root"].startswith("blake3:")
    assert second["logical"].startswith("blake3:")


def test_ls_says_why_a_checkpoint_does_not_count(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (40, 50, 60):
        save(store, step, fence=2)
    choose(store, fence=3)
    late_save(store, 70, fence=2)
    manifest = folder(store, 40) / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-1])
    (folder(store, 50) / QUARANTINED).write_text('{"reason": "somebody found it bad"}')
    later = folder(store, 60)
    data = (later / MANIFEST).read_bytes().replace(b"capstan-checkpoint/2", b"capstan-checkpoint/9")
    (later / MANIFEST).write_bytes(data)
    rewrite_commit(later)
    rows = listed(capsys, store)
    assert {step: row["condition"] for step, row in rows.items()} == {
        10: "Committed",
        20: "Committed",
        30: "Torn",
        40: "Corrupt",
        50: "Quarantined",
        60: "LaterFormat",
        70: "Superseded",
    }
    assert "committed was blake3:" in rows[40]["problem"]
    assert rows[50]["problem"] == "somebody found it bad"
    assert "its format is not capstan-checkpoint/2" in rows[60]["problem"]
    assert rows[70]["problem"] == "was committed after fence 3 had taken over"


def late_save(store: Path, step: int, fence: int) -> Checkpoint:
    """By a process that should be dead, and did not look at the claims since before there was a newer one."""
    elsewhere = store.parent / f"late{step}"
    checkpoint = save(elsewhere, step, fence=fence)
    folder(elsewhere, step).rename(store / folder(elsewhere, step).name)
    elsewhere.rmdir()
    return checkpoint


def rewrite_commit(at: Path) -> None:
    """As if the manifest that is there had been committed."""
    note = json.loads((at / COMMIT).read_bytes())
    note["root"] = name_of(digest_of((at / MANIFEST).read_bytes()))
    (at / COMMIT).write_text(json.dumps(note, sort_keys=True, separators=(",", ":")))


def test_a_checkpoint_that_its_run_removes_meanwhile_is_neither_listed_nor_called_bad(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def removing(action: Any) -> Any:
        def act(store: FolderStore, name: SaveName, *rest: Any) -> Any:
            if name.step == 10 and Path(store.place, str(name)).exists():
                remove_checkpoint(store, name)
            return action(store, name, *rest)

        return act

    for command, module, action in (("ls", candidates, "inspect"), ("verify", check, "open_checkpoint")):
        copy = store.parent / command
        shutil.copytree(store, copy)
        with monkeypatch.context() as patch:
            patch.setattr(module, action, removing(getattr(module, action)))
            document = answer(capsys, command, copy)
        rows = document["checkpoints"] if command == "verify" else document["stores"][0]["checkpoints"]
        assert [row["step"] for row in rows] == ([20] if command == "verify" else [20, 30])


@pytest.mark.parametrize("which", ["20", "newest", "root", "prefix", "logical", "folder", None])
def test_a_checkpoint_has_several_names(store: Path, capsys: pytest.CaptureFixture[str], which: str | None) -> None:
    row = listed(capsys, store)[20]
    root = row["root"]
    names = {
        "root": root,
        "logical": row["logical"],
        "prefix": root.removeprefix("blake3:")[:12],
        "folder": folder(store, 20).name,
    }
    place = folder(store, 20) if which is None else store
    arguments = [] if which is None else [names.get(which, which)]
    assert answer(capsys, "show", place, *arguments)["root"] == root


def test_of_two_attempts_at_a_step_the_one_that_counts_is_meant(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(store, 40, fence=2)
    choose(store, fence=3)
    late = late_save(store, 50, fence=2)
    right = save(store, 50, fence=3)
    assert late.root != right.root
    assert answer(capsys, "show", store, "50")["root"] == right.root
    again = save(store, 50, fence=4)
    assert again.root != right.root
    assert answer(capsys, "show", store, "50")["root"] == again.root, "the same state, of which the later knows more"
    save(store, 50, fence=5, arrays=arrays_of(51))
    assert capstan_checkpoint("show", store, "50") == USAGE
    assert "50 may mean any of" in capsys.readouterr().err


def test_a_checkpoint_may_be_named_behind_options(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(store), "--level", "manifest", "10"]) == 0
    assert "/000000000010.1." in capsys.readouterr().out
    assert cli.main(["convert", str(store), "--to", str(tmp_path / "x"), "newest"]) == 0
    capsys.readouterr()
    assert cli.main(["show", "--output", "json", str(store), "20"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 20
    for more in (["20", "30"], ["20", "--bogus"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["verify", str(store), "--level", "manifest", *more])
        assert ended.value.code == USAGE
        assert capsys.readouterr().err.endswith(f"capstan checkpoint: error: unrecognized arguments: {more[1]}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ls", "/no/such/folder"), "STORE: /no/such/folder is not a folder; give a store, a checkpoint or"),
        (("ls", "ftp://host/x"), "capstan checkpoint: STORE: ftp://host/x is not supported; give a folder, or s3://"),
        (("verify", "{empty}"), "STORE: there is no checkpoint in {empty} or the 8 levels of folders below it"),
        (("show", "{store}"), "list them with: capstan checkpoint ls {store}"),
        (
            ("show", "{store}", "77"),
            "CHECKPOINT: {store} holds no checkpoint 77; list them with: capstan checkpoint ls {store}\n",
        ),
        (("show", "{store}", "what?"), "CHECKPOINT: 'what?' is no step, digest or folder"),
        (("show", "{store}", "000000000077.1.0123456789ab"), "there is no 000000000077.1.0123456789ab in"),
        (("show", "{store}/000000000077.1.0123456789ab"), "STORE: there is no 000000000077.1.0123456789ab in {store}"),
        (("show", "{tmp}", "20"), "there are 2 stores below {tmp}"),
        (("pin", "{store}", "{torn}"), "{torn} is not committed; only a checkpoint can be pinned"),
        (
            ("gc", "{store}", "--last", "1"),
            "--last: 1 is refused: give 2 or more: the newest two that verify always stay",
        ),
        (("verify", "{store}", "--public-key", "/no/key"), "--public-key: /no/key cannot be read"),
    ],
)
def test_what_is_not_there_is_explained_in_one_line(
    store: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"store": store, "tmp": tmp_path, "empty": tmp_path / "empty", "torn": folder(store, 30).name}
    names["empty"].mkdir()  # type: ignore[union-attr]
    save(tmp_path / "other", 20)
    assert capstan_checkpoint(*(text.format(**names) for text in arguments)) == USAGE
    error = capsys.readouterr().err
    assert message.format(**names) in error
    assert (error.startswith("capstan checkpoint: "), error.count("\n")) == (True, 1)


def test_show_tells_lineage_state_and_tensors(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert capstan_checkpoint("show", store, "20") == 0
    shown = capsys.readouterr().out
    for line in (
        "condition           Committed",
        f"job                 default/test (uid {RUN})",
        "saved by            flax, 2 ranks, fence 1",
        "signed              no",
        "accuracy            0.5",
        "left out            no batches",
        "  F32   13 x 7            params/kernel",
        "  I64   scalar            optimizer/count",
    ):
        assert line in shown
    document = answer(capsys, "show", store, "20")
    assert document["manifest"]["trainer"]["step"] == 20
    assert (document["condition"], document["signed"]) == ("Committed", False)


def test_one_of_something_is_not_called_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 10, arrays={"params/only": np.ones(3, np.float32)}, world=1)
    assert capstan_checkpoint("show", tmp_path, "10") == 0
    shown = capsys.readouterr().out
    assert ("flax, 1 rank, fence 1" in shown, " in 1 file\n" in shown, "\n1 tensor\n" in shown) == (True, True, True)


def test_verify_reads_everything_and_names_the_first_bad_place(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capstan_checkpoint("verify", tmp_path) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == "2 of 2 checkpoints are good"
    assert re.search(r"in [0-9.e-]+ s, [1-9][0-9,.]* (K|M|G)B/s$", output.out, re.MULTILINE)
    assert not re.search(r"\b0(\.0+)? (s|.B)\b", output.out)
    assert output.err == f"skipped {folder(store, 30)}: Torn: is not committed\n"
    damage(store, 20)
    assert capstan_checkpoint("verify", store) == BAD_BYTES
    told = capsys.readouterr().out
    assert told.endswith(f"resumes from it: capstan checkpoint scrub {folder(store, 20)}\n")
    document = answer(capsys, "verify", store, code=BAD_BYTES)
    assert (document["good"], document["bad"]) == (1, 1)
    good, bad = document["checkpoints"]
    assert f"{folder(store, 20).name}/{SHARDS}/r0-0.safetensors: bytes " in bad["problem"]
    assert good["bytes"] == good["bytesRead"] > STATE_BYTES
    assert good["problem"] is None
    assert set(good) == {
        *("place", "name", "step", "root", "logical", "level", "bytes", "bytesRead", "seconds", "problem")
    }
    assert answer(capsys, "verify", store, "10")["good"] == 1


def test_a_level_reads_less(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(store, 20)
    assert answer(capsys, "verify", store, "20", "--level", "manifest")["checkpoints"][0]["bytesRead"] == 0
    sampled = answer(capsys, "verify", store, "10", "--level", "sampled")["checkpoints"][0]
    assert 0 < sampled["bytesRead"] < sampled["bytes"]


def test_verify_asks_for_a_signature_where_a_key_is_given(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "private.pem").write_bytes(private)
    (tmp_path / "public.pem").write_bytes(public)
    at = folder(store, 10)
    (at / "MANIFEST.sig").write_bytes(sign_manifest((at / MANIFEST).read_bytes(), tmp_path / "private.pem"))
    good, bad = answer(capsys, "verify", store, "--public-key", tmp_path / "public.pem", code=BAD_BYTES)["checkpoints"]
    assert (good["problem"], "is not signed" in bad["problem"]) == (None, True)
    target = tmp_path / "model"
    assert capstan_checkpoint("convert", store, "20", "--to", target, "--public-key", tmp_path / "public.pem") == 1
    assert not target.exists()
    capsys.readouterr()
    assert capstan_checkpoint("verify", store, "20", "--public-key", tmp_path / "public.pem") == BAD_BYTES
    assert "scrub" not in capsys.readouterr().out, "another key is no damage"


def test_a_later_format_is_no_damage(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = folder(store, 20)
    (at / MANIFEST).write_bytes((at / MANIFEST).read_bytes().replace(b"capstan-checkpoint/2", b"capstan-checkpoint/9"))
    rewrite_commit(at)
    assert [each["step"] for each in answer(capsys, "verify", store)["checkpoints"]] == [10]
    assert capstan_checkpoint("verify", store, "20") == ExitCode.CONFIG
    assert "its format is not capstan-checkpoint/2" in capsys.readouterr().err


def test_diff_tells_what_changed_and_by_how_much(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = dict(arrays_of(20))
    arrays["params/kernel"] = arrays["params/kernel"].copy()
    arrays["params/kernel"][3, 2:4] += np.float32(0.5)
    arrays["params/bias"] = arrays["params/bias"].astype(np.float32)
    arrays["params/new"] = np.ones(2, np.float32)
    del arrays["optimizer/mask"]
    save(store, 40, arrays=arrays, world=3)
    document = answer(capsys, "diff", store, "20", "40")
    changed = {each["name"]: each for each in document["changed"]}
    assert (document["added"], document["removed"], document["same"]) == (["params/new"], ["optimizer/mask"], 2)
    assert document["sameState"] is False
    kernel = changed.pop("params/kernel")
    assert kernel.pop("maxAbsDifference") == pytest.approx(0.5, abs=1e-6)
    assert kernel == {
        "name": "params/kernel",
        "was": "F32[13, 7]",
        "now": "F32[13, 7]",
        "elements": 91,
        "changed": 2,
    }
    assert list(changed.values()) == [
        {
            "name": "params/bias",
            "was": "F16[7]",
            "now": "F32[7]",
            "elements": 7,
            "changed": None,
            "maxAbsDifference": None,
        }
    ]
    assert capstan_checkpoint("diff", store, "20", "40") == 0
    assert "params/kernel  F32[13, 7]        2 of 91  0.5" in capsys.readouterr().out


def test_the_same_state_is_the_same_however_it_is_sharded_and_wherever_it_is(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "other", 20, world=3, shard_bytes=64)
    document = answer(capsys, "diff", store, "20", "newest", "--with", tmp_path / "other")
    assert (document["sameState"], document["changed"], document["same"]) == (True, [], 5)
    assert document["a"]["root"] != document["b"]["root"]
    assert document["a"]["logical"] == document["b"]["logical"]


def test_not_a_number_is_a_difference_that_has_no_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1, arrays={"w": np.array([1.0, np.nan, np.inf, 2.0], np.float32)})
    save(tmp_path, 2, arrays={"w": np.array([np.nan, np.nan, -np.inf, 2.5], np.float32)})
    (change,) = answer(capsys, "diff", tmp_path, "1", "2")["changed"]
    assert (change["changed"], change["maxAbsDifference"]) == (3, 0.5)


def test_a_folder_that_cannot_be_read_is_told_and_the_others_are_checked(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = folder(store, 20).name
    monkeypatch.setattr("capstan_runtime.checkpoint.open.FolderStore", lambda path: LockedStore(path, locked))
    assert {step: row["condition"] for step, row in listed(capsys, store).items()} == {
        10: "Committed",
        20: "Unreadable",
        30: "Torn",
    }
    for command in ("verify", "scrub"):
        good, bad = answer(capsys, command, store, code=BAD_BYTES)["checkpoints"]
        assert (good["problem"], "Permission denied" in bad["problem"]) == (None, True)
    assert list(store.rglob(QUARANTINED)) == []


def test_a_volume_s_own_folder_is_not_looked_into(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lost+found").mkdir()
    monkeypatch.setattr("capstan_runtime.checkpoint.open.FolderStore", lambda path: LockedStore(path, "lost+found"))
    assert sorted(listed(capsys, tmp_path)) == [10, 20, 30]


def test_scrub_quarantines_what_is_bad_and_marks_what_is_good(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(store, 20)
    assert capstan_checkpoint("scrub", store, "--dry-run") == BAD_BYTES
    assert {row["condition"] for row in listed(capsys, store).values()} == {"Committed", "Torn"}
    assert capstan_checkpoint("scrub", store) == BAD_BYTES
    rows = listed(capsys, store)
    assert {step: (row["condition"], row["verifiedAt"] is not None) for step, row in rows.items()} == {
        10: ("Committed", True),
        20: ("Quarantined", False),
        30: ("Torn", False),
    }
    assert capstan_checkpoint("ls", store) == 0
    assert "verified 0s ago" in capsys.readouterr().out
    assert capstan_checkpoint("scrub", store) == 0
    chosen = choose(store)
    assert chosen is not None
    assert chosen.manifest.step == 10


def test_convert_writes_what_other_libraries_read(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = answer(capsys, "convert", store, "newest", "--to", tmp_path / "model")
    loaded = load_file(tmp_path / "model" / "model.safetensors")
    wanted = {name[7:]: array for name, array in arrays_of(20).items() if name.startswith("params/")}
    assert {name: array.tolist() for name, array in loaded.items()} == {
        name: array.tolist() for name, array in wanted.items()
    }
    assert (document["tensors"], document["folder"]) == (3, str(tmp_path / "model"))
    assert capstan_checkpoint("convert", store, "newest", "--to", tmp_path / "model") == ExitCode.CONFIG
    damage(store, 20)
    assert capstan_checkpoint("convert", store, "20", "--to", tmp_path / "bad", "--optimizer") == BAD_BYTES
    assert not (tmp_path / "bad").exists()


def test_gc_shows_first_and_removes_when_told_to(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (40, 50, 60):
        save(store, step, metrics={"accuracy": 1 - step / 100})
    assert capstan_checkpoint("pin", store, "10") == 0
    rules = ("gc", store, "--last", "2", "--best", "accuracy:max")
    planned = answer(capsys, *rules)
    assert (planned["removed"], [each["step"] for each in planned["checkpoints"]]) == (False, [20])
    assert capstan_checkpoint(*rules) == 0
    assert "1 would be removed; --yes removes them" in capsys.readouterr().out
    assert steps_in(store) == [60, 50, 40, 20, 10]
    assert not (folder(store, 60) / VERIFIED).exists(), "a look changes nothing"
    done = answer(capsys, *rules, "--yes")
    assert (done["removed"], [each["step"] for each in done["checkpoints"]]) == (True, [20])
    assert steps_in(store) == [60, 50, 40, 10]
    assert capstan_checkpoint("unpin", store, "10") == 0
    assert capstan_checkpoint(*rules, "--yes") == 0
    assert steps_in(store) == [60, 50, 40]
    assert folder(store, 30).exists(), "of a run without a claim, a save may be on its way"


def test_gc_never_removes_the_newest_two_that_verify(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (40, 50, 60):
        save(store, step)
    for step in (50, 60):
        damage(store, step)
    document = answer(capsys, "gc", store, "--last", "2", "--yes")
    assert [each["step"] for each in document["checkpoints"]] == [10]
    assert len(document["bad"]) == 2
    assert steps_in(store) == [60, 50, 40, 20], "what is bad is for scrub, or the run itself, to mark"


def test_gc_leaves_alone_what_a_living_attempt_may_use(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resumed = save(store, 40, fence=2)
    chosen = choose(store, fence=3)
    assert chosen is not None
    assert chosen.root == resumed.root
    for step in (50, 60, 70):
        save(store, step, fence=3)
    late = late_save(store, 45, fence=2)
    being_written = store / str(SaveName(80, 3, new_attempt(RUN)))
    (being_written / SHARDS).mkdir(parents=True)
    document = answer(capsys, "gc", store, "--last", "2", "--yes")
    assert {each["step"]: each["reason"] for each in document["checkpoints"]} == {
        30: "was never committed",
        45: "was committed too late",
        10: "no rule keeps it",
        20: "no rule keeps it",
        50: "no rule keeps it",
    }
    assert steps_in(store) == [70, 60, 40]
    assert being_written.exists()
    assert not any(late.root == row["root"] for row in listed(capsys, store).values())


def kept_by_gc(capsys: pytest.CaptureFixture[str], store: Path, *more: str | Path) -> tuple[list[int], dict[int, str]]:
    """Steps that go, and what else would go, each with why it stays; then it is done as it was shown."""
    planned = answer(capsys, "gc", store, "--last", "2", *more)
    done = answer(capsys, "gc", store, "--last", "2", "--yes", *more)
    assert (done["checkpoints"], done["kept"]) == (planned["checkpoints"], planned["kept"])
    return [each["step"] for each in done["checkpoints"]], {each["step"]: each["reason"] for each in done["kept"]}


LATE = "is not below the newest that verifies: the store may only be late to show all of it"


def test_gc_leaves_alone_what_may_be_a_commit_that_the_store_shows_late(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operator knows of a commit before every node sees it, and the next attempt asks for it."""
    for step in (40, 50):
        save(store, step, fence=2)
    assert choose(store, fence=3) is not None
    for step in (35, 50, 60):
        late_save(store, step, fence=2)
    half_shown = store / str(SaveName(70, 2, new_attempt(RUN)))
    (half_shown / SHARDS).mkdir(parents=True)
    gone, kept = kept_by_gc(capsys, store)
    assert (gone, kept) == ([35, 30, 10, 20], {50: LATE, 60: LATE, 70: LATE})
    assert half_shown.exists()
    assert capstan_checkpoint("gc", store, "--last", "2") == 0
    assert f"kept: {half_shown}: {LATE}" in capsys.readouterr().out.splitlines()


def test_gc_leaves_all_alone_from_which_an_attempt_is_about_to_resume(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It claims what there is before it reads it, and says afterwards which of it it took."""
    roots = [each.root for each in list_candidates(FolderStore(store), RUN).candidates if each.root]
    write_claim(FolderStore(store), Claim(run=RUN, fence=2, attempt=new_attempt(RUN), resumed=None, committed=roots))
    for step in (40, 50, 60):
        save(store, step, fence=2)
    about = "its newest attempt has not said yet which one it resumes from"
    assert kept_by_gc(capsys, store) == ([30, 40], {10: about, 20: about})


def test_gc_stops_when_an_attempt_begins_after_it_has_looked(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (40, 50, 60):
        save(store, step)
    begun: list[object] = []

    def children(self: FolderStore, key: str = "") -> list[str]:
        if not begun and (folder(store, 50) / VERIFIED).exists():  # both have been read: now it is removed
            begun.append(None)
            begun.append(choose(store, fence=3))
        return real(self, key)

    real = FolderStore.children
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderStore, "children", children)
        document = answer(capsys, "gc", store, "--last", "2", "--yes")
    assert len(begun) == 2
    meanwhile = "another attempt has begun since it was looked at; run gc again"
    assert (document["checkpoints"], {each["step"]: each["reason"] for each in document["kept"]}) == (
        [],
        {10: meanwhile, 20: meanwhile, 40: meanwhile, 30: "may still be written"},
    )
    assert steps_in(store) == [60, 50, 40, 20, 10]


def test_where_checkpoints_are_signed_gc_counts_no_unsigned_one_as_one_of_the_newest_two(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With publicKey a run can take back none but those: the others prove nothing."""
    ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    for step in (40, 50, 60, 70):
        save(store, step)
    for step, key in ((10, ours), (20, ours), (40, theirs)):
        pem = tmp_path / "key.pem"
        private = serialization.PrivateFormat.PKCS8
        pem.write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
        at = folder(store, step)
        (at / SIGNATURE).write_bytes(sign_manifest((at / MANIFEST).read_bytes(), pem))
    shutil.copytree(store, tmp_path / "copy" / RUN)
    assert kept_by_gc(capsys, store)[0] == [10, 50], "without the key, a signature is a signature"
    public = tmp_path / "public.pem"
    format_ = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(ours.public_key().public_bytes(serialization.Encoding.PEM, format_))
    gone, _ = kept_by_gc(capsys, tmp_path / "copy" / RUN, "--public-key", public)
    assert gone == [40, 50]


def test_a_pin_holds_against_the_run_s_own_retention(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert capstan_checkpoint("pin", store, "10") == 0
    assert (folder(store, 10) / PINNED).exists()
    for step in (40, 50, 60):
        save(store, step)
    retention(store, 2, []).sweep()
    assert steps_in(store) == [60, 50, 10]
    assert listed(capsys, store)[10]["pinned"] is True
    assert capstan_checkpoint("unpin", store, "10") == 0
    retention(store, 2, []).sweep()
    assert steps_in(store) == [60, 50]


def test_a_mark_of_another_root_is_no_mark(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = SaveName.parse(folder(store, 10).name)
    assert name is not None
    mark_verified(FolderStore(store), name, "blake3:00", 5.0)
    assert listed(capsys, store)[10]["verifiedAt"] is None


def test_a_store_that_does_not_answer_is_not_called_bad(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(116, "stale handle")

    monkeypatch.setattr(FolderStore, "get", broken)
    assert capstan_checkpoint("verify", store, folder(store, 10).name) == ExitCode.RETRYABLE
    monkeypatch.setattr(FolderStore, "children", broken)
    assert capstan_checkpoint("ls", store) == ExitCode.RETRYABLE
    assert capsys.readouterr().err.endswith("capstan checkpoint: [Errno 116] stale handle\n")


@pytest.mark.parametrize("text", ["accuracy", "accuracy:best", ":max", "loss:min:0", "loss:min:x"])
def test_a_wrong_rule_is_refused_by_the_parser(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        capstan_checkpoint("gc", "/tmp", "--last", "2", "--best", text)
    assert "give METRIC:max or METRIC:min" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        capstan_checkpoint("gc", "/tmp", "--last", "2", "--newer-than", "soon")


def test_ctrl_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGTERM)}
    monkeypatch.setattr(cli, "run", interrupted)
    try:
        assert cli.main(["ls", "/tmp"]) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away_is_no_error(store: Path) -> None:
    for step in range(100, 160):
        shutil.copytree(folder(store, 10), store / f"{step:012d}.1.{new_attempt('another')}")
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "capstan_runtime.checkpoint", "ls", str(store)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (-signal.SIGPIPE, "")


def test_a_conversion_that_is_ended_leaves_nothing(store: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from capstan_runtime.checkpoint import cli, convert\n"
        "real = convert.model_card\n"
        "def slow(*arguments):\n    print('writing', flush=True)\n    time.sleep(60)\n"
        "convert.model_card = slow\n"
        "raise SystemExit(cli.main(sys.argv[1:]))\n"
    )
    target = tmp_path / "out" / "model"
    command = [sys.executable, "-c", script, "convert", str(store), "20", "--to", str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert len(list(target.parent.iterdir())) == 1
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (143, "")
    assert list(target.parent.iterdir()) == []


def test_ages_are_counted_from_the_commit(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder_of(store, listed(capsys, store)[10]["root"]) == folder(store, 10)
    assert capstan_checkpoint("ls", store) == 0
    assert f" {(time.time() - 1010) / 86400:.0f}d " in capsys.readouterr().out


def test_every_command_works_on_a_bucket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server:
        place = f"s3://{BUCKET}/jobs/default/digits/{RUN}"
        bucket = open_store(place, server.environ())
        for step in (10, 20, 30, 40):
            save(bucket, step)
        environ = server.environ()
        monkeypatch.setattr(sys.modules[__name__], "run", lambda options, _: cli.run(options, environ))
        (found,) = answer(capsys, "ls", f"s3://{BUCKET}/jobs")["stores"]
        assert [row["step"] for row in found["checkpoints"]] == [10, 20, 30, 40]
        assert capstan_checkpoint("pin", place, "10") == 0
        assert answer(capsys, "scrub", place)["good"] == 4
        assert answer(capsys, "diff", place, "20", "30")["sameState"] is False
        assert answer(capsys, "show", f"{place}/{found['checkpoints'][3]['name']}")["step"] == 40
        assert answer(capsys, "convert", place, "newest", "--to", tmp_path / "model")["tensors"] == 3
        done = answer(capsys, "gc", place, "--last", "2", "--yes")
        assert [each["step"] for each in done["checkpoints"]] == [20]
        assert steps_in(bucket) == [40, 30, 10]
        assert answer(capsys, "verify", place)["good"] == 3
