"""From a checkpoint in a store to a model that answers: the one that is named, of either framework in either."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from capstan_runtime.checkpoint.candidates import list_candidates, quarantine
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, SHARDS, SIGNATURE, SaveName
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.signing import sign_manifest
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.contract.serving import ServeConfig
from capstan_runtime.data.open import open_dataset
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable
from capstan_runtime.serving.load import load
from tests.support.attempts import attempt, small_run
from tests.support.checkpoints import RUN, LockedStore, flip, folder_of, save
from tests.support.engines import MLP
from tests.support.predictors import FRAMEWORKS, Framework, signature_of, state_of, trainer_forward

ROOT = Path(__file__).resolve().parents[2]
TRAINERS = ("flax", "deepspeed")
DECODER = {
    "model": {"transformer": {"layers": 2, "dim": 32, "heads": 4, "kvHeads": 2}},
    "optimizer": {"adamw": {"learningRate": 0.003}},
}
SIGNATURE_OF_MLP = signature_of(MLP)


def config_of(root: str, run: str = RUN, runtime: str = "torch", **more: Any) -> ServeConfig:
    model = {"name": "digits", "version": "digits-1", "run": run, "root": root, **more.pop("model", {})}
    return ServeConfig.parse({"service": "default/digits", "model": model, "runtime": runtime, **more})


def trained(folder: Path, trainer: str, **overrides: Any) -> tuple[RunConfig, OpenCheckpoint, dict[str, float]]:
    """A run of four steps on two ranks, its last checkpoint, and what it measured at the end."""
    run = small_run(folder, trainer, training={"steps": 4}, **overrides)
    ranks = attempt(run, 2)
    assert [each.failure for each in ranks] == [None, None]
    config = RunConfig.model_validate_json((folder / "run.json").read_bytes())
    store = FolderStore(run.store)
    newest = list_candidates(store, config.uid).candidates[0]
    metrics = [each.metrics for each in ranks[0].progress if each.metrics and "accuracy" in each.metrics][-1]
    return config, open_checkpoint(store, newest.name), metrics


def state_in(opened: OpenCheckpoint) -> dict[str, np.ndarray]:
    tensors = opened.tensors()
    return {name: tensors.read(name) for name in tensors.names() if name.startswith("params/")}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_classifier_of_either_trainer_measures_in_both_what_its_run_measured(trainer: str, tmp_path: Path) -> None:
    run, opened, metrics = trained(tmp_path, trainer)
    samples = open_dataset(run.data, run.training.seed, {}).validation
    inputs, targets = samples.fetch(np.arange(len(samples), dtype=np.int64))
    for framework in FRAMEWORKS:
        model: Any = load(config_of(opened.root, run.uid, framework), FolderStore(Path(opened.store.place)))
        assert model.signature == opened.manifest.signature
        model.warm([8])
        logits = model.logits(inputs)
        expected = trainer_forward(framework, model.signature, state_in(opened))(inputs)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        assert (logits.argmax(axis=1) == targets).mean() == pytest.approx(metrics["accuracy"], abs=1e-6)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_decoder_of_either_trainer_continues_in_both(trainer: str, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.py").write_text("the anchor is up and down " * 200)
    data = {"text": {"path": str(tmp_path / "text"), "sequenceLength": 24, "validationFraction": 0.1}}
    run, opened, _ = trained(tmp_path, trainer, data=data, **DECODER)
    prompt = np.frombuffer(b"the anchor", np.uint8).astype(np.int32)
    for framework in FRAMEWORKS:
        config = config_of(opened.root, run.uid, framework, guards={"batching": {"maxBatchSize": 3}})
        decoder: Any = load(config, FolderStore(Path(opened.store.place)))
        assert (decoder.slots, decoder.context, decoder.signature.text) == (3, 24, True)
        decoder.warm()
        found = [decoder.prefill(2, prompt), decoder.step([2], prompt[:1])[0]]
        whole = np.append(prompt, prompt[0])[None]
        expected = trainer_forward(framework, decoder.signature, state_in(opened))(whole)[0]
        np.testing.assert_allclose(found, expected[-2:], rtol=1e-4, atol=1e-4)
    alone: Any = load(
        config_of(opened.root, run.uid, "torch", guards={"batching": None}), FolderStore(tmp_path / "store")
    )
    assert alone.slots == 1


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three checkpoints of one run, each with parameters of its own."""
    for step in (10, 20, 30):
        save_mlp(tmp_path / "store", step)
    return tmp_path / "store"


def save_mlp(place: Path, step: int, **more: Any) -> str:
    state = {name: value + step for name, value in state_of(SIGNATURE_OF_MLP).items()}
    state["optimizer/exp_avg/head.bias"] = np.zeros(10, np.float32)
    return save(place, step, arrays=state, **{"signature": SIGNATURE_OF_MLP, **more}).root


def root_at(store: Path, step: int, run: str = RUN) -> str:
    candidates = list_candidates(FolderStore(store), run).candidates
    return next(each.root for each in candidates if each.name.step == step and each.root is not None)


def bias_of(model: Any) -> float:
    """Of the head's first class: tells the steps apart, rounded."""
    return round(float(dict(model._module.named_parameters())["head.bias"][0]), -1)


@pytest.mark.parametrize("step", [10, 20, 30])
def test_the_checkpoint_that_is_named_is_loaded_and_no_other(store: Path, step: int) -> None:
    assert bias_of(load(config_of(root_at(store, step)), FolderStore(store))) == step


