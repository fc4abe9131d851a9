"""`capstan model`, as a user sees it."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from capstan_runtime.checkpoint.cli import BAD_BYTES, USAGE
from capstan_runtime.checkpoint.cli import add_arguments as add_checkpoint_arguments
from capstan_runtime.checkpoint.cli import run as run_checkpoint
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.registry.cli import add_arguments, main, run
from tests.runtime.test_signing import public_text, written
from tests.support.checkpoints import RUN, flip, folder_of, save

IN_STORE = f"default/digits/{RUN}"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """One run's checkpoints of the steps 10 and 20, where its job keeps them."""
    first = save(tmp_path / "store" / IN_STORE, 10)
    save(tmp_path / "store" / IN_STORE, 20, parent=first.root, metrics={"accuracy": 0.5})
    return tmp_path / "store"


def capstan_model(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="capstan model")
    add_arguments(parser)
    return run(parser.parse_args(list(map(str, arguments))), {})


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> Any:
    """What the command says as JSON."""
    capsys.readouterr()
    assert capstan_model(*arguments, "--output", "json") == code
    return json.loads(capsys.readouterr().out)


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    """What the command says to people, times and roots left out."""
    capsys.readouterr()
    assert capstan_model(*arguments) == code
    out, err = capsys.readouterr()
    text = re.sub(r"blake3:[0-9a-f]{64}", "blake3:…", out + err)
    return re.sub(r"\b[0-9a-f]{12}\b", "…", text)


def test_a_checkpoint_becomes_a_version_then_production_and_all_of_it_can_be_read(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "register", store, "digits", "10", "--version", "1.0.0") == (
        "digits 1.0.0 is step 10 of default/test, blake3:…\n"
    )
    assert told(
        capsys, "register", store, "digits", "--bump", "minor", "--metric", "f1=0.25", "--stage", "staging"
    ) == ("digits 1.1.0 is step 20 of default/test, blake3:…\ndigits staging is 1.1.0 (was nothing)\n")
    assert told(capsys, "promote", store, "digits@1.0.0", "production") == "digits production is 1.0.0 (was nothing)\n"
    assert told(capsys, "promote", store, "digits@1.0.0", "production") == "digits production is 1.0.0 already\n"
    assert told(capsys, "promote", store, "digits@staging", "production", "--expect", "1.0.0") == (
        "digits production is 1.1.0 (was 1.0.0)\n"
    )
    assert told(capsys, "list", store) == (
        "MODEL   NEWEST  VERSIONS  STAGES\ndigits  1.1.0   2         production 1.1.0, staging 1.1.0\n"
    )
    head, *rows = told(capsys, "list", store, "digits").splitlines()
    assert head.split() == ["VERSION", "STAGES", "ROOT", "JOB", "STEP", "METRICS", "SIZE", "AGE"]
    assert [re.split(r" {2,}", row)[:6] for row in rows] == [
        ["1.1.0", "production, staging", "…", "default/test", "20", "accuracy 0.5, loss 0.04762"],
        ["1.0.0", "-", "…", "default/test", "10", "loss 0.09091"],
    ]
    shown = answer(capsys, "show", store, "digits@production")
    assert shown["entry"]["version"] == "1.1.0"
    assert shown["entry"]["metrics"] == {"loss": 1 / 21, "accuracy": 0.5, "f1": 0.25}
    assert [(one["stage"], one["version"], one.get("previous")) for one in shown["promotions"]] == [
        ("staging", "1.1.0", None),
        ("production", "1.0.0", None),
        ("production", "1.1.0", "1.0.0"),
    ]
    text = told(capsys, "show", store, "digits")
    assert "code        not recorded: registered by hand\n" in text
    assert f"checkpoint  {IN_STORE}/….1.…, step 20\n" in text
    assert re.fullmatch(
        r"good  digits 1\.1\.0  blake3:…  [0-9]+ B\n"
        r"good  digits 1\.0\.0  blake3:…  [0-9]+ B\n2 of 2 versions are good\n",
        told(capsys, "verify", store),
    )


