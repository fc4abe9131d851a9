"""Whole runs that end with a smaller model: what they report, what they save, and what becomes of it afterwards."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from capstan_runtime import hooks
from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.convert import convert
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.safetensors import item_bytes
from capstan_runtime.contract.chaos import Fault, Injection
from capstan_runtime.contract.compression import CompressionReport
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.registry import REGISTRY
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.contract.signature import Signature
from capstan_runtime.contract.state import Phase
from capstan_runtime.data.open import open_dataset
from capstan_runtime.integers import as_integers, as_weights
from capstan_runtime.registry.registering import Candidate, Wanted, register
from capstan_runtime.registry.registry import Registry
from capstan_runtime.serving.load import load
from tests.numerics.test_predict_load import config_of
from tests.support.attempts import Attempted, attempt, run_attempt, small_run
from tests.support.checkpoints import RUN, flip
from tests.support.predictors import FRAMEWORKS
from tests.support.ranks import run_ranks
from tests.support.teachers import run_of_teacher, values_of, write_teacher
from tests.support.training_runs import Run

STEPS, EVERY = 20, 10
INTEGERS: dict[str, Any] = {"quantize": {}}
FIGURES = ["validation_loss", "accuracy", "weight_bytes"]
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "integers at the end": ("flax", INTEGERS, STEPS),
    "aware of them": ("deepspeed", {"quantize": {"bits": 4, "aware": {"beginStep": 15}}}, 15),
}
"""Framework, compression, and the step of the last model that is as it would be without."""


def reports(ranks: list[Attempted]) -> list[CompressionReport]:
    assert [each.failure for each in ranks] == [None] * len(ranks)
    told = [[each.compression for each in rank.progress if each.compression is not None] for rank in ranks]
    assert all(each == told[0] for each in told), "figures are those of the whole world"
    return told[0]


def config_in(run: Run) -> RunConfig:
    return RunConfig.model_validate_json((run.folder / "run.json").read_bytes())


def checkpoints(run: Run) -> list[OpenCheckpoint]:
    """Newest first."""
    store = FolderStore(run.store)
    return [open_checkpoint(store, each.name) for each in list_candidates(store, config_in(run).uid).candidates]


def served_loss(run: Run, root: str, runtime: str) -> float:
    """Of what a predictor says of the held-out samples."""
    config = config_in(run)
    return loss_of(load(config_of(root, config.uid, runtime), FolderStore(run.store)), run)


def loss_of(model: Any, run: Run) -> float:
    """Of what a predictor says of the held-out samples of `run`."""
    config = config_in(run)
    samples = open_dataset(config.data, config.training.seed, {}).validation
    inputs, targets = samples.fetch(np.arange(len(samples), dtype=np.int64))
    model.warm([8])
    logits = model.logits(inputs).astype(np.float64)
    likelihoods = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return float(-np.log(likelihoods[np.arange(len(targets)), targets]).mean())


@pytest.mark.parametrize("case", CASES)
def test_a_run_ends_with_integers_tells_what_that_cost_and_is_served_and_registered_as_measured(
    case: str, tmp_path: Path
) -> None:
    framework, compression, last_whole = CASES[case]
    training = {"steps": STEPS, "evaluation": {"everySteps": EVERY}}
    model = {"mlp": {"hidden": [32, 32]}}
    run = small_run(tmp_path, framework, model=model, training=training, compression=compression)
    first, last = reports(attempt(run, 2))
    before, after = last.before, last.after
    assert before is not None
    assert after is not None
    assert first == CompressionReport(before=before)
    assert (before.step, after.step) == (last_whole, STEPS)
    assert before.loss != after.loss
    parameters = 6 * 32 + 32 * 32 + 3 * 32 + 32 + 32 + 3
    bits, channels = compression["quantize"].get("bits", 8), 32 + 32
    assert before.bytes == 4 * parameters
    assert after.bytes == (6 * 32 + 32 * 32) * bits // 8 + 4 * (channels + 3 * 32 + 32 + 32 + 3)

    newest, older = checkpoints(run)[:2]
    assert (newest.manifest.has_integers, older.manifest.has_integers) == (True, False)
    assert newest.manifest.figures["accuracy"] == after.accuracy
    assert newest.manifest.figures["validation_loss"] == after.loss
    assert newest.manifest.figures["weight_bytes"] == after.bytes
    stored = sum(math.prod(tensor.shape) * item_bytes(tensor.dtype) for tensor in newest.manifest.tensors)
    assert stored == after.bytes + 8, "and the step: neither moments nor the matrices in fp32"
    for runtime in FRAMEWORKS:
        assert served_loss(run, newest.root, runtime) == pytest.approx(after.loss, rel=1e-4)

    registry = Registry(FolderStore(tmp_path), {})
    wanted = Wanted(name="small", version="1.0.0", bump=None, by="a person")
    entry = register(registry, Candidate(newest.store, "store", newest.name), wanted)
    assert (entry.root, entry.parameters, entry.metrics["accuracy"]) == (newest.root, parameters, after.accuracy)
    assert entry.size_bytes < older.size / 3

    exported = convert(newest.root, newest.manifest, newest.tensors(), tmp_path / "exported")
    outside = load_file(exported.folder / "model.safetensors")
    assert outside["layers.0.weight"].dtype == (np.int8 if bits == 8 else np.uint8)
    assert outside["layers.0.weight.scales"].shape == (32,)
    assert "as integers" in (exported.folder / "README.md").read_text()

    # Who begins again at its end, in another world, finds nothing to do, and knows what there was before.
    (again,) = reports(attempt(run, 1, fence=2, floor_step=STEPS))
    assert again.before == before
    assert again.after is not None
    assert again.after.loss == pytest.approx(after.loss, rel=1e-5)
    assert checkpoints(run)[0].root == newest.root
    # And nobody trains on with it.
    longer = small_run(tmp_path, framework, model=model, training={"steps": STEPS + 1}, compression=compression)
    (refused,) = attempt(longer, 1, fence=3, floor_step=STEPS)
    assert refused.failure == (
        f"ConfigError: spec.training.steps: {STEPS + 1}, and the checkpoint of step {STEPS} is a finished model of "
        "integers; adopt the one before it"
    )


def stopped_in_evaluation(rank: int, world: int, coordinator: str, run: Run, number: int) -> Attempted:
    """An attempt that all ranks agree to stop amid evaluation `number` of it, from 1."""
    votes = []

    class Vote(hooks.StopVote):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            votes.append(self)

        def after(self, pieces: int) -> bool:
            return len(votes) == number

    hooks.StopVote = Vote  # type: ignore[misc]
    return run_attempt(rank, world, coordinator, run, [{"fence": 1, "floor_step": 0}] * world)


@pytest.mark.parametrize("framework", ["flax", "deepspeed"])
def test_who_was_stopped_as_its_integers_were_measured_says_nothing_of_them_until_they_are(
    framework: str, tmp_path: Path
) -> None:
    training = {"steps": STEPS, "globalBatchSize": 4, "evaluation": {"everySteps": EVERY}}
    run = small_run(tmp_path, framework, model={"mlp": {"hidden": [32, 32]}}, training=training, compression=INTEGERS)
    # At step 10, at step 20, and then of the integers.
    (stopped,) = run_ranks(stopped_in_evaluation, 1, run, 3)
    assert stopped.failure is None
    saved = checkpoints(run)[0].manifest
    assert (saved.step, saved.has_integers, saved.figures.keys()) == (STEPS, True, saved.figures.keys() - set(FIGURES))
    told = reports(attempt(run, 1, fence=2, floor_step=STEPS))[-1].after
    assert told is not None
    newest = checkpoints(run)[0].manifest
    assert (newest.step, newest.has_integers) == (STEPS, True)
    assert [newest.figures[name] for name in FIGURES] == [told.loss, told.accuracy, told.bytes]


def test_who_was_killed_after_the_first_cut_still_knows_what_the_model_was_before_it(tmp_path: Path) -> None:
    """And integers at the end keep the zeros that pruning has made."""
    prune = {"magnitude": {"sparsity": 0.5, "beginStep": 2, "endStep": 12, "everySteps": 5}}
    run = small_run(
        tmp_path,
        "flax",
        model={"mlp": {"hidden": [32, 32]}},
        training={"steps": STEPS},
        compression={"prune": prune, "quantize": {}},
    )
    kill: dict[str, Any] = {"chaos": [Injection(name="oom", fault=Fault.GPU_OUT_OF_MEMORY, step=EVERY + 3)]}
    killed = attempt(run, 2, more=lambda rank: kill)
    (told,) = [each.compression for each in killed[0].progress if each.compression is not None]
    (resumed,) = reports(attempt(run, 1, fence=2, floor_step=EVERY))
    assert told.before is not None
    assert (told.before.step, told.before.sparsity) == (6, 0.0)
    assert resumed.before == told.before
    assert resumed.after is not None
    assert resumed.after.sparsity is not None
    assert resumed.after.sparsity >= 0.5
    newest = checkpoints(run)[0].tensors()
    integers, scales = newest.read("integers/layers.1.weight"), newest.read("scales/layers.1.weight")
    assert (integers == 0).mean() >= 0.5
    np.testing.assert_array_equal(as_integers(as_weights(integers, scales), 1, 8)[0], integers)


@dataclass(frozen=True)
class BesideModels:
    """A run whose store has models in it."""

    run: Run

    def environ(self, **more: str) -> dict[str, str]:
        return self.run.environ(**{REGISTRY: str(self.run.folder)}, **more)


@pytest.mark.parametrize("framework", ["flax", "deepspeed"])
def test_a_teacher_is_read_under_the_deadline_of_what_is_restored(framework: str, tmp_path: Path) -> None:
    compression = {"distill": {"teacher": {"registry": {"name": "teacher", "version": "1.0.0"}}}}
    run = small_run(tmp_path, framework, compression=compression)
    signature = Signature(model=Model.parse({"mlp": {"hidden": [16]}}), kind="vector", input_shape=(6,), outputs=3)
    write_teacher(tmp_path, signature, values_of(signature, 1))
    for shard in (tmp_path / run_of_teacher("teacher")).rglob("*.safetensors"):
        flip(shard, -1)
    (ended,) = attempt(BesideModels(run), 1)
    assert ended.failure is not None
    assert ended.failure.startswith("CorruptCheckpoint")
    assert [each.phase for each in ended.progress if each.phase is not None] == [Phase.RESTORING]


@pytest.mark.parametrize("framework", ["flax", pytest.param("deepspeed", marks=pytest.mark.full)])
def test_a_run_that_learns_and_begins_from_models_tells_what_they_were_worth_and_goes_on_where_one_is_gone(
    framework: str, tmp_path: Path
) -> None:
    compression = {
        "distill": {"teacher": {"registry": {"name": "teacher", "version": "1.0.0"}}},
        "lowRank": {"rank": 4, "from": {"registry": {"name": "origin", "version": "1.0.0"}}},
    }
    document = {"mlp": {"hidden": [32, 32]}}
    run = small_run(tmp_path, framework, model=document, training={"steps": STEPS}, compression=compression)
    roots = {}
    for name, hidden, seed in (("teacher", [16], 1), ("origin", [32, 32], 2)):
        model = Model.parse({"mlp": {"hidden": hidden}})
        signature = Signature(model=model, kind="vector", input_shape=(6,), outputs=3)
        roots[name] = write_teacher(tmp_path, signature, values_of(signature, seed), name)
    kill: dict[str, Any] = {"chaos": [Injection(name="oom", fault=Fault.GPU_OUT_OF_MEMORY, step=EVERY + 3)]}
    killed = attempt(BesideModels(run), 2, more=lambda rank: kill)
    (told,) = [each.compression for each in killed[0].progress if each.compression is not None]
    shutil.rmtree(tmp_path / run_of_teacher("origin"))
    (resumed,) = reports(attempt(BesideModels(run), 1, fence=2, floor_step=EVERY))

    before, after = resumed.before, resumed.after
    assert before == told.before
    assert before is not None
    assert after is not None
    assert (before.step, before.bytes) == (10, 4 * (6 * 16 + 16 + 16 * 3 + 3))
    teacher: Any = load(config_of(roots["teacher"], RUN), FolderStore(tmp_path / run_of_teacher("teacher")))
    assert before.loss == pytest.approx(loss_of(teacher, run), rel=1e-5)
    assert (after.step, after.bytes) == (STEPS, 4 * ((4 * 6 + 32 * 4) + (4 * 32 + 32 * 4) + 64 + 3 * 32 + 3))
    for runtime in FRAMEWORKS:
        assert served_loss(run, checkpoints(run)[0].root, runtime) == pytest.approx(after.loss, rel=1e-4)
