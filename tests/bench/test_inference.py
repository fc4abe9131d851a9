"""Workload inference: the points of every batch size, of both frameworks, of fresh models and of checkpoints; what
cannot be measured is refused with its fix."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstan_runtime.bench.models import RandomTensors, fresh_signature, left_in
from capstan_runtime.bench.trial import result_key
from capstan_runtime.bench.workloads import inference
from capstan_runtime.bench.workloads.inference import run
from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract.benchmark import BenchTask, Point, TrialResult, TrialTask
from capstan_runtime.contract.judged import JUDGED
from capstan_runtime.contract.signature import Signature
from capstan_runtime.contract.workloads import FreshModel
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, GpuOutOfMemory
from tests.support.checkpoints import RUN, flip, folder_of, save
from tests.support.engines import MLP
from tests.support.predictors import FRAMEWORKS, Framework, signature_of, state_of

MLP_OF_VECTORS = {"architecture": {"mlp": {"hidden": [16]}}, "input": {"vector": {"features": 8, "classes": 3}}}
DECODER = {
    "architecture": {"transformer": {"layers": 1, "dim": 16, "heads": 2, "tied": True}},
    "input": {"tokens": {"vocabulary": 32, "sequenceLength": 16}},
}


def trial(seed: int = 0, **work: Any) -> TrialTask:
    """The shortest there is, of a small model on torch if nothing else is said."""
    defaults = {"runtime": "torch", "model": {"fresh": MLP_OF_VECTORS}, "seconds": 0.001, "warmupSeconds": 0}
    document = {"trial": "t00", "seed": seed, "work": {"inference": defaults | work}, "deadlineSeconds": 60}
    return TrialTask.model_validate(document)


def told(points: Sequence[Point]) -> list[tuple[str, str, bool]]:
    """What was measured at which batch size, and what is shown first; p99, for which a slow machine has too few calls,
    apart."""
    return [
        (point.metric, point.labels["batchSize"], point.is_headline)
        for point in points
        if point.metric != "latency_p99_seconds"
    ]


@pytest.mark.parametrize("runtime", FRAMEWORKS)
def test_a_classifier_tells_its_rate_and_its_latencies_at_every_batch_size(runtime: Framework, tmp_path: Path) -> None:
    measured = run(trial(runtime=runtime, batchSizes=[4, 1]), FolderStore(tmp_path), {})
    assert told(measured.points) == [
        ("samples_per_second", "1", True),
        ("latency_p50_seconds", "1", False),
        ("samples_per_second", "4", True),
        ("latency_p50_seconds", "4", False),
    ]
    found = {(point.metric, point.labels["batchSize"]): point for point in measured.points}
    for size in ("1", "4"):
        rate, middle = found["samples_per_second", size], found["latency_p50_seconds", size]
        taken = middle.samples
        assert len(taken) >= 3
        assert rate.value == pytest.approx(int(size) * len(taken) / sum(taken))
        longest = found.get(("latency_p99_seconds", size))
        assert (longest is not None) == (len(taken) >= 100)
        assert longest is None or (longest.value in taken and middle.value <= longest.value)


@pytest.mark.parametrize("runtime", FRAMEWORKS)
def test_a_decoder_tells_tokens_and_the_time_to_the_first(runtime: Framework, tmp_path: Path) -> None:
    task = trial(runtime=runtime, model={"fresh": DECODER}, batchSizes=[2], newTokens=4)
    measured = run(task, FolderStore(tmp_path), {})
    assert told(measured.points) == [
        ("tokens_per_second", "2", True),
        ("time_to_first_token_seconds", "2", False),
        ("time_per_output_token_seconds", "2", False),
        ("samples_per_second", "2", False),
        ("latency_p50_seconds", "2", False),
    ]
    assert {point.metric for point in measured.points} | {"latency_p99_seconds"} == set(JUDGED["inference"])
    tokens, first, each, samples, whole = measured.points[:5]
    assert tokens.value == pytest.approx(4 * samples.value)
    assert [to_first + 3 * one for to_first, one in zip(first.samples, each.samples, strict=True)] == pytest.approx(
        list(whole.samples)
    )


class Counting:
    """A predictor that computes nothing and says what it was asked for."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.calls: list[Any] = []

    def warm(self, *sizes: Any) -> None:
        self.calls.append(("warm", *sizes))

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        self.calls.append((inputs.shape, str(inputs.dtype), inputs.flags.c_contiguous and inputs.flags.writeable))
        return inputs

    def prefill(self, slot: int, prompt: np.ndarray) -> None:
        self.calls.append(("prefill", slot, prompt.shape))

    def step(self, slots: list[int], tokens: np.ndarray) -> None:
        self.calls.append(("step", slots, tokens.shape))

    def release(self, slot: int) -> None:
        self.calls.append(("release", slot))


