"""Restoring into an engine when the checkpoint turns out not to fit, or to have gone bad meanwhile."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import QUARANTINED, SHARDS
from capstan_runtime.contract.run_config import Deadlines, Membership, Skip
from capstan_runtime.contract.saving import Verification, VerifyLevel
from capstan_runtime.contract.state import Progress
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError
from capstan_runtime.report import Reporter
from capstan_runtime.restore import Start, restore
from capstan_runtime.voice import Voice
from tests.support.checkpoints import RUN, flip, folder_of, save


def context(*skips: Skip) -> Any:
    """The few facts that restoring looks at; they fit the checkpoints of `tests.support.checkpoints`."""
    training = SimpleNamespace(seed=0, global_batch_size=8, virtual_ranks=2)
    return SimpleNamespace(
        run=SimpleNamespace(
            uid=RUN, training=training, checkpoint=SimpleNamespace(verify=Verification()), memory_tier=True
        ),
        membership=Membership(fence=2, rank=0, world=1, coordinator="127.0.0.1:1", skips=skips),
        data_fingerprint="blake3:00",
        steps=50,
        environ={},
        deadlines=Deadlines(),
    )


class ReadingEngine:
    """Takes the named tensors out of a checkpoint."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.found: dict[str, Any] = {}

    def exchange(self, payload: bytes) -> list[bytes]:
        return [payload]

    def import_state(self, source: TensorSource) -> None:
        self.found = {name: source.read(name) for name in self.names}


def restored(store: Path, engine: ReadingEngine, *skips: Skip) -> Start:
    return restore(context(*skips), engine, FolderStore(store), Voice(Reporter(None), 0, 50))  # type: ignore[arg-type]


def test_the_run_continues_at_the_step_and_root_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 20)
    engine = ReadingEngine("optimizer/count")
    start = restored(tmp_path, engine)
    assert (start.step, start.root, int(engine.found["optimizer/count"])) == (20, checkpoint.root, 20)


def test_ranks_that_see_different_data_do_not_start(tmp_path: Path) -> None:
    engine = ReadingEngine()
    engine.exchange = lambda payload: [payload, payload.replace(b"blake3:00", b"blake3:ff")]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"^spec.data: rank 1 sees blake3:ff where rank 0 sees blake3:00; the data"):
        restored(tmp_path, engine)


def test_a_tensor_the_model_needs_and_the_checkpoint_lacks_is_a_config_error(tmp_path: Path) -> None:
    save(tmp_path, 20)
    with pytest.raises(ConfigError, match=r"^spec.model: the checkpoint of step 20 has no tensor params/other; "):
        restored(tmp_path, ReadingEngine("params/other"))


def test_a_checkpoint_that_proves_bad_while_it_is_read_is_read_over_with_the_one_before(tmp_path: Path) -> None:
    older, newer = save(tmp_path, 10), save(tmp_path, 20)
    folder = folder_of(tmp_path, newer.root)
    for shard in (folder / SHARDS).glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x99")
    engine = ReadingEngine("optimizer/count", "params/kernel", "params/bias", "optimizer/mask")
    start = restored(tmp_path, engine)
    assert (start.step, start.root, int(engine.found["optimizer/count"])) == (10, older.root, 10)
    assert (folder / QUARANTINED).exists()


def test_bytes_that_no_tensor_needs_are_checked_too(tmp_path: Path) -> None:
    older, newer = save(tmp_path, 10, world=1), save(tmp_path, 20, world=1)
    for shard in (folder_of(tmp_path, newer.root) / SHARDS).glob("*.safetensors"):
        flip(shard, 20)
    start = restored(tmp_path, ReadingEngine())
    assert (start.step, start.root, start.is_proven) == (10, older.root, True)


@pytest.mark.parametrize(
    ("level", "longest", "verified"),
    [
        ("full", 32 * 1024, "every byte verified"),
        ("full", 1, "every byte that was read verified, not known whether that is all of them"),
        ("sampled", 32 * 1024, "a sample of what was read verified"),
        ("manifest", 32 * 1024, "its manifests verified, its bytes not"),
    ],
)
def test_no_more_is_called_verified_than_was(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    level: VerifyLevel,
    longest: int,
    verified: str,
) -> None:
    monkeypatch.setattr("capstan_runtime.checkpoint.coverage.LONGEST", longest)
    committed = save(tmp_path, 20)
    at_level = context()
    at_level.run.checkpoint.verify = Verification(level=level)
    engine: Any = ReadingEngine("optimizer/count")
    told: list[Progress] = []
    reporter: Any = SimpleNamespace(send=told.append)
    start = restore(at_level, engine, FolderStore(tmp_path), Voice(reporter, 0, 50))
    assert start.is_proven == (verified == "every byte verified")
    (resumed_from,) = [each.resumed_from for each in told if each.resumed_from is not None]
    assert resumed_from.model_copy(update={"verified_at": None}) == committed, (
        "when it was committed, not when it was read"
    )
    assert (resumed_from.verified_at is not None) == start.is_proven
    assert f" s, {verified}; saved by 2 ranks at fence 1" in "".join(capsys.readouterr())


def test_what_a_batch_has_gone_into_that_is_left_out_since_is_never_resumed_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = save(tmp_path, 10), save(tmp_path, 20)
    start = restored(tmp_path, ReadingEngine(), Skip(first=12, count=3))
    assert (start.step, start.root) == (10, before.root)
    assert (folder_of(tmp_path, after.root) / QUARANTINED).exists()
    assert (
        "it was saved with other batches left out than this run leaves out before step 20 since"
        in capsys.readouterr().err
    )