def place_of(store: Path, step: int, tensor: str) -> tuple[Path, int]:
    """File and offset of a tensor's first byte."""
    folder = folder_of(store, root_at(store, step))
    name = SaveName.parse(folder.name)
    assert name is not None
    piece = open_checkpoint(FolderStore(store), name).whole[tensor].leaves[0][0]
    return folder / SHARDS / piece.file, piece.offset


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("level", ["full", "manifest"])
def test_a_flipped_bit_of_a_parameter_is_never_served(store: Path, framework: Framework, level: str) -> None:
    root = root_at(store, 20)
    flip(*place_of(store, 20, "params/layers.0.weight"))
    config = config_of(root, runtime=framework, model={"verify": {"level": level}})
    with pytest.raises(CorruptCheckpoint, match="committed were"):
        load(config, FolderStore(store))


def test_what_is_not_read_need_not_be_whole(store: Path) -> None:
    root = root_at(store, 20)
    flip(*place_of(store, 20, "optimizer/exp_avg/head.bias"))
    assert bias_of(load(config_of(root), FolderStore(store))) == 20


def remove_the_folder(store: Path) -> None:
    shutil.rmtree(folder_of(store, root_at(store, 20)))


def flip_the_manifest(store: Path) -> None:
    flip(folder_of(store, root_at(store, 20)) / MANIFEST, 100)


def flip_the_commit(store: Path) -> None:
    flip(folder_of(store, root_at(store, 20)) / COMMIT, 30)


def uncommit(store: Path) -> None:
    (folder_of(store, root_at(store, 20)) / COMMIT).unlink()


def mark_as_bad(store: Path) -> None:
    name = SaveName.parse(folder_of(store, root_at(store, 20)).name)
    assert name is not None
    quarantine(FolderStore(store), name, "a bit was wrong once")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (
            remove_the_folder,
            ConfigError,
            "model.root: .* holds no checkpoint blake3:.* of run 0f3c2a4e-uid; .*, and pin it",
        ),
        (uncommit, ConfigError, "holds no checkpoint"),
        (flip_the_manifest, CorruptCheckpoint, "MANIFEST.json: is blake3:.*, committed was blake3:"),
        (
            flip_the_commit,
            CorruptCheckpoint,
            "is not among the checkpoints in .* that can be read; 1 cannot: ",
        ),
        (mark_as_bad, CorruptCheckpoint, "a bit was wrong once"),
    ],
)
def test_none_that_is_near_is_taken_in_place_of_one_that_is_missing_or_broken(
    store: Path, damage: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    root = root_at(store, 20)
    damage(store)
    with pytest.raises(kind, match=message) as raised:
        load(config_of(root), FolderStore(store))
    assert "\n" not in str(raised.value)


def test_the_neighbours_may_be_as_broken_as_they_like(store: Path) -> None:
    root = root_at(store, 20)
    (folder_of(store, root_at(store, 30)) / COMMIT).write_bytes(b"{")
    shutil.copytree(folder_of(store, root), store / "000000000099.1.0123456789ab")
    (store / "000000000098.1.0123456789ab").mkdir()
    (store / "notes.txt").write_text("not ours")
    locked = LockedStore(store, folder_of(store, root_at(store, 10)).name)
    assert bias_of(load(config_of(root), locked)) == 20


def test_a_checkpoint_of_another_run_is_refused(store: Path) -> None:
    foreign = save_mlp(store, 40, run="another-uid")
    with pytest.raises(
        ConfigError, match=r"model\.run: checkpoint blake3:.* is of run another-uid, not of 0f3c2a4e-uid; "
    ):
        load(config_of(foreign), FolderStore(store))
    assert bias_of(load(config_of(foreign, "another-uid"), FolderStore(store))) == 40


def test_an_empty_store_and_one_that_does_not_answer_are_two_things(tmp_path: Path) -> None:
    config = config_of("blake3:" + "0" * 64)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        load(config, FolderStore(tmp_path / "nothing"))

    class Silent(FolderStore):
        def children(self, prefix: str = "") -> list[str]:
            raise TimeoutError("no answer in 20 s")

    with pytest.raises(StoreUnavailable, match="checkpoint store: no answer in 20 s"):
        load(config, Silent(tmp_path))


def test_a_checkpoint_without_a_signature_of_its_model_is_refused(tmp_path: Path) -> None:
    root = save_mlp(tmp_path, 10, signature=None)
    with pytest.raises(
        ConfigError, match=r"model\.root: .*, of step 10, does not say what model it is: .* older version"
    ):
        load(config_of(root), FolderStore(tmp_path))


def test_with_a_public_key_only_what_its_owner_signed_is_served(store: Path, tmp_path: Path) -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    folder = folder_of(store, root_at(store, 20))
    (folder / SIGNATURE).write_bytes(sign_manifest((folder / MANIFEST).read_bytes(), tmp_path / "key.pem"))

    def wanting(step: int, owner: ec.EllipticCurvePrivateKey) -> ServeConfig:
        pem = owner.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        return config_of(root_at(store, step), model={"verify": {"publicKey": pem}})

    assert bias_of(load(wanting(20, key), FolderStore(store))) == 20
    with pytest.raises(CorruptCheckpoint, match="is not a signature of"):
        load(wanting(20, other), FolderStore(store))
    with pytest.raises(CorruptCheckpoint, match="is not signed"):
        load(wanting(30, key), FolderStore(store))


def test_a_framework_that_is_not_installed_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "capstan_runtime.flax_trainer.predict", None)
    with pytest.raises(ConfigError, match=r"runtime: flax is not installed here .*; use the image that has it"):
        load(config_of(root_at(store, 20), runtime="flax"), FolderStore(store))


def test_loading_imports_no_framework_but_the_one_that_is_asked_for() -> None:
    code = (
        "import sys, capstan_runtime.serving.load\n"
        "print([name for name in ('jax', 'flax', 'torch', 'deepspeed', 'ray') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (found.stdout, found.returncode) == ("[]\n", 0), found.stderr
