"""What trainers, supervisors and the readers of checkpoints and data read: Secrets, requests, stores, files."""

from __future__ import annotations

import atexit
import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from aiohttp import ClientSession
from PIL import Image
from pydantic import ValidationError

from capstan_runtime.checkpoint.layout import CLAIMS, COMMIT, MANIFEST, QUARANTINED, SHARDS, VERIFIED
from capstan_runtime.contract import env
from capstan_runtime.contract.data import Data
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Progress, State
from capstan_runtime.data.look import look_at
from capstan_runtime.data.open import open_dataset
from capstan_runtime.data.spec import DataSpec, Rows
from capstan_runtime.data_check import read_report
from capstan_runtime.data_tools.inspecting import data_of
from capstan_runtime.data_tools.packing import find_source
from capstan_runtime.data_tools.token_folder import MANIFEST as TOKENS_MANIFEST
from capstan_runtime.data_tools.token_folder import Unusable
from capstan_runtime.errors import ConfigError, CorruptCheckpoint
from capstan_runtime.listening import Listener
from capstan_runtime.registry.entry import ModelEntry, sealed, unsealed
from capstan_runtime.supervisor.exposition import Facts
from capstan_runtime.supervisor.memory_tier import MemoryTier
from capstan_runtime.supervisor.server import Refused, make_listener
from capstan_runtime.supervisor.settings import read_settings
from tests.fuzz.loop import run
from tests.fuzz.scratch import scratch
from tests.fuzz.target import Target
from tests.runtime.test_registry import entry_of
from tests.support.engines import context_of
from tests.torture import scenes
from tests.torture.scenes import Kind


def _dumped(*documents: Any) -> Callable[[], Sequence[bytes]]:
    return lambda: [json.dumps(document).encode() for document in documents]


# Supervisors


def _run_config(data: bytes) -> bool:
    folder = scratch()
    (folder / "run.json").write_bytes(data)
    (folder / "token").write_text("t")
    places = {env.RUN_CONFIG: str(folder / "run.json"), env.TOKEN_FILE: str(folder / "token")}
    try:
        read_settings({**places, env.POD_NAME: "j-worker-0", env.POD_IP: "127.0.0.1"})
    except ConfigError:
        return False
    return True


class _Supervised:
    """Takes every membership but those of fence 1."""

    state = State(pod="j-worker-0", uid="u")

    @property
    def facts(self) -> Facts:
        raise AssertionError("nobody asks for metrics")

    def accept(self, membership: Membership) -> None:
        if membership.fence == 1:
            raise Refused("fence 1 is over")

    def refuse(self, reason: str) -> None:
        assert "\n" not in reason, "it goes on the status"


@cache
def _supervisor() -> ClientSession:
    """A client that has a supervisor as its base."""
    folder = scratch() / "memory"
    (folder / "save").mkdir(parents=True)
    (folder / "save" / "r0.json").write_bytes(bytes(range(100)))

    async def start() -> tuple[Listener, ClientSession]:
        listener = make_listener(_Supervised(), "t", MemoryTier(folder))
        url = (await listener.open("127.0.0.1", 0))[0]
        return listener, ClientSession(url, headers={"Authorization": "Bearer t"})

    async def stop() -> None:
        await session.close()
        await listener.close()

    listener, session = run(start())
    atexit.register(lambda: run(stop()))
    return session


def _asked(method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, bytes]:
    supervisor = _supervisor()

    async def ask() -> tuple[int, bytes]:
        async with supervisor.request(method, path, headers=headers, data=body) as answer:
            return answer.status, await answer.read()

    return run(ask())


def _membership(data: bytes) -> bool:
    status, answer = _asked("PUT", "/membership", {}, data)
    assert status in (200, 409, 413, 422), (status, answer)
    return status == 200


def _memory_range(data: bytes) -> bool:
    """The first line is the key, the second a Range."""
    key, _, wanted = data.decode("latin-1").partition("\n")
    if not (wanted + key).isprintable():
        return False  # no client can send it
    status, answer = _asked("GET", f"/memory/{key}", {"Range": wanted} if wanted else {})
    assert status in (200, 206, 400, 404, 416), (status, answer)
    assert status not in (200, 206) or answer in bytes(range(100)), "a piece of the one file that there is"
    return status in (200, 206)


def _progress(data: bytes) -> bool:
    try:
        Progress.model_validate_json(data)
    except ValidationError:
        return False
    return True


# Checkpoints

_KIND = Kind(1)
_FILES = {
    COMMIT: COMMIT,
    MANIFEST: MANIFEST,
    "rank": f"{SHARDS}/r0.json",
    "shard": f"{SHARDS}/r0-0.safetensors",
    QUARANTINED: QUARANTINED,
    VERIFIED: VERIFIED,
    "claim": "",
}