@pytest.fixture
def predictors(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    """Those that were built, in turn."""
    built: list[Counting] = []

    def build(signature: Signature, source: TensorSource, slots: int) -> Counting:
        built.append(Counting(signature))
        return built[-1]

    monkeypatch.setattr(inference, "builder", lambda runtime: build)
    return built


def test_each_batch_size_is_compiled_before_it_is_timed_and_given_prepared_inputs(
    predictors: list[Counting], tmp_path: Path
) -> None:
    run(trial(batchSizes=[2, 3]), FolderStore(tmp_path), {})
    (predictor,) = predictors
    calls = predictor.calls
    for size in (2, 3):
        assert calls.index(("warm", [size])) + 1 == calls.index(((size, 8), "float32", True))


def test_the_order_of_batch_sizes_is_that_of_the_trials_seed(predictors: list[Counting], tmp_path: Path) -> None:
    orders = set()
    for seed in (0, 1, 2, 3, 0, 1, 2, 3):
        run(trial(seed, batchSizes=[1, 2, 3]), FolderStore(tmp_path), {})
        orders.add((seed, tuple(call[1][0] for call in predictors[-1].calls if call[0] == "warm")))
    assert len(orders) == 4
    assert len({order for _, order in orders}) > 1


def test_a_decoder_fills_its_context_with_a_prompt_and_the_new_tokens(
    predictors: list[Counting], tmp_path: Path
) -> None:
    run(trial(model={"fresh": DECODER}, batchSizes=[2], newTokens=3), FolderStore(tmp_path), {})
    once = [
        *[("prefill", slot, (13,)) for slot in (0, 1)],
        *[("step", [0, 1], (2,))] * 2,
        *[("release", slot) for slot in (0, 1)],
    ]
    warm, *calls = predictors[0].calls
    assert warm == ("warm",)
    assert calls == once * (len(calls) // len(once))


def test_few_calls_make_no_p99_and_are_said(predictors: list[Counting], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(inference, "time_calls", lambda *_: [0.5, 0.25, 1.0])
    measured = run(trial(batchSizes=[8, 2]), FolderStore(tmp_path), {})
    assert measured.notes == [
        "fewer than 100 calls at batch size 2, 8: too few for p99; raise workload.inference.seconds"
    ]
    assert [(point.metric, point.value) for point in measured.points[2:]] == [
        ("samples_per_second", 8 * 3 / 1.75),
        ("latency_p50_seconds", 0.5),
    ]


def test_a_hundred_calls_make_a_p99(predictors: list[Counting], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(inference, "time_calls", lambda *_: [*[0.5] * 98, 0.75, 1.0])
    measured = run(trial(batchSizes=[8]), FolderStore(tmp_path), {})
    assert measured.notes == []
    assert [(point.metric, point.value) for point in measured.points[1:]] == [
        ("latency_p50_seconds", 0.5),
        ("latency_p99_seconds", 1.0),
    ]


def test_the_weights_of_a_fresh_model_are_those_a_run_of_that_seed_begins_with() -> None:
    model = FreshModel.model_validate(MLP_OF_VECTORS)
    signature = fresh_signature(model.architecture, model.input)
    source = RandomTensors(signature, 5)
    shapes = {name: source.shape(name) for name in source.names()}
    assert shapes == {
        "params/layers.0.weight": (16, 8),
        "params/layers.0.bias": (16,),
        "params/head.weight": (3, 16),
        "params/head.bias": (3,),
    }
    for name, shape in shapes.items():
        whole = source.read(name)
        assert whole.shape == shape
        np.testing.assert_array_equal(source.read_range(name, 1, 3), whole.reshape(-1)[1:3])
    np.testing.assert_array_equal(
        source.read("params/head.weight"), RandomTensors(signature, 5).read("params/head.weight")
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Its digest; in run <RUN> of job `digits`."""
    return save_classifier(tmp_path / "digits" / RUN)


def save_classifier(place: Path, **more: Any) -> str:
    signature = signature_of(MLP)
    return save(place, 10, arrays=state_of(signature), **{"signature": signature, **more}).root


def of_checkpoint(digest: str, run: str = f"default/digits/{RUN}", **more: Any) -> TrialTask:
    return trial(model={"checkpoint": {"run": run, "digest": digest}}, batchSizes=[2], **more)


@pytest.mark.parametrize("runtime", FRAMEWORKS)
def test_a_checkpoint_is_measured_as_it_would_be_served(checkpoint: str, runtime: Framework, tmp_path: Path) -> None:
    measured = run(of_checkpoint(checkpoint, runtime=runtime), FolderStore(tmp_path), {})
    assert [point.metric for point in measured.points if point.value > 0][:2] == [
        "samples_per_second",
        "latency_p50_seconds",
    ]


def test_a_checkpoint_with_a_wrong_byte_is_not_measured(checkpoint: str, tmp_path: Path) -> None:
    place = tmp_path / "digits" / RUN
    shard = next((folder_of(place, checkpoint) / "shards").iterdir())
    flip(shard, shard.stat().st_size - 1)
    with pytest.raises(CorruptCheckpoint):
        run(of_checkpoint(checkpoint), FolderStore(tmp_path), {})


def test_a_checkpoint_that_is_not_there_is_refused_by_the_field_that_names_it(checkpoint: str, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    other = f"blake3:{'0' * 64}"
    with pytest.raises(ConfigError) as refused:
        run(of_checkpoint(other), store, {})
    assert str(refused.value).startswith(
        f"workload.inference.model.checkpoint.digest: {tmp_path}/digits/{RUN} holds no checkpoint {other} of run {RUN}"
    )
    with pytest.raises(ConfigError) as refused:
        run(of_checkpoint(checkpoint, run="default/letters/uid"), store, {})
    assert str(refused.value) == (
        f"workload.inference.model.checkpoint.run: default/letters/uid has no checkpoint in {tmp_path}/letters/uid; "
        "name a run of namespace default in results.store, as the TrainingJob's status.checkpoint does"
    )


def test_a_checkpoint_that_does_not_say_what_it_is_is_refused(tmp_path: Path) -> None:
    digest = save_classifier(tmp_path / "digits" / RUN, signature=None)
    assert [each.root for each in list_candidates(FolderStore(tmp_path / "digits" / RUN), RUN).candidates] == [digest]
    with pytest.raises(
        ConfigError, match=r"model\.checkpoint\.digest: blake3:.* does not say what model it is: .*older"
    ):
        run(of_checkpoint(digest), FolderStore(tmp_path), {})


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            {"model": {"fresh": DECODER}, "newTokens": 16},
            "workload.inference.newTokens: 16 leave no room for a prompt in sequences of 16 tokens; choose 15 or "
            "fewer, or a longer sequenceLength",
        ),
        (
            {"batchSizes": [1, 10**12]},
            "workload.inference.batchSizes: 1000000000000 needs at least 160,187.5 GiB, and",
        ),
        (
            {"model": {"fresh": DECODER}, "newTokens": 4, "batchSizes": [10**12]},
            "workload.inference.batchSizes: 1000000000000 needs at least 1,907,348.6 GiB, and",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_fix(
    work: dict[str, Any], message: str, predictors: list[Counting], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        run(trial(**work), FolderStore(tmp_path), {})
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("1000", "700", 550), ("1000", "1300", 0), ("max", "700", None), (None, "700", None)]
)
def test_files_that_were_read_count_as_free_memory(
    limit: str | None, used: str, left: int | None, tmp_path: Path
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text("anon 400\nactive_file 50\ninactive_file 250\n")
    assert left_in(tmp_path, "memory.max", "memory.current", "inactive_file") == left


def test_a_batch_for_which_the_device_has_too_little_memory_is_named(
    predictors: list[Counting], tmp_path: Path, monkeypatch: Any
) -> None:
    def warm(self: Counting, sizes: list[int]) -> None:
        if sizes == [64]:
            raise GpuOutOfMemory("tried to allocate 2 GiB")

    monkeypatch.setattr(Counting, "warm", warm)
    with pytest.raises(ConfigError) as refused:
        run(trial(batchSizes=[1, 64]), FolderStore(tmp_path), {})
    assert str(refused.value) == (
        "workload.inference.batchSizes: 64 is too large for the memory here (tried to allocate 2 GiB); choose a "
        "smaller one"
    )


def test_a_pod_leaves_what_it_measured_in_the_store(tmp_path: Path) -> None:
    task = BenchTask(benchmark="speed", namespace="default", uid="uid", seed=0, trial=trial(runtime="flax"))
    environ = os.environ | {
        "CAPSTAN_BENCH": task.model_dump_json(by_alias=True, exclude_none=True),
        "CAPSTAN_STORE": str(tmp_path),
        "CAPSTAN_TERMINATION_LOG": str(tmp_path / "last-words"),
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "capstan_runtime.bench"], env=environ, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    result = TrialResult.model_validate_json(FolderStore(tmp_path).get(result_key("speed", "uid", "t00", 1)))
    assert [(point.metric, point.labels) for point in result.points if point.is_headline] == [
        ("samples_per_second", {"batchSize": "1"}),
        ("samples_per_second", {"batchSize": "32"}),
    ]
    assert result.environment.threads == 1
    assert json.loads((tmp_path / "last-words").read_text())["isOk"] is True
