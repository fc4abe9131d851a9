"""The signature that every checkpoint carries: where it comes from, where people see it, and that what was saved
before there was one is as good as ever."""

import json
from pathlib import Path

import pytest

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.cli import main
from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import MANIFEST
from capstan_runtime.checkpoint.manifest import Manifest, SaveFacts, canonical_bytes
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.contract.signature import Signature
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.model_signature import data_spec_of, signature_of
from tests.support.checkpoints import RUN, facts_of, folder_of, save
from tests.support.training_runs import Run, run_trainers

CNN = Signature(
    model=Model.parse({"cnn": {"channels": [8, 16], "groups": 4}}), kind="image", input_shape=(8, 8, 1), outputs=10
)
DECODER = Signature(
    model=Model.parse({"transformer": {"layers": 2, "dim": 32, "heads": 4, "tied": True}}),
    kind="tokens",
    input_shape=(128,),
    outputs=256,
    text=True,
)


def manifest_at(store: Path) -> Manifest:
    (candidate,) = list_candidates(FolderStore(store), RUN).candidates
    assert candidate.problem is None
    return open_checkpoint(FolderStore(store), candidate.name).manifest


@pytest.mark.parametrize("signature", [CNN, DECODER], ids=["cnn", "decoder"])
def test_a_signature_comes_back_as_it_was_recorded(tmp_path: Path, signature: Signature) -> None:
    save(tmp_path, 10, signature=signature)
    assert manifest_at(tmp_path).signature == signature


def test_a_run_records_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=2)
    (ended,) = run_trainers(run, 1)
    assert ended.code == 0, ended.output
    store = FolderStore(run.store)
    (candidate,) = list_candidates(store, "3f1c-uid").candidates
    assert candidate.manifest is not None
    assert candidate.manifest.signature == Signature(
        model=Model.parse({"mlp": {"hidden": [4]}}), kind="vector", input_shape=(6,), outputs=3
    )


def test_only_text_is_text(tmp_path: Path) -> None:
    document = json.loads((Run(tmp_path).folder / "run.json").read_text())
    tokens = DataSpec("tokens", (16,), 256, "blake3:00")
    for data, text in (
        ({"text": {"path": "/x", "sequenceLength": 16}}, True),
        ({"tokens": {"path": "/x", "vocabulary": 256, "sequenceLength": 16}}, False),
    ):
        run = RunConfig.parse({**document, "data": data, "model": DECODER.model.document()})
        signature = signature_of(run, tokens)
        assert signature == DECODER.model_copy(update={"input_shape": (16,), "text": text})
        assert data_spec_of(signature) == DataSpec("tokens", (16,), 256, "")


def test_what_was_saved_without_one_has_the_bytes_and_the_root_it_always_had(tmp_path: Path) -> None:
    root = save(tmp_path, 10, world=1).root
    data = (folder_of(tmp_path, root) / MANIFEST).read_bytes()
    assert b"signature" not in data
    assert manifest_at(tmp_path).signature is None
    assert name_of(digest_of(canonical_bytes(Manifest.model_validate_json(data)))) == root
    facts = facts_of(10)
    before = {name: value for name, value in facts.model_dump().items() if name != "signature"}
    assert canonical_bytes(SaveFacts(**before)) == canonical_bytes(facts)
    assert b"signature" not in canonical_bytes(facts)


def test_people_see_what_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "store", 10, signature=CNN)
    assert main(["show", str(tmp_path / "store"), "10"]) == 0
    shown = capsys.readouterr().out
    assert "model               cnn: channels [8, 16], groups 4\n" in shown
    assert "task                images of 8 x 8 x 1 to 10 classes\n" in shown
    assert main(["show", str(tmp_path / "store"), "10", "--output", "json"]) == 0
    assert Signature.parse(json.loads(capsys.readouterr().out)["manifest"]["signature"]) == CNN
    assert main(["convert", str(tmp_path / "store"), "10", "--to", str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| Model | `cnn: channels [8, 16], groups 4` |" in card
    assert "| Task | images of 8 x 8 x 1 to 10 classes |" in card


def test_people_are_told_when_it_was_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 10, world=1)
    assert main(["show", str(tmp_path), "10"]) == 0
    assert (
        "model               not recorded, so it cannot be served "
        "(of the user's own code, or saved by an older version)\n" in (capsys.readouterr().out)
    )


def test_a_decoder_is_described_by_what_it_continues() -> None:
    assert DECODER.task == "the next of up to 128 bytes of text"
    assert DECODER.model_copy(update={"text": False, "outputs": 900}).task == "the next of up to 128 tokens of 900"
    assert DECODER.architecture.startswith("transformer: layers 2, dim 32, heads 4, ")
