"""What each kind of data yields, and how bad data is refused before any training."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from capstan_runtime.contract.data import Data
from capstan_runtime.contract.env import POD_MOUNTS
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.data.fingerprint import fingerprint_of_folder
from capstan_runtime.data.open import open_dataset
from capstan_runtime.data.spec import Dataset, DataSpec
from capstan_runtime.errors import ConfigError, failure_class_of


def opened(document: dict[str, Any], seed: int = 0, environ: dict[str, str] | None = None) -> Dataset:
    return open_dataset(Data.parse(document), seed, environ or {})


def everything(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """All inputs and targets, training first."""
    parts = [samples.fetch(np.arange(len(samples))) for samples in (dataset.train, dataset.validation)]
    inputs, targets = zip(*parts, strict=True)
    return np.concatenate(inputs), np.concatenate(targets)


def arrays(path: Path, **more: object) -> dict[str, Any]:
    return {"arrays": {"path": str(path), "inputs": "x", "labels": "y", **more}}


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(document)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    dataset = opened({"digits": {}})
    assert (dataset.spec.kind, dataset.spec.input_shape, dataset.spec.outputs) == ("image", (8, 8, 1), 10)
    assert (len(dataset.train), len(dataset.validation)) == (1438, 359)
    inputs, targets = everything(dataset)
    assert (inputs.dtype, targets.dtype, inputs.shape) == (np.float32, np.int32, (1797, 8, 8, 1))

    def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
        return sorted(
            (int(label), *pixels.round().astype(int).ravel().tolist())
            for pixels, label in zip(images, labels, strict=True)
        )

    assert rows(inputs * 16, targets) == rows(theirs.images, theirs.target)


def test_the_split_follows_from_the_seed_alone() -> None:
    first, again, other = (opened({"digits": {}}, seed).validation for seed in (3, 3, 4))
    everyone = np.arange(len(first))
    assert first.fetch(everyone)[0].tobytes() == again.fetch(everyone)[0].tobytes()
    assert first.fetch(everyone)[0].tobytes() != other.fetch(everyone)[0].tobytes()


def write_npz(folder: Path, x: np.ndarray, y: np.ndarray) -> Path:
    np.savez(folder / "data.npz", x=x, y=y)
    return folder / "data.npz"


def write_hdf5(folder: Path, x: np.ndarray, y: np.ndarray) -> Path:
    with h5py.File(folder / "data.h5", "w") as file:
        file["x"], file["y"] = x, y
    return folder / "data.h5"


def write_zarr(folder: Path, x: np.ndarray, y: np.ndarray) -> Path:
    group = zarr.open_group(str(folder / "data.zarr"), mode="w")
    for name, array in (("x", x), ("y", y)):
        group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=(7, *array.shape[1:]))[:] = array
    return folder / "data.zarr"


WRITERS = [write_npz, write_hdf5, write_zarr]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("shape", "dtype", "spec"),
    [
        ((50, 4, 5, 3), np.uint8, DataSpec("image", (4, 5, 3), 5, "")),
        ((50, 4, 5), np.float64, DataSpec("image", (4, 5, 1), 5, "")),
        ((50, 6), np.float32, DataSpec("vector", (6,), 5, "")),
        ((50, 6), np.int16, DataSpec("vector", (6,), 5, "")),
    ],
)
def test_arrays_are_read_alike_from_every_format(
    tmp_path: Path, write: Any, shape: tuple[int, ...], dtype: type, spec: DataSpec
) -> None:
    random = np.random.default_rng(0)
    x = (random.random(shape) * 100).astype(dtype)
    y = (np.arange(50) % 5).astype(np.int64)
    dataset = opened(arrays(write(tmp_path, x, y), validationFraction=0.3))
    assert (dataset.spec.kind, dataset.spec.input_shape, dataset.spec.outputs) == (
        spec.kind,
        spec.input_shape,
        spec.outputs,
    )
    assert (len(dataset.train), len(dataset.validation)) == (35, 15)
    inputs, targets = everything(dataset)
    scaled = x.astype(np.float32) / np.float32(255) if dtype is np.uint8 else x.astype(np.float32)
    expected = {(int(label), row.tobytes()) for label, row in zip(y, scaled, strict=True)}
    assert {(int(label), row.tobytes()) for label, row in zip(targets, inputs, strict=True)} == expected


@pytest.mark.parametrize("write", WRITERS)
def test_samples_come_in_the_order_asked_for_repeats_included(tmp_path: Path, write: Any) -> None:
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    samples = opened(arrays(write(tmp_path, x, np.arange(20)), validationFraction=0.5)).train
    inputs, targets = samples.fetch(np.asarray([4, 1, 4, 0, 9]))
    assert targets[0] == targets[2]
    assert inputs[:, 0].tolist() == (2 * targets).tolist()


def test_hdf5_and_zarr_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_read: list[int] = []
    original = h5py.Dataset.__getitem__

    def counting(self: h5py.Dataset, key: Any, **options: Any) -> Any:
        result = original(self, key, **options)
        if self.name == "/x":
            rows_read.append(len(result))
        return result

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    x = np.zeros((5000, 2), np.float32)
    samples = opened(arrays(write_hdf5(tmp_path, x, np.zeros(5000, int)))).train
    samples.fetch(np.arange(8))
    assert sum(rows_read) == 8


def test_paths_of_a_pod_are_found_where_its_mount_really_is(tmp_path: Path) -> None:
    write_npz(tmp_path, np.zeros((10, 2), np.float32), np.zeros(10, int))
    environ = {POD_MOUNTS: json.dumps({"/data": str(tmp_path)})}
    assert len(opened(arrays(Path("/data/data.npz")), environ=environ).train) == 9


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((9, 2)), np.zeros(10, int), "inputs: 'x' has 9 samples but 'y' has 10"),
        (np.zeros((10, 2)), np.zeros(10), "labels: 'y' is float64 of shape (10,)"),
        (np.zeros((10, 2)), np.zeros((10, 1), int), "labels: 'y' is int64 of shape (10, 1)"),
        (np.zeros((10, 2)), np.arange(10) - 1, "labels: 'y' holds -1 … 8"),
        (np.zeros((0, 2)), np.zeros(0, int), "labels: 'y' is empty"),
        (np.zeros(10), np.zeros(10, int), "inputs: 'x' has shape (10,)"),
        (np.zeros((10, 0)), np.zeros(10, int), "inputs: 'x' has shape (10, 0)"),
        (np.zeros((10, 2), complex), np.zeros(10, int), "inputs: 'x' has type complex128"),
        (np.zeros((1, 2)), np.zeros(1, int), "validationFraction: 0.1 of 1 samples leaves none"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(tmp_path: Path, x: np.ndarray, y: np.ndarray, says: str) -> None:
    assert f"spec.data.arrays.{says}" in refusal(arrays(write_npz(tmp_path, x, y)))


def test_files_that_are_not_what_their_name_says_are_refused(tmp_path: Path) -> None:
    for name in ("a.npz", "a.h5"):
        (tmp_path / name).write_bytes(b"no such thing")
        assert f"cannot be read as {Path(name).suffix}" in refusal(arrays(tmp_path / name))
    (tmp_path / "a.csv").write_bytes(b"1,2")
    assert "must end in one of .npz, .h5, .hdf5, .zarr" in refusal(arrays(tmp_path / "a.csv"))
    assert "does not exist in the pod" in refusal(arrays(tmp_path / "none.npz"))


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), FailureClass.APPLICATION),
        (OSError(errno.EIO, "Input/output error"), FailureClass.APPLICATION),
        (MemoryError(), FailureClass.HOST_OUT_OF_MEMORY),
        (OSError("Can't read data (inflate() failed)"), FailureClass.CONFIG),
        (ValueError("bad chunk"), FailureClass.CONFIG),
    ],
)
def test_what_fails_under_a_training_run_is_no_error_of_its_spec_unless_the_data_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, failure_class: FailureClass
) -> None:
    samples = opened(arrays(write_hdf5(tmp_path, np.zeros((10, 2)), np.zeros(10, int)))).train

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    with pytest.raises(type(error) if failure_class is not FailureClass.CONFIG else ConfigError) as caught:
        samples.fetch(np.arange(2))
    assert failure_class_of(caught.value) is failure_class


def test_a_file_that_can_be_read_no_more_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path, np.zeros((100_000, 2)), np.zeros(100_000, int))  # more than HDF5 keeps of what it read
    samples = opened(arrays(path)).train
    folder = os.open(tmp_path, os.O_RDONLY)
    for descriptor in Path("/proc/self/fd").iterdir():
        if descriptor.exists() and descriptor.samefile(path):
            os.dup2(folder, int(descriptor.name))
    os.close(folder)
    with pytest.raises(IsADirectoryError) as caught:
        samples.fetch(np.arange(2))
    assert failure_class_of(caught.value) is FailureClass.APPLICATION


@pytest.mark.parametrize("reads", ["File", "Dataset.__getitem__"])
def test_storage_that_fails_while_data_is_opened_is_no_error_of_the_spec_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    path = write_hdf5(tmp_path, np.zeros((10, 2)), np.zeros(10, int))

    def fail(*_: Any) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(f"h5py.{reads}", fail)
    with pytest.raises(OSError, match="Stale file handle") as caught:
        opened(arrays(path))
    assert failure_class_of(caught.value) is FailureClass.APPLICATION


def test_a_missing_array_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = write_npz(tmp_path, np.zeros((10, 2)), np.zeros(10, int))
    assert "has no array 'images'; it has x, y" in refusal(arrays(path, inputs="images"))


def test_a_nan_among_the_inputs_is_an_error_not_a_loss(tmp_path: Path) -> None:
    x = np.zeros((10, 2), np.float32)
    x[4, 1] = np.nan
    samples = opened(arrays(write_npz(tmp_path, x, np.zeros(10, int))))
    with pytest.raises(ConfigError, match="sample 4 holds a NaN"):
        everything(samples)


def test_text_is_the_bytes_of_the_sorted_files_with_a_zero_between(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "sub" / "c.txt").write_text("third")
    (tmp_path / "d.md").write_text("other")
    dataset = opened(
        {"text": {"path": str(tmp_path), "pattern": "**/*.txt", "sequenceLength": 2, "validationFraction": 0.3}}
    )
    whole = b"first\0second\0third"
    assert (dataset.spec.kind, dataset.spec.input_shape, dataset.spec.outputs) == ("tokens", (2,), 256)
    inputs, targets = everything(dataset)
    assert (inputs.dtype, targets.dtype) == (np.int32, np.int32)
    windows = {(bytes(i.astype(np.uint8)), bytes(t.astype(np.uint8))) for i, t in zip(inputs, targets, strict=True)}
    assert windows == {(whole[i : i + 2], whole[i + 1 : i + 3]) for i in range(0, len(whole) - 2, 2)}


def test_the_standard_library_is_text_that_is_always_there() -> None:
    dataset = opened({"text": {"path": "$(PYTHON_STDLIB)/json", "sequenceLength": 64}})
    inputs, _ = dataset.train.fetch(np.arange(len(dataset.train)))
    assert b"JSONDecoder" in inputs.astype(np.uint8).tobytes()


def test_installed_packages_are_not_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sysconfig

    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "installed.py").write_text("installed = 1\n" * 20)
    (tmp_path / "own.py").write_text("own = 1\n" * 20)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    inputs, _ = everything(opened({"text": {"path": "$(PYTHON_STDLIB)", "sequenceLength": 8}}))
    assert set(inputs.astype(np.uint8).tobytes()) == set(b"own = 1\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({"path": "/nowhere", "sequenceLength": 8}, "spec.data.text.path: /nowhere does not exist in the pod"),
        ({"path": "$(PYTHON_STDLIB)/json", "pattern": "*.txt", "sequenceLength": 8}, "pattern: *.txt matches no file"),
        ({"path": "$(PYTHON_STDLIB)/json", "pattern": "/*.txt", "sequenceLength": 8}, "pattern: /*.txt is no glob of"),
        ({"path": "$(PYTHON_STDLIB)/this.py", "sequenceLength": 4000}, "sequenceLength: 4000 needs 8001 tokens"),
    ],
)
def test_text_that_is_not_there_or_too_short_is_refused(text: dict[str, Any], says: str) -> None:
    assert says in refusal({"text": text})


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_tokens_are_cut_into_windows_that_share_one_token(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "tokens.bin").write_bytes(np.arange(31).astype(f"<{dtype[0]}{int(dtype[4:]) // 8}").tobytes())
    tokens = {"path": str(tmp_path / "tokens.bin"), "dtype": dtype, "vocabulary": 31, "sequenceLength": 5}
    dataset = opened({"tokens": {**tokens, "validationFraction": 0.2}})
    inputs, targets = everything(dataset)
    assert sorted(inputs.tolist()) == [list(range(start, start + 5)) for start in range(0, 30, 5)]
    assert (targets - inputs == 1).all()


def test_files_of_a_folder_follow_each_other_and_no_window_reaches_into_the_next(tmp_path: Path) -> None:
    for name, first, count in (
        ("b.bin", 100, 12),
        ("a.bin", 0, 9),
        ("c.bin", 200, 3),
        ("d.txt", 300, 50),
        ("e.bin", 0, 0),
    ):
        (tmp_path / name).write_bytes(np.arange(first, first + count, dtype="<u2").tobytes())
    tokens = {"path": str(tmp_path), "vocabulary": 400, "sequenceLength": 4, "validationFraction": 0.3}
    inputs, targets = everything(opened({"tokens": tokens}))
    assert sorted(inputs[:, 0].tolist()) == [0, 4, 100, 104]
    assert (np.diff(np.concatenate([inputs, targets[:, -1:]], axis=1)) == 1).all()
    assert "spec.data.tokens.pattern: *.gz matches no file" in refusal({"tokens": {**tokens, "pattern": "*.gz"}})
    assert "spec.data.tokens.pattern: /a/*.bin is no glob of files below path (" in refusal(
        {"tokens": {**tokens, "pattern": "/a/*.bin"}}
    )
    assert "sequenceLength: 50 needs 101 tokens" in refusal({"tokens": {**tokens, "sequenceLength": 50}})


def test_tokens_outside_the_vocabulary_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "tokens.bin").write_bytes(np.arange(31, dtype="<u2").tobytes())
    tokens = {"path": str(tmp_path / "tokens.bin"), "vocabulary": 30, "sequenceLength": 5}
    message = refusal({"tokens": tokens})
    assert message == (
        "spec.data.tokens.vocabulary: sample 5 in tokens.bin holds token 30, but every token must be below 30: "
        "set vocabulary to 31 or more, or check dtype; mend the data, or let spec.dataQuality.badSamples: skip leave "
        "such samples out"
    )


def test_a_file_that_ends_inside_a_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens.bin").write_bytes(b"\0" * 33)
    tokens = {"path": str(tmp_path / "tokens.bin"), "vocabulary": 30, "sequenceLength": 5}
    assert "has 33 bytes, no multiple of the 2 of a uint16" in refusal({"tokens": tokens})


def test_a_fingerprint_names_the_contents_wherever_they_lie(tmp_path: Path) -> None:
    x, y = np.zeros((10, 2)), np.zeros(10, int)
    prints = []
    for folder, value in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        (tmp_path / folder).mkdir()
        path = write_npz(tmp_path / folder, x + value, y)
        prints.append(opened(arrays(path)).spec.fingerprint)
    assert prints[0] == prints[1] != prints[2]
    assert prints[0].startswith("blake3:")


def test_a_folder_with_other_contents_of_the_same_sizes_has_another_name(tmp_path: Path) -> None:
    prints = []
    for number, contents in enumerate((b"abcd", b"abcd", b"abce")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "chunk").write_bytes(contents)
        prints.append(fingerprint_of_folder(tmp_path / str(number)))
    assert prints[0] == prints[1] != prints[2]


def test_whoever_waits_for_many_files_is_told_that_they_are_being_read(tmp_path: Path) -> None:
    told: list[bool] = []

    def beats_of(document: dict[str, Any]) -> int:
        told.clear()
        open_dataset(Data.parse(document), 0, {}, alive=lambda: told.append(True))
        return len(told)

    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    for name, values in (("x", np.ones((40, 2))), ("y", np.ones(40, int))):
        group.create_array(name, data=values, chunks=(1, *values.shape[1:]))
    files = sum(1 for _ in (tmp_path / "x.zarr").rglob("*"))
    assert files > 40
    assert beats_of(arrays(tmp_path / "x.zarr")) == files + 1
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / "texts" / f"{number}.txt").write_text("some words")
        np.arange(20, dtype="<u2").tofile(tmp_path / "texts" / f"{number}.bin")
    text = {"path": str(tmp_path / "texts"), "pattern": "*.txt", "sequenceLength": 8}
    assert beats_of({"text": text}) > 2 * 9
    assert beats_of({"tokens": {"path": str(tmp_path / "texts"), "vocabulary": 20, "sequenceLength": 8}}) == 9
