"""What tests/features/*.yaml ask for, as manifests and as runs."""

import copy
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from pydantic import ValidationError

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.run_config import build_run_config
from capstan_runtime.contract import env
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.registry import REGISTRY
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.model_signature import signature_of
from capstan_runtime.preparing import prepare
from tests.support.teachers import values_of, write_teacher

Document = dict[str, Any]
FOLDER = Path(__file__).resolve().parents[1] / "features"
STEPS, SAVE_EVERY, WORKERS = 8, 4, 2
SEED = int(os.environ.get("CAPSTAN_SAMPLE_SEED") or time.time())
"""Of the samples that tests take; set, it repeats one that failed."""


@dataclass(frozen=True)
class Job:
    """Whose run it is."""

    namespace: str = "default"
    name: str = "small"
    uid: str = "3f1c-uid"


VARIANTS: dict[str, Document] = {
    "flax": {"flax": {}},
    "fsdp": {"flax": {"fsdp": {}}},
    **{f"zero{stage}": {"deepspeed": {"zeroStage": stage}} for stage in range(4)},
}
MODELS: dict[str, Document] = {
    "mlp": {"mlp": {"hidden": [16, 16]}},
    "cnn": {"cnn": {"channels": [8, 16], "groups": 4}},
    "transformer": {"transformer": {"layers": 2, "dim": 16, "heads": 2}},
}


@dataclass(frozen=True)
class Feature:
    name: str
    title: str
    area: str
    base: str
    patch: Document


def label(part: Feature | str) -> str:
    """For the name of a test."""
    return part if isinstance(part, str) else part.name


def load_features(folder: Path = FOLDER) -> list[Feature]:
    """All there are, by area as they are met, then by name."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        found.append(Feature(path.stem, document["feature"], document["area"], document["base"], document["spec"]))
    return found


def merge(document: Any, patch: Any) -> Any:
    """JSON merge patch, RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def base_spec(base: str, variant: str) -> Document:
    """A run of a few steps, logged at each of them, on data that `write_data` makes, in /data."""
    arrays = {"path": f"/data/{'images' if base == 'cnn' else 'vectors'}.npz"}
    tokens = {"path": "/data/tokens.bin", "vocabulary": 32, "sequenceLength": 8, "validationFraction": 0.1}
    return {
        "framework": VARIANTS[variant],
        "model": MODELS[base],
        "data": {"tokens": tokens} if base == "transformer" else {"arrays": arrays},
        "optimizer": {"adamw": {"learningRate": 0.01}},
        "schedule": {"constant": {"warmupSteps": 2}},
        "training": {
            "steps": STEPS,
            "globalBatchSize": 8,
            "virtualRanks": WORKERS,
            "logEverySteps": 1,
            "evaluation": {"everySteps": SAVE_EVERY},
        },
        "workers": {"max": WORKERS, "min": 1},
        "checkpoint": {"store": {"claim": {"name": "small"}}, "interval": {"steps": SAVE_EVERY}},
        "recovery": {"warmSpare": False, "memoryTier": False},
    }


def spec_of(base: str, variant: str, patches: list[Document], folder: str = "/data") -> Document:
    """The spec with all patches; a choice of one that a patch makes replaces the one that was made. What is in /data is
    in `folder`."""
    spec = base_spec(base, variant)
    for patch in patches:
        for choice in ("optimizer", "schedule", "data"):
            if choice in patch and set(patch[choice]) != set(spec[choice]):
                spec[choice] = {}
        spec = merge(spec, patch)
    for source in spec["data"].values():
        source["path"] = folder + source["path"].removeprefix("/data")
    return spec


def refusal(spec: Document) -> str | None:
    """What the schema says against `spec`, in one line; None: nothing."""
    try:
        TrainingJobSpec.parse(spec)
    except ValidationError as error:
        return "; ".join(map(_told, error.errors()))
    return None


def _told(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def run_config(spec: Document) -> RunConfig:
    return build_run_config(Job(), TrainingJobSpec.parse(spec))


def write_data(folder: Path) -> None:
    """Small data with something to learn: vectors and images of 3 classes, the same images as files, and a counting
    sequence of tokens, in one file and in two."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(3)
    labels = chance.integers(0, 3, 96)
    angles = np.cos(labels[:, None] + np.arange(2)).astype(np.float32)
    for name, shape in (("vectors", (6,)), ("images", (8, 8, 1))):
        centres = chance.normal(size=(3, *shape))
        inputs = (centres[labels] + chance.normal(size=(96, *shape)) / 2).astype(np.float32)
        np.savez(folder / f"{name}.npz", inputs=inputs, labels=labels, angles=angles)
    starts = chance.integers(0, 32, 120)[:, None]
    strides = chance.integers(1, 4, 120)[:, None]
    tokens = ((starts + strides * np.arange(8)) % 32).astype("<u2")
    tokens.tofile(folder / "tokens.bin")
    (folder / "shards").mkdir()
    for number, part in enumerate(np.split(tokens, [50])):
        part.tofile(folder / "shards" / f"{number}.bin")
    pixels = np.load(folder / "images.npz")["inputs"][..., 0]
    for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / "pictures" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture.clip(-3, 3) * 40 + 128).astype(np.uint8)).save(path)


@dataclass(frozen=True)
class FeatureRun:
    """A run's files, as `tests.support.attempts` wants them."""

    folder: Path
    config: RunConfig

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.json").write_text(self.config.model_dump_json(by_alias=True, exclude_none=True))
        self._write_models()

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def environ(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            env.RUN_CONFIG: str(self.folder / "run.json"),
            env.STORE: str(self.store),
            REGISTRY: str(self.folder),
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def _write_models(self) -> None:
        """The trained models that the run names, of its own kind of data."""
        compression = self.config.compression
        if compression is None or not compression.models:
            return
        prepared = prepare(self.environ())
        document = {"image": MODELS["cnn"], "vector": MODELS["mlp"], "tokens": MODELS["transformer"]}
        teacher = Model.parse(document[prepared.dataset.spec.kind])
        for name, model in (("teacher", teacher), ("origin", self.config.model)):
            whole = self.config.model_copy(update={"model": model, "compression": None})
            signature = signature_of(whole, prepared.dataset.spec)
            assert signature is not None
            write_teacher(self.folder, signature, values_of(signature, seed=1), name)


def cells() -> Iterator[tuple[Feature, str]]:
    """Every feature in both frameworks, however they cut up the model."""
    for feature in load_features():
        for variant in VARIANTS:
            yield feature, variant
