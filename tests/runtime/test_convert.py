"""Plain safetensors out of a checkpoint: what other libraries then read, and what is left when it fails."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import yaml
from blake3 import blake3
from safetensors import safe_open
from safetensors.numpy import load_file

from capstan_runtime.checkpoint.convert import convert
from capstan_runtime.checkpoint.manifest import Manifest, TensorEntry, TrainerState
from capstan_runtime.checkpoint.safetensors import dtype_name
from capstan_runtime.contract.run_config import Skip
from capstan_runtime.engine import Array
from capstan_runtime.errors import ConfigError, CorruptCheckpoint

ROOT = "blake3:" + "ab" * 32

STATE: dict[str, np.ndarray] = {
    "optimizer/exp_avg/head.weight": np.full((4, 3), 0.5, np.float32),
    "optimizer/step": np.array(120, np.int64),
    "params/embed.weight": np.arange(24).reshape(8, 3).astype(ml_dtypes.bfloat16),
    "params/empty": np.zeros((0, 3), np.float32),
    "params/head.bias": np.arange(4).astype(np.float16),
    "params/head.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "params/mask": np.array([True, False, True]),
}
PARAMETERS = {name.removeprefix("params/"): array for name, array in STATE.items() if name.startswith("params/")}


class Source:
    """Arrays in memory, of which one may be broken."""

    def __init__(self, arrays: Mapping[str, np.ndarray], broken: str | None = None) -> None:
        self._arrays = arrays
        self._broken = broken

    def names(self) -> Iterable[str]:
        return self._arrays

    def read(self, name: str) -> Array:
        return self._arrays[name]

    def read_range(self, name: str, start: int, stop: int) -> Array:
        if name == self._broken:
            raise CorruptCheckpoint(f"{name} is broken")
        return self._arrays[name].reshape(-1)[start:stop].copy()


def manifest_of(arrays: Mapping[str, np.ndarray]) -> Manifest:
    return Manifest(
        job="default/digits",
        run="0f3c",
        step=120,
        fence=3,
        attempt="0123456789ab",
        world=2,
        parent=None,
        created_at=1_000_000_000.0,
        ranks=(),
        tensors=tuple(
            TensorEntry(name=name, dtype=dtype_name(array.dtype), shape=array.shape, digest="blake3:00")
            for name, array in sorted(arrays.items())
        ),
        trainer=TrainerState(
            step=120,
            seed=7,
            global_batch_size=64,
            virtual_ranks=2,
            plan_version=1,
            data_fingerprint="blake3:da7a",
            learning_rate_step=120,
            loss=0.25,
            skips=(Skip(first=40, count=2),),
        ),
        logical="blake3:10",
        metrics={"accuracy": 0.975},
        framework="flax",
    )


def test_parameters_have_the_names_of_their_modules_and_the_bits_they_had(tmp_path: Path) -> None:
    converted = convert(ROOT, manifest_of(STATE), Source(STATE), tmp_path / "out" / "model")
    loaded = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {name: (array.dtype, array.shape, array.tobytes()) for name, array in loaded.items()} == {
        name: (array.dtype, array.shape, array.tobytes()) for name, array in PARAMETERS.items()
    }
    assert sorted(path.name for path in converted.folder.iterdir()) == ["README.md", "model.safetensors"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert (converted.tensors, converted.size) == (5, (converted.folder / "model.safetensors").stat().st_size)


def test_the_optimizer_s_state_is_written_only_when_asked_for(tmp_path: Path) -> None:
    convert(ROOT, manifest_of(STATE), Source(STATE), tmp_path / "all", with_optimizer=True)
    loaded = load_file(tmp_path / "all" / "model.safetensors")
    assert set(loaded) == {*PARAMETERS, "optimizer/exp_avg/head.weight", "optimizer/step"}
    assert (loaded["optimizer/step"].shape, int(loaded["optimizer/step"])) == ((), 120)


def test_the_average_of_a_run_that_kept_one_has_the_names_of_the_modules(tmp_path: Path) -> None:
    averages = {f"ema/{name}": array + array.dtype.type(1) for name, array in PARAMETERS.items() if name != "mask"}
    state = {**STATE, **averages}
    convert(ROOT, manifest_of(state), Source(state), tmp_path / "model")
    loaded = load_file(tmp_path / "model" / "model.safetensors")
    # What is not trained, such as a running statistic, has no average, and is the model's all the same.
    served = {**{name.removeprefix("ema/"): array for name, array in averages.items()}, "mask": PARAMETERS["mask"]}
    assert {name: array.tobytes() for name, array in loaded.items()} == {
        name: array.tobytes() for name, array in served.items()
    }
    assert "moving average of the parameters" in (tmp_path / "model" / "README.md").read_text()
    convert(ROOT, manifest_of(state), Source(state), tmp_path / "all", with_optimizer=True)
    everything = load_file(tmp_path / "all" / "model.safetensors")
    assert set(everything) == set(served) | (set(STATE) - {"params/mask"})


def test_a_large_model_is_several_files_with_an_index(tmp_path: Path) -> None:
    converted = convert(ROOT, manifest_of(STATE), Source(STATE), tmp_path / "model", file_bytes=52)
    names = [file.name for file in converted.files]
    assert names == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(array.nbytes for array in PARAMETERS.values())}
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "model" / file, "numpy") as opened:
            assert opened.get_tensor(name).tobytes() == PARAMETERS[name].tobytes()
    assert set(index["weight_map"]) == set(PARAMETERS)


def test_every_file_and_the_card_say_where_the_bytes_come_from(tmp_path: Path) -> None:
    converted = convert(ROOT, manifest_of(STATE), Source(STATE), tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "numpy") as opened:
        assert opened.metadata() == {
            "format": "pt",
            "capstan.root": ROOT,
            "capstan.logical": "blake3:10",
            "capstan.job": "default/digits",
            "capstan.run": "0f3c",
            "capstan.step": "120",
        }
    _, front, body = (tmp_path / "model" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "safetensors", "tags": ["capstan", "flax"]}
    digest = blake3((tmp_path / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert converted.files[0].digest == f"blake3:{digest}"
    for fact in (
        "| Step | 120 |",
        "| Samples seen | 7,680 in batches of 64 |",
        "| Saved | 2001-09-09 01:46:40 UTC by flax on 2 ranks |",
        f"| Checkpoint (root) | `{ROOT}` |",
        "| Data | `blake3:da7a`, seed 7, order of version 1 |",
        "| Batches left out | 2 from 40 on |",
        "| `accuracy` | 0.975 |",
        "| `loss` | 0.25 |",
        f"`blake3:{digest}` |",
    ):
        assert fact in body


def test_a_byte_that_does_not_verify_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpoint):
        convert(ROOT, manifest_of(STATE), Source(STATE, "params/mask"), tmp_path / "model", file_bytes=50)
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_exists_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(ConfigError, match="exists; give a folder that does not"):
            convert(ROOT, manifest_of(STATE), Source(STATE), target)
    assert (tmp_path / "file").read_text() == "precious"


def test_tensors_that_would_get_one_name_are_refused(tmp_path: Path) -> None:
    arrays = {"a": np.zeros(1, np.float32), "params/a": np.ones(1, np.float32)}
    with pytest.raises(ConfigError, match="two tensors of the checkpoint would be called a; leave out --optimizer"):
        convert(ROOT, manifest_of(arrays), Source(arrays), tmp_path / "model", with_optimizer=True)
    only_optimizer = {"optimizer/step": STATE["optimizer/step"]}
    with pytest.raises(ConfigError, match="has no parameters"):
        convert(ROOT, manifest_of(only_optimizer), Source(only_optimizer), tmp_path / "model")