def test_a_broken_byte_of_a_version_is_told_and_the_other_versions_are_good(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capstan_model("register", store, "digits", "10", "--version", "1.0.0")
    capstan_model("register", store, "digits", "20", "--version", "1.1.0")
    entry = answer(capsys, "show", store, "digits@1.0.0")["entry"]
    flip(folder_of(store / IN_STORE, entry["root"]) / "shards" / "r0-0.safetensors", -1)
    found = answer(capsys, "verify", store, code=BAD_BYTES)
    assert (found["good"], found["bad"]) == (1, 1)
    assert [(one["version"], one["problem"] is None) for one in found["versions"]] == [
        ("1.1.0", True),
        ("1.0.0", False),
    ]
    assert told(capsys, "verify", store, "digits@1.0.0", code=BAD_BYTES).startswith(
        "BAD   digits 1.0.0: ….1.…/shards/r0-0.saf"
    )


def test_a_signed_version_verifies_with_its_owners_key_only(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "public.pem").write_text(public_text(key))
    (tmp_path / "other.pem").write_text(public_text(other))
    private = written(key, tmp_path / "private.pem")
    capstan_model("register", store, "digits", "--version", "1.0.0", "--signing-key", private)
    assert capstan_model("verify", store, "--public-key", tmp_path / "public.pem") == 0
    assert "does not carry a signature of this key" in told(
        capsys, "verify", store, "digits", "--public-key", tmp_path / "other.pem", code=BAD_BYTES
    )
    assert "signed      yes" in told(capsys, "show", store, "digits")
    assert told(
        capsys, "register", store, "digits", "--version", "1.0.1", "--signing-key", tmp_path / "public.pem", code=78
    ).startswith(f"capstan model: --signing-key: {tmp_path}/public.pem is not an ECDSA private key in PEM")


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (
            ("register", "{store}/" + IN_STORE, "digits", "--bump", "patch"),
            USAGE,
            "is the folder of one run, and models",
        ),
        (
            ("register", "{store}/default", "digits", "--bump", "patch"),
            USAGE,
            "default is not the store that jobs write to",
        ),
        (("register", "{store}/..", "digits", "--bump", "patch"), USAGE, "is not the store that jobs write to"),
        (("register", "{store}/none", "digits", "--bump", "patch"), USAGE, "none is not a folder; give the store that"),
        (("register", "{store}", "digits", "77", "--bump", "patch"), USAGE, "holds no checkpoint 77"),
        (("register", "{store}", "digits", "--run", "a/b/c", "--bump", "patch"), USAGE, "--run: there is no run a/b/c"),
        (
            ("register", "{store}", "digits", "20", "--version", "1.0.0"),
            ExitCode.CONFIG,
            "version: digits 1.0.0 is registered already, from default/test step 10 as ",
        ),
        (
            ("show", "{store}", "letters"),
            USAGE,
            "name: letters is not registered in {store} (models: digits); register",
        ),
        (("show", "{store}", "digits@9.0.0"), USAGE, "digits has no version 9.0.0 (versions: 1.0.0); choose one"),
        (("show", "{store}", "digits@production"), USAGE, "digits has no production (stages: none); promote"),
        (("list", "{store}", "letters"), USAGE, "name: letters is not registered"),
        (
            ("promote", "{store}", "digits", "production", "--expect", "1.0.0"),
            ExitCode.CONFIG,
            "is nothing yet, not 1.0.0",
        ),
    ],
)
def test_what_is_not_there_is_named_in_one_line(
    store: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    problem: str,
) -> None:
    capstan_model("register", store, "digits", "10", "--version", "1.0.0")
    line = told(capsys, *(text.format(store=store) for text in arguments), code=code)
    assert line.startswith("capstan model: ")
    assert line.count("\n") == 1
    assert problem.format(store=store) in line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("register", ".", "Digits", "--bump", "patch"), "'Digits' cannot be a model's name; give 1 to 63 of a-z"),
        (("register", ".", "digits", "--version", "v1.0"), "'v1.0' is no semantic version; give MAJOR.MINOR.PATCH"),
        (("register", ".", "digits", "--version", "1.0.0+gpu"), "such as 1.4.0 or 2.0.0-rc.1, without +build"),
        (
            ("register", ".", "digits", "--bump", "patch", "--metric", "f1=nan"),
            "'f1=nan': give NAME=VALUE with a finite",
        ),
        (("register", ".", "digits", "--run", "b/c"), "'b/c' cannot be the folder of a run; give NAMESPACE/JOB/UID"),
        (("register", ".", "digits"), "one of the arguments --version --bump is required"),
        (("promote", ".", "digits@1.0.0", "1.0.0"), "'1.0.0' cannot be a stage; give 1 to 63 of a-z, 0-9 and -"),
        (("show", ".", "digits@V1"), "'V1' is no version such as 1.4.0, and no stage such as production"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_looked_at(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        capstan_model(*arguments)
    assert ended.value.code == USAGE
    assert problem in capsys.readouterr().err


def test_of_several_runs_one_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(store / "default" / "other" / "uid-2", 30, run="uid-2")
    assert told(capsys, "register", store, "digits", "--version", "1.0.0", code=USAGE) == (
        f"capstan model: STORE: there are 2 stores below {store} ({store}/{IN_STORE}, {store}/default/other/uid-2); "
        "name the run with --run NAMESPACE/JOB/UID\n"
    )
    entry = answer(capsys, "register", store, "digits", "--version", "1.0.0", "--run", "default/other/uid-2")["entry"]
    assert (entry["run"], entry["step"], entry["lineage"]["uid"]) == ("default/other/uid-2", 30, "uid-2")


def test_a_checkpoint_may_be_named_behind_options(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register = ["register", str(store), "digits", "--bump", "patch", "--metric", "f1=0.5", "--run", IN_STORE, "10"]
    assert main([*register, "--output", "json"]) == 0
    entry = json.loads(capsys.readouterr().out)["entry"]
    assert (entry["version"], entry["step"], entry["metrics"]["f1"]) == ("0.0.1", 10, 0.5)
    assert main(["list", str(store), "--output", "json", "digits"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "digits"


def test_what_is_registered_is_unpinned_only_by_force(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capstan_model("register", store, "digits", "10", "--version", "1.0.0")
    parser = argparse.ArgumentParser()
    add_checkpoint_arguments(parser)

    def capstan_checkpoint(*arguments: str | Path) -> int:
        return run_checkpoint(parser.parse_args(list(map(str, arguments))), {})

    capsys.readouterr()
    assert capstan_checkpoint("pin", store, "10") == 0
    assert capstan_checkpoint("unpin", store, "10") == USAGE
    assert capsys.readouterr().err.endswith(
        "is registered as a version of digits, which could not be served any more; --force unpins it all the same\n"
    )
    assert capstan_checkpoint("unpin", store, "10", "--force") == 0
    assert capstan_checkpoint("unpin", store, "20") == 0


def test_capstan_hands_the_command_on_to_the_runtime(store: Path) -> None:
    command = [sys.executable, "-c", "import sys; from capstan_operator.cli import main; sys.exit(main())", "model"]
    done = subprocess.run(
        [*command, "register", store, "digits", "--bump", "major"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ,
    )
    assert done.stdout.startswith("digits 1.0.0 is step 20 of default/test, blake3:")
