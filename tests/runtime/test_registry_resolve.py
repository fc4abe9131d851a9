"""The process that finds out which checkpoint a version or a stage means."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from capstan_runtime.checkpoint.manifest import canonical_bytes
from capstan_runtime.checkpoint.signing import NotSigned, sign_manifest
from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.registry import REGISTRY, RESOLVE, Resolved, ResolveTask
from capstan_runtime.errors import CorruptCheckpoint
from capstan_runtime.registry import resolve as module
from capstan_runtime.registry.registry import NotRegistered
from capstan_runtime.registry.resolve import main, resolve
from tests.runtime.test_registry import IN_STORE, add, entry_of, in_folder, is_same_as
from tests.runtime.test_signing import public_text, written

ROOTS = {version: f"blake3:{version[2] * 64}" for version in ("1.0.0", "1.1.0", "1.2.0")}


def answer_of(version: str) -> Resolved:
    return Resolved(name="digits", version=version, digest=ROOTS[version], run=IN_STORE, step=10, framework="flax")


def test_a_version_means_its_checkpoint_and_a_stage_what_was_promoted_to_it_last(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path)
    with pytest.raises(NotRegistered, match="name: digits is not registered"):
        resolve(registry, ResolveTask(name="digits", version="1.0.0"))
    for version, root in ROOTS.items():
        add(registry, entry_of(version, uid=version, root=root))
    with pytest.raises(NotRegistered, match="stage: digits has no production"):
        resolve(registry, ResolveTask(name="digits", stage="production"))
    registry.promote("digits", "1.0.0", "production", "a test")
    registry.promote("digits", "1.1.0", "production", "a test")
    assert resolve(registry, ResolveTask(name="digits", version="1.2.0")) == answer_of("1.2.0")
    assert resolve(registry, ResolveTask(name="digits", stage="production")) == answer_of("1.1.0")
    assert resolve(registry, ResolveTask(name="digits", stage="production", known="1.0.0")) == answer_of("1.1.0")
    assert resolve(registry, ResolveTask(name="digits", stage="production", known="1.1.0")) is None


def test_what_is_not_signed_by_the_key_that_was_asked_for_is_no_answer(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path / "store")
    key = ec.generate_private_key(ec.SECP256R1())
    signed = entry_of("1.0.0", root=ROOTS["1.0.0"])
    signature = sign_manifest(canonical_bytes(signed), written(key, tmp_path / "private.pem"))
    registry.add(signed, is_same_as(signed), signature)
    add(registry, entry_of("1.1.0", root=ROOTS["1.1.0"]))
    task = ResolveTask(name="digits", version="1.0.0", public_key=public_text(key))
    assert resolve(registry, task) == answer_of("1.0.0")
    with pytest.raises(NotSigned):
        resolve(registry, task.model_copy(update={"version": "1.1.0"}))


def test_an_entry_that_leads_elsewhere_is_no_answer(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path)
    for number, run in enumerate(("../../etc/x", "default/digits", "default/digits/..")):
        entry = entry_of(f"1.{number}.0", uid=run, root=ROOTS["1.0.0"]).model_copy(update={"run": run})
        add(registry, entry)
        with pytest.raises(CorruptCheckpoint, match=r"run .* cannot be served"):
            resolve(registry, ResolveTask(name="digits", version=f"1.{number}.0"))


def test_the_process_waits_for_a_promotion_and_ends_with_it_as_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, _ = in_folder(tmp_path / "store")
    add(registry, entry_of("1.0.0", uid="1", root=ROOTS["1.0.0"]))
    add(registry, entry_of("1.1.0", uid="2", root=ROOTS["1.1.0"]))
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) in (2, 4):
            registry.promote("digits", f"1.{len(naps) // 4}.0", "production", "a test")

    monkeypatch.setattr(module.time, "sleep", nap)
    environ = {
        RESOLVE: ResolveTask(name="digits", stage="production", known="1.0.0").model_dump_json(by_alias=True),
        REGISTRY: str(tmp_path / "store"),
        env.TERMINATION_LOG: str(tmp_path / "last"),
    }
    assert main(environ) == ExitCode.OK
    assert Resolved.model_validate_json((tmp_path / "last").read_bytes()) == answer_of("1.1.0")
    assert naps == [module.LOOK_SECONDS] * 4
    out, err = capsys.readouterr()
    assert out == f"digits 1.1.0 is {ROOTS['1.1.0']}, step 10 of {IN_STORE}\n"
    assert err == (
        "stage: digits has no production (stages: none); promote a version to it first\ndigits production is 1.0.0\n"
    ), "each thing once"


def test_the_module_is_a_program_and_says_what_nobody_can_mend_by_waiting(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path / "store")
    add(registry, entry_of("1.0.0", root=ROOTS["1.0.0"]))
    last = tmp_path / "last"

    def ended(task: str) -> int:
        more = {RESOLVE: task, REGISTRY: str(tmp_path / "store"), env.TERMINATION_LOG: str(last)}
        command = [sys.executable, "-m", "capstan_runtime.registry.resolve"]
        return subprocess.run(command, env={**os.environ, **more}, timeout=60, check=False).returncode

    assert ended('{"name": "digits", "version": "1.0.0"}') == 0
    assert Resolved.model_validate_json(last.read_bytes()) == answer_of("1.0.0")
    assert ended('{"version": "1.0.0"}') == ExitCode.CONFIG
    assert last.read_text().startswith("ValidationError: 1 validation error for ResolveTask")