def _key(what: str) -> str:
    stage = scenes.stage_of(_KIND)
    if what == "claim":
        return max(key for key in stage.objects if key.startswith(CLAIMS))
    return f"{stage.newest}/{_FILES[what]}"


def _checkpoint_seeds(what: str) -> Callable[[], Sequence[bytes]]:
    def seeds() -> Sequence[bytes]:
        stage = scenes.stage_of(_KIND)
        if what == VERIFIED:
            return [json.dumps({"root": stage.roots[scenes.NEWEST], "at": 3.0}).encode()]
        if what == QUARANTINED:
            return [json.dumps({"reason": "flipped", "at": 3.0}).encode()]
        return [stage.objects[_key(what)]]

    return seeds


def _checkpoint(what: str) -> Callable[[bytes], bool]:
    def feed(data: bytes) -> bool:
        """One file of a store is `data`, the others are as they were saved. Whatever it is: what is read was saved."""
        stage = scenes.stage_of(_KIND)
        with scenes.damaged(stage, {**stage.objects, _key(what): data}):
            reading = scenes.read(stage)
        assert not reading.differs, reading
        assert "\n" not in reading.message, "it goes on the status"
        is_newest = reading.root == stage.roots[scenes.NEWEST]
        return not is_newest if what == QUARANTINED else is_newest

    return feed


# Data


def _data(ending: str, config: dict[str, Any]) -> Callable[[bytes], bool]:
    def feed(data: bytes) -> bool:
        path = scratch() / f"data{ending}"
        path.write_bytes(data)
        return _read_all({next(iter(config)): {"path": str(path), **next(iter(config.values()))}})

    return feed


def _read_all(document: dict[str, Any]) -> bool:
    try:
        dataset = open_dataset(Data.parse(document), 0, {})
        for samples in (dataset.train, dataset.validation):
            samples.fetch(np.arange(min(len(samples), 100)))
    except ConfigError as error:
        return _is_one_line(error)
    return True


def _is_one_line(error: Exception) -> bool:
    assert "\n" not in str(error), "it goes on the status"
    return False


_X, _Y = np.arange(40, dtype=np.float32).reshape(10, 4), np.arange(10) % 3


def _picture(data: bytes) -> bool:
    """`data` is one of two files."""
    folder = scratch() / "pictures" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "good.png").write_bytes(_pictures()[0])
    (folder / "x.png").write_bytes(data)
    return _read_all({"images": {"path": str(folder.parent), "size": 8, "validationFraction": 0.5}})


def _pictures() -> list[bytes]:
    files = []
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        held = io.BytesIO()
        Image.fromarray(np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)).save(held, kind)
        files.append(held.getvalue())
    return files


def _report(data: bytes) -> bool:
    path = scratch() / "data-quality.json"
    path.write_bytes(data)
    try:
        report = read_report(path, "spec.dataQuality.reference")
    except ConfigError as error:
        return _is_one_line(error)
    look_at(*_vectors(), 10, report).summary()
    return True


def _vectors() -> tuple[Rows, DataSpec]:
    return Rows(_X, _Y.astype(np.int32)), DataSpec("vector", (4,), 3, "blake3:x")


def _reports() -> list[bytes]:
    return [look_at(*_vectors(), 10).model_dump_json(by_alias=True).encode()]


def _token_folder(data: bytes) -> bool:
    """`data` is its TOKENS.json."""
    folder = scratch() / "tokens"
    folder.mkdir(exist_ok=True)
    (folder / "tokens-00000.bin").write_bytes(np.asarray([1, 2, 9, 3, 9], "<u2").tobytes())
    (folder / TOKENS_MANIFEST).write_bytes(data)
    try:
        find_source(folder)
    except Unusable as error:
        return _is_one_line(error)
    return True


def _manifest(data: bytes) -> bool:
    path = scratch() / "job.yaml"
    path.write_bytes(data)
    try:
        data_of(path)
    except Unusable as error:
        return _is_one_line(error)
    return True


def _npz() -> list[bytes]:
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, inputs=_X, labels=_Y)
    np.savez_compressed(packed, inputs=_X, labels=_Y)
    return [plain.getvalue(), packed.getvalue()]


def _npy_member(data: bytes) -> bool:
    """`data` is the array's file inside an archive whose checksums are right."""
    import zipfile

    path = scratch() / "data.npz"
    labels = io.BytesIO()
    np.save(labels, _Y)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inputs.npy", data)
        archive.writestr("labels.npy", labels.getvalue())
    return _read_all({"arrays": {"path": str(path)}})


