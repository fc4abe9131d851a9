"""Saving and restoring as a workload: Capstan's, torch's and Orbax' checkpoints of one state, on a real disk."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.bench.checkpoints import Capstan, Saved, State, build_state, require_same
from capstan_runtime.bench.measured import Measured
from capstan_runtime.bench.page_cache import forget_pages, share_in_memory
from capstan_runtime.bench.workloads.checkpoint import ROUNDS, Scratch, full_disk_explained, run, take_turns
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.writer import SaveFailed
from capstan_runtime.contract.benchmark import TASK, BenchTask, TrialTask, TrialWork
from capstan_runtime.contract.judged import JUDGED
from capstan_runtime.contract.workloads import CheckpointIo
from capstan_runtime.errors import ConfigError, CorruptCheckpoint
from tests.support.ranks import run_ranks
from tests.support.s3_server import BUCKET, s3_server

Environ = Mapping[str, str]


def trial_of(**fields: Any) -> tuple[TrialTask, Environ]:
    work = TrialWork(checkpoint=CheckpointIo(**fields))
    trial = TrialTask(trial="t00", seed=3, work=work, deadline_seconds=120.0)
    task = BenchTask(benchmark="disk", namespace="default", uid="uid-1", seed=3, trial=trial)
    return trial, {TASK: task.model_dump_json(by_alias=True)}


def hold(state: State) -> State:
    return state


def capstan(state: State) -> Capstan:
    return Capstan(state, hold, lambda array: array, {}, 60.0)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@given(st.integers(1, 1 << 21))
def test_a_state_has_the_bytes_that_were_asked_for_in_arrays_that_differ(size: int) -> None:
    state = build_state(size)
    assert sum(array.nbytes for array in state.values()) == 4 * -(-size // 4)
    assert len({array.tobytes() for array in state.values()}) == len(state)
    require_same("again", state, build_state(size))


def test_a_state_is_what_a_transformer_and_its_optimizer_would_save() -> None:
    # 8 MiB are 2,097,152 numbers. A layer of width 128 has 3 x (12 x 128^2 + 128) = 590,208 and four of them 2,360,832:
    # too wide. Of width 64 it has 147,648: 14 layers, and a rest.
    state = build_state(8 << 20)
    shapes = {name: array.shape for name, array in state.items()}
    assert len(shapes) == 14 * 3 * 5 + 1
    assert shapes["optimizer/nu/layers.13/mlp/in"] == (64, 256)
    assert shapes["params/rest"] == (2_097_152 - 14 * 147_648,)


def test_a_single_bit_is_noticed_and_nan_is_nan() -> None:
    saved = {"a": np.array([0.0, np.nan], np.float32), "b": np.ones(3, np.float32)}
    require_same("X", saved, {name: array.copy() for name, array in saved.items()})
    for wrong, told in (
        ({**saved, "a": np.array([-0.0, np.nan], np.float32)}, "a differs"),
        ({**saved, "b": np.ones(3, np.float64)}, "b differs"),
        ({**saved, "b": np.ones((3, 1), np.float32)}, "b differs"),
        ({"a": saved["a"]}, "b is in one of the two only"),
    ):
        with pytest.raises(RuntimeError, match=f"X did not bring back .*{told}"):
            require_same("X", saved, wrong)


def test_what_capstan_restores_was_verified(tmp_path: Path) -> None:
    state = build_state(1 << 20)
    library, place = capstan(state), str(tmp_path / "save")
    library.save(place)
    library.restore(place)
    require_same("Capstan", state, library.restored())
    library.verify(place)
    shard = next(path for path in files_below(tmp_path) if path.suffix == ".safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    for read in (library.restore, library.verify):
        with pytest.raises(CorruptCheckpoint):
            read(place)


class Recorder:
    """Writes nothing, and notes when it is its turn."""

    def __init__(self, name: str, state: State, turns: list[str], folder: Path) -> None:
        self.name, self.state, self.turns, self.folder = name, state, turns, folder

    def save(self, place: str) -> Saved:
        assert not files_below(self.folder), "there is never more than one checkpoint"
        self.turns.append(self.name)
        Path(place).mkdir(parents=True)
        Path(place, "data").write_bytes(b"x")
        return Saved(1.0, 2.0)

    def restore(self, place: str) -> float:
        return 3.0 if Path(place, "data").exists() else 0.0

    def restored(self) -> State:
        return self.state


def test_libraries_take_turns_in_an_order_that_the_seed_shuffles(tmp_path: Path) -> None:
    state = build_state(64)

    def turns_of(seed: int) -> tuple[list[str], Any]:
        turns: list[str] = []
        libraries: list[Any] = [Recorder(name, state, turns, tmp_path) for name in "ABC"]
        scratch = Scratch(FolderStore(tmp_path), "scratch")
        return turns, take_turns(libraries, state, scratch, seed, rounds=20)

    turns, times = turns_of(1)
    rounds = ["".join(turns[at : at + 3]) for at in range(0, len(turns), 3)]
    assert len(rounds) == 1 + 20
    assert all(sorted(each) == ["A", "B", "C"] for each in rounds)
    assert len(set(rounds)) > 1
    assert turns_of(1)[0] == turns
    assert turns_of(2)[0] != turns
    of_one = {("save_blocked", ""): 1.0, ("save", ""): 2.0, ("restore", "warm"): 3.0, ("restore", "dropped"): 3.0}
    assert times == {(name, *key): [value] * 20 for name in "ABC" for key, value in of_one.items()}


def test_a_library_that_brings_back_something_else_fails_the_trial(tmp_path: Path) -> None:
    state = build_state(64)
    wrong = {name: array + 1 for name, array in state.items()}
    with pytest.raises(RuntimeError, match="A did not bring back what was saved"):
        take_turns([Recorder("A", wrong, [], tmp_path)], state, Scratch(FolderStore(tmp_path), "scratch"), 0, 1)


def measure_for_real(rank: int, world: int, coordinator: str, runtime: str, folder: str) -> Measured:
    trial, environ = trial_of(state="600KiB", beside=["Orbax", "TorchDCP"], runtime=runtime)
    return run(trial, FolderStore(Path(folder)), environ)


@pytest.mark.parametrize("runtime", ["torch", "flax"])
def test_three_libraries_are_measured_and_nothing_is_left(runtime: str, tmp_path: Path) -> None:
    killed = tmp_path / "disk/uid-1/scratch/Orbax-2/left-by-a-trial-that-was-killed"
    kept = tmp_path / "disk/uid-1/trials/t00.1.json"
    for path in (killed, kept):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    (measured,) = run_ranks(measure_for_real, 1, runtime, str(tmp_path))
    assert files_below(tmp_path) == [kept]
    figures = [(p.metric, p.labels, p.unit, p.better, p.is_headline) for p in measured.points]
    assert figures == [
        figure
        for library in ("Capstan", "Orbax", "TorchDCP")
        for ours in [library == "Capstan"]
        for at in [{"library": library}]
        for figure in (
            ("save_bytes_per_second", at, "B/s", "higher", ours),
            ("save_seconds", at, "s", "lower", False),
            ("save_blocked_seconds", at, "s", "lower", ours),
            ("restore_bytes_per_second", at | {"cache": "warm"}, "B/s", "higher", False),
            ("restore_seconds", at | {"cache": "warm"}, "s", "lower", False),
            ("restore_bytes_per_second", at | {"cache": "dropped"}, "B/s", "higher", ours),
            ("restore_seconds", at | {"cache": "dropped"}, "s", "lower", False),
            ("verify_bytes_per_second", at | {"cache": "dropped"}, "B/s", "higher", False),
            ("verify_seconds", at | {"cache": "dropped"}, "s", "lower", False),
        )
        if ours or not figure[0].startswith("verify")
    ]
    assert {figure[0] for figure in figures} == set(JUDGED["checkpoint"])
    by_place = {(p.metric, *p.labels.values()): p.value for p in measured.points}
    for (metric, *place), value in by_place.items():
        if metric.endswith("_bytes_per_second"):
            seconds = by_place[(metric.replace("_bytes_per_second", "_seconds"), *place)]
            assert value == pytest.approx(600 * 1024 / seconds)
    assert {len(p.samples) for p in measured.points if p.unit == "s"} == {ROUNDS}
    assert (
        f"614,400 bytes in {len(build_state(614_400))} fp32 arrays, held by {'JAX' if runtime == 'flax' else 'torch'}"
        in (measured.notes[0])
    )


def fail_to_write(rank: int, world: int, coordinator: str, folder: str) -> str:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    trial, environ = trial_of(state="600KiB")
    try:
        run(trial, FolderStore(Path(folder)), environ)
    except SaveFailed as error:
        return str(error)
    raise AssertionError("it wrote more than it may")


def test_a_trial_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (told,) = run_ranks(fail_to_write, 1, str(tmp_path))
    assert "File too large" in told
    assert files_below(tmp_path) == []


def without_orbax(rank: int, world: int, coordinator: str, folder: str) -> str:
    sys.modules["orbax.checkpoint"] = None  # type: ignore[assignment]
    trial, environ = trial_of(state="1KiB", beside=["Orbax"])
    try:
        run(trial, FolderStore(Path(folder)), environ)
    except ConfigError as error:
        return str(error)
    raise AssertionError("Orbax cannot be there")


def test_a_library_that_is_not_in_the_image_is_refused(tmp_path: Path) -> None:
    (told,) = run_ranks(without_orbax, 1, str(tmp_path))
    assert told.startswith("checkpoint.beside: Orbax is not installed here (")
    assert told.endswith("); set pods.image to one that has it, or leave it out")


def test_a_disk_that_is_too_small_is_told_with_what_is_needed(tmp_path: Path) -> None:
    trial, environ = trial_of(state="900000GiB")
    with pytest.raises(ConfigError) as refused:
        run(trial, FolderStore(tmp_path), environ)
    told = str(refused.value)
    assert told.startswith(
        f"checkpoint.state: 900000GiB takes 1,063,004,405,760,000 bytes in results.store, {tmp_path}"
    )
    assert told.endswith("are free; use a smaller state or a larger volume")


def test_a_disk_that_fills_up_meanwhile_is_told_whatever_a_library_makes_of_it(tmp_path: Path) -> None:
    task, store = CheckpointIo(state="4MiB"), FolderStore(tmp_path)

    def fill() -> None:
        Path("/dev/full").write_bytes(b"x")

    def fill_and_wrap() -> None:
        try:
            fill()
        except OSError as error:
            raise ValueError("something went wrong") from error

    def fill_and_tell() -> None:
        try:
            fill()
        except OSError as error:
            text = str(error)
        raise SaveFailed(f"step 1, rank 0: {text}")

    for full in (fill, fill_and_wrap, fill_and_tell):
        told = r"4MiB takes 4,613,734 bytes .* is full; use a smaller state"
        with pytest.raises(ConfigError, match=told), full_disk_explained(task, store):
            full()
    with pytest.raises(ValueError, match="of its own"), full_disk_explained(task, store):
        raise ValueError("of its own")


def test_a_bucket_takes_capstans_checkpoints_and_no_others() -> None:
    alone, environ = trial_of(state="1KiB", runtime="torch")
    beside, _ = trial_of(state="1KiB", beside=["TorchDCP"])
    with s3_server() as server:
        environ = {**environ, **server.environ()}
        store = open_store(f"s3://{BUCKET}/results/default", environ)
        with pytest.raises(ConfigError, match=r"beside: TorchDCP would be measured in a folder, .* leave beside out"):
            run(beside, store, environ)
        measured = run(alone, store, environ)
        assert store.children() == []
    assert [(p.metric, p.labels) for p in measured.points if p.unit == "s"] == [
        ("save_seconds", {"library": "Capstan"}),
        ("save_blocked_seconds", {"library": "Capstan"}),
        ("restore_seconds", {"library": "Capstan", "cache": "none"}),
        ("verify_seconds", {"library": "Capstan", "cache": "none"}),
    ]
    assert not any("posix_fadvise" in note for note in measured.notes)


def test_files_that_the_kernel_has_in_memory_are_counted(tmp_path: Path) -> None:
    assert share_in_memory(tmp_path) == 0.0
    (tmp_path / "below").mkdir()
    (tmp_path / "below/empty").write_bytes(b"")
    (tmp_path / "below/data").write_bytes(b"x" * 1_000_000)
    assert share_in_memory(tmp_path) == 1.0
    assert forget_pages(tmp_path) == share_in_memory(tmp_path)
    assert (tmp_path / "below/data").read_bytes() == b"x" * 1_000_000
    assert share_in_memory(tmp_path) == 1.0


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no file system that is memory")
def test_a_file_system_that_is_memory_forgets_nothing_and_that_is_told() -> None:
    with tempfile.TemporaryDirectory(prefix="capstan-test-", dir="/dev/shm") as folder:
        (Path(folder) / "data").write_bytes(b"x" * 100_000)
        assert forget_pages(Path(folder)) == 1.0