def _npy() -> list[bytes]:
    array = io.BytesIO()
    np.save(array, _X)
    return [array.getvalue()]


def _hdf5() -> list[bytes]:
    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        file["inputs"], file["labels"] = _X, _Y
    return [held.getvalue()]


@cache
def _zarr_group() -> Path:
    import zarr

    path = scratch() / "data.zarr"
    group = zarr.open_group(str(path), mode="w")
    group.create_array("inputs", data=_X, chunks=(5, 4))
    group.create_array("labels", data=_Y)
    return path


def _zarr(data: bytes) -> bool:
    """`data` is the description of the array."""
    described = _zarr_group() / "inputs" / "zarr.json"
    good = described.read_bytes()
    described.write_bytes(data)
    try:
        return _read_all({"arrays": {"path": str(_zarr_group())}})
    finally:
        described.write_bytes(good)


def _a_run() -> list[bytes]:
    return [context_of({"flax": {}}, {"mlp": {"hidden": [8]}}).run.model_dump_json(by_alias=True).encode()]


def _a_model() -> list[bytes]:
    return [sealed(entry_of("1.0.0")), sealed(entry_of("1.0.0"), b'{"mediaType": "a signature"}')]


def _registry_entry(data: bytes) -> bool:
    """What is taken is spelled as it was registered: a changed byte anywhere but in the signature is noticed."""
    try:
        entry, content = unsealed(ModelEntry, "an entry", data)
    except (CorruptCheckpoint, ConfigError):
        return False
    assert sealed(entry).startswith(content.data)
    return True


TARGETS = (
    Target("registry-entry", "who can write to the store", "registry.entry.unsealed", "CorruptCheckpoint, LaterFormat",
           "lines", _a_model, _registry_entry),
    Target("run-config", "the operator", "supervisor.settings.read_settings", "ConfigError", "json", _a_run,
           _run_config),
    Target("membership", "who has the job's token", "supervisor.server", "409, 413, 422", "json",
           _dumped({"fence": 3, "rank": 0, "world": 2, "coordinator": "10.0.0.1:8471", "floorStep": 7,
                    "skips": [{"first": 1, "count": 2}], "peers": ["10.0.0.1:8470"], "keepRoots": ["r"]}), _membership),
    Target("memory-range", "the job's pods", "supervisor.memory_tier", "400, 404, 416", "lines",
           lambda: [b"save/r0.json\nbytes=3-9", b"save/r0.json\nbytes=90-", b"save/r0.json"], _memory_range),
    Target("progress", "trainers", "contract.state.Progress", "ValidationError", "json",
           _dumped({"phase": "Training", "step": 3, "metrics": {"loss": 0.5}, "note": "n"}), _progress),
    *(Target(f"checkpoint-{what}", "who can write to the store", "checkpoint.choose", "CorruptCheckpoint",
             "bytes" if what == "shard" else "json", _checkpoint_seeds(what), _checkpoint(what),
             examples=20)
      for what in _FILES),
    Target("npz", "users", "data.arrays", "ConfigError", "bytes", _npz, _data(".npz", {"arrays": {}})),
    Target("npy", "users", "data.arrays", "ConfigError", "bytes", _npy, _npy_member),
    Target("hdf5", "users", "data.arrays", "ConfigError", "bytes", _hdf5, _data(".h5", {"arrays": {}})),
    Target("zarr", "users", "data.arrays", "ConfigError", "json",
           lambda: [(_zarr_group() / "inputs" / "zarr.json").read_bytes()], _zarr),
    Target("picture", "users", "data.images", "ConfigError", "bytes", _pictures, _picture),
    Target("data-report", "users", "data_check.read_report", "ConfigError", "json", _reports, _report),
    Target("token-folder", "users", "data_tools.packing.find_source", "Unusable", "json",
           _dumped({"dtype": "uint16", "vocabulary": 10, "endOfText": 9, "documents": 2,
                    "files": [{"name": "tokens-00000.bin", "tokens": 5, "digest": "blake3:00"}]}), _token_folder),
    Target("data-manifest", "users", "data_tools.inspecting.data_of", "Unusable", "lines",
           lambda: [b"kind: TrainingJob\nspec:\n  data:\n    arrays: {path: /x.npz}\n", b"digits: {}\n"], _manifest),
    Target("tokens", "users", "data.tokens", "ConfigError", "bytes", lambda: [bytes(range(200)) * 2],
           _data(".bin", {"tokens": {"dtype": "uint16", "sequenceLength": 8, "vocabulary": 65536}})),
    Target("text", "users", "data.tokens", "ConfigError", "bytes", lambda: [b"def f(): pass\n" * 9],
           _data(".py", {"text": {"sequenceLength": 8}})),
)  # fmt: skip
