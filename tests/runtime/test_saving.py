"""Saving in the background: one answer for all ranks, and a digest that does not depend on how the state was cut."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_runtime.agreement import CARRY_ON, Agreement, Verdict, Wishes
from capstan_runtime.checkpoint import background
from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.claims import write_claim
from capstan_runtime.checkpoint.digest import LEAF_BYTES, Buffer, digest_of, name_of
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, SHARDS, new_attempt
from capstan_runtime.checkpoint.manifest import Claim, Manifest, TensorEntry, logical_root
from capstan_runtime.checkpoint.saver import Identity, Outcome, Saver
from capstan_runtime.checkpoint.shards import hash_shard, stage_shards
from capstan_runtime.checkpoint.staging import StagingArea
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.whole import NotTiled, whole_tensors
from capstan_runtime.checkpoint.writer import Save, SaveFailed, commit, manifest_of, write_shards
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.engine import LocalTensor
from capstan_runtime.errors import StoreUnavailable
from tests.support.checkpoints import (
    RUN,
    arrays_of,
    choose,
    facts_of,
    flip,
    retention,
    save,
    share_of,
    steps_in,
    trainer_state,
)
from tests.support.rank_threads import Exchange, run_rank_threads

LEAF_FLOATS = LEAF_BYTES // 4


def saver(
    store: Path | Store,
    exchange: Exchange = lambda payload: [payload],
    rank: int = 0,
    world: int = 1,
    attempt: str = "",
    deadline_seconds: float = 10.0,
    fence: int = 1,
    signing_key: Path | None = None,
) -> Saver:
    store = FolderStore(store) if isinstance(store, Path) else store
    identity = Identity(
        store, "default/test", RUN, "flax", fence, attempt or new_attempt(RUN), rank, world, signing_key
    )
    area = StagingArea(None, RUN, rank, pytest.fail)
    return Saver(identity, None, exchange, deadline_seconds, area, lambda staged: None, pytest.fail)


def begin(each: Saver, step: int, rank: int = 0, world: int = 1) -> None:
    each.begin(trainer_state(step), share_of(arrays_of(step), rank, world), {})


def heard(each: Saver, patience_seconds: float = 10.0) -> Outcome:
    """The outcome on a world of one, without blocking in `settle`."""
    give_up_at = time.monotonic() + patience_seconds
    while (outcome := each.hear([each.report()])) is None:
        assert time.monotonic() < give_up_at, "no outcome"
        time.sleep(0.005)
    return outcome


class HeldUp(FolderStore):
    """Waits with each write until it is let go; notes the niceness of who writes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go = threading.Event()
        self.niceness: set[int] = set()

    def put(self, key: str, pieces: Iterable[Buffer]) -> None:
        self.niceness.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        self.go.wait(20)
        super().put(key, pieces)


class Full(FolderStore):
    """Has no room for the shards of one rank at some steps."""

    def __init__(self, folder: Path, rank: int, steps: set[int]) -> None:
        super().__init__(folder)
        self._rank = rank
        self._steps = {f"{step:012d}" for step in steps}

    def put(self, key: str, pieces: Iterable[Buffer]) -> None:
        if key[:12] in self._steps and f"{SHARDS}/r{self._rank}-" in key:
            next(iter(pieces))
            raise OSError(errno.ENOSPC, "No space left on device")
        super().put(key, pieces)


def test_the_state_is_staged_when_begin_returns_and_committed_later(tmp_path: Path) -> None:
    store = HeldUp(tmp_path)
    each = saver(store)
    state = {"params/w": np.arange(10, dtype=np.float32)}
    each.begin(trainer_state(7), share_of(state, 0, 1), {"accuracy": 0.5})
    state["params/w"][:] = -1
    assert (each.is_open, each.hear([each.report()])) == (True, None)
    store.go.set()
    outcome = heard(each)
    opened = choose(tmp_path)
    assert opened is not None
    assert outcome.checkpoint == Checkpoint(
        step=7, root=opened.root, at=opened.manifest.created_at, logical=opened.manifest.logical
    )
    assert (outcome.step, outcome.problem, each.is_open) == (7, "", False)
    assert opened.manifest.metrics == {"accuracy": 0.5}
    assert opened.tensors().read("params/w").tolist() == list(range(10)), "what the next steps did to it is not in it"
    assert {niceness - os.getpriority(os.PRIO_PROCESS, 0) for niceness in store.niceness} == {10}


def test_each_checkpoint_names_the_one_before_as_its_parent(tmp_path: Path) -> None:
    each = saver(tmp_path)
    roots = [each.save(trainer_state(step), share_of(arrays_of(step), 0, 1)).root for step in (1, 2, 3)]
    listing = list_candidates(FolderStore(tmp_path), RUN).candidates
    manifests = [Manifest.model_validate_json((tmp_path / str(one.name) / MANIFEST).read_bytes()) for one in listing]
    assert [manifest.parent for manifest in manifests] == [roots[1], roots[0], None]


class Saves:
    """A saver as the agreement sees it; a save is due at some steps."""

    def __init__(self, each: Saver, due: set[int]) -> None:
        self._saver = each
        self._due = due
        self.outcomes: list[Outcome] = []

    def is_due_by_step(self, done: int) -> bool:
        return done in self._due

    def is_due_by_time(self) -> bool:
        return False

    def report(self) -> str:
        return self._saver.report() if self._saver.is_open else ""

    def hear(self, reports: list[str]) -> bool:
        outcome = self._saver.hear(reports)
        self.outcomes += [outcome] if outcome else []
        return not self._saver.is_open


def test_a_save_that_is_due_while_any_rank_is_busy_waits_for_a_later_agreement_and_no_step_for_it(
    tmp_path: Path,
) -> None:
    """Rank 1's store is slow. Saves are due at steps 2 and 4; it is let go after step 5."""
    attempt = new_attempt(RUN)
    slow = HeldUp(tmp_path)

    def main(rank: int, exchange: Exchange) -> tuple[list[int], list[int]]:
        store = slow if rank == 1 else FolderStore(tmp_path)
        each = saver(store, exchange, rank, 2, attempt)
        saves = Saves(each, {2, 4})
        now = [0.0]
        agreement = Agreement(exchange, Wishes(stop=lambda: False), saves, lambda: now[0], 0)
        saved = []
        done = 0
        while len(saved) < 2 and done < 1000:
            done += 1
            now[0] += 0.5
            if done >= 6:
                slow.go.set()
                time.sleep(0.02)
            if agreement.after(done).save:
                begin(each, done, rank, 2)
                saved.append(done)
        outcome = each.settle()
        return saved, [one.step for one in [*saves.outcomes, outcome] if one is not None and one.checkpoint]

    first, second = run_rank_threads(2, main)
    assert first == second
    saved, committed = first
    assert saved[0] == 2
    assert len(saved) == 2
    assert saved[1] >= 6, "owed from step 4 on"
    assert committed == saved
    assert steps_in(tmp_path) == sorted(saved, reverse=True)


def test_a_due_save_is_an_agreement_point_of_its_own(tmp_path: Path) -> None:
    exchanged: list[int] = []
    done = 0

    def exchange(payload: bytes) -> list[bytes]:
        exchanged.append(done)
        return [payload]

    saves = Saves(saver(tmp_path), {5, 20})
    agreement = Agreement(exchange, Wishes(stop=lambda: False), saves, lambda: 0.0, 0)
    verdicts = []
    for done in range(1, 30):
        verdicts.append(agreement.after(done))
    assert exchanged == [1, 5, 20]
    assert [number + 1 for number, verdict in enumerate(verdicts) if verdict != CARRY_ON] == [5, 20]
    assert verdicts[4] == Verdict(save=True)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_when_one_rank_cannot_write_no_rank_has_a_checkpoint_and_nothing_is_left(tmp_path: Path, failing: int) -> None:
    attempt = new_attempt(RUN)

    def main(rank: int, exchange: Exchange) -> list[Any]:
        each = saver(Full(tmp_path, failing, {20}), exchange, rank, 3, attempt)
        results: list[Any] = []
        for step in (10, 20, 30):
            begin(each, step, rank, 3)
            outcome = each.settle()
            assert outcome is not None
            results.append((outcome.step, outcome.checkpoint and outcome.checkpoint.root, outcome.problem))
        return results

    answers = run_rank_threads(3, main)
    assert answers[0] == answers[1] == answers[2]
    assert [step for step, root, _ in answers[0] if root] == [10, 30]
    assert answers[0][1] == (20, None, f"step 20, rank {failing}: [Errno {errno.ENOSPC}] No space left on device")
    assert steps_in(tmp_path) == [30, 10]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(f"{20:012d}")] == []


def test_a_rank_that_has_no_memory_to_stage_fails_the_save_after_it_has_taken_part(tmp_path: Path) -> None:
    exported = []

    def tensors() -> Iterator[LocalTensor]:
        for tensor in share_of(arrays_of(1), 0, 1):
            yield tensor
            exported.append(tensor.name)

    each = saver(tmp_path)
    each._staging.allocate = lambda index, size: (_ for _ in ()).throw(OSError(errno.ENOMEM, "no memory"))  # type: ignore[method-assign]
    with pytest.raises(SaveFailed, match=r"^step 1, rank 0: no memory to stage the state: \[Errno 12\] no memory$"):
        each.save(trainer_state(1), tensors())
    assert len(exported) == len(arrays_of(1)), "exporting is collective: it was gone through to the end"


def test_a_newer_attempt_ends_the_run_on_every_rank(tmp_path: Path) -> None:
    attempt = new_attempt(RUN)
    claim = Claim(run=RUN, fence=2, attempt=new_attempt(RUN), resumed=None, committed=())
    write_claim(FolderStore(tmp_path), claim)

    def main(rank: int, exchange: Exchange) -> None:
        each = saver(tmp_path, exchange, rank, 2, attempt)
        begin(each, 5, rank, 2)
        each.settle()

    errors = run_rank_threads(2, main)
    assert [type(error) for error in errors] == [StoreUnavailable] * 2
    assert str(errors[0]) == str(errors[1]) == "step 5: fence 2 has taken over; fence 1 may not commit"
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize("is_seen", [False, True])
def test_an_attempt_that_is_replaced_while_it_commits_has_committed_what_the_newer_one_found(
    tmp_path: Path, is_seen: bool
) -> None:
    class Replaced(FolderStore):
        def put_new(self, key: str, data: bytes) -> bool:
            is_new = super().put_new(key, data) if is_seen else True
            choose(tmp_path, fence=2)
            retention(tmp_path, 2, [], fence=2).sweep()
            return is_new and (is_seen or super().put_new(key, data))

    each = saver(Replaced(tmp_path))
    begin(each, 5)
    if is_seen:
        outcome = each.settle()
        assert outcome is not None
        assert outcome.checkpoint is not None
        assert steps_in(tmp_path) == [5]
    else:
        with pytest.raises(StoreUnavailable, match="step 5: fence 2 has taken over; fence 1 may not commit"):
            each.settle()
        assert list(tmp_path.rglob(COMMIT)) == []
        assert choose(tmp_path, fence=3) is None, "nothing is left that looks like a broken checkpoint"


def test_a_store_that_never_answers_fails_the_save_and_the_next_and_is_used_again_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_GRACE_SECONDS", 0.1)
    store = HeldUp(tmp_path)
    each = saver(store, deadline_seconds=0.2)
    begin(each, 1)
    stuck = each.settle()
    assert stuck is not None
    assert (stuck.checkpoint, stuck.problem) == (None, f"step 1, rank 0: {tmp_path} did not answer within 0.2 s")
    begin(each, 2)
    second = each.settle()
    assert second is not None
    assert second.problem == "step 2, rank 0: the save of step 1 is stuck in the store"
    store.go.set()
    give_up_at = time.monotonic() + 10
    while each.is_stuck:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    assert each.save(trainer_state(3), share_of(arrays_of(3), 0, 1)).step == 3
    assert steps_in(tmp_path) == [3], "what came loose was not committed any more"


def test_a_commit_that_arrives_after_the_save_counted_as_failed_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(FolderStore):
        go = threading.Event()

        def put_new(self, key: str, data: bytes) -> bool:
            self.go.wait(20)
            return super().put_new(key, data)

    monkeypatch.setattr(background, "_GRACE_SECONDS", 0.1)
    store = Late(tmp_path)
    each = saver(store, deadline_seconds=0.5)
    begin(each, 1)
    outcome = each.settle()
    assert outcome is not None
    assert (outcome.checkpoint, each.is_stuck) == (None, True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(f"{1:012d}")] == []
    store.go.set()
    give_up_at = time.monotonic() + 10
    while any(thread.name == "save 1" for thread in threading.enumerate()):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    assert list(tmp_path.rglob(COMMIT)) == [], "nobody finds a commit of which nothing else is left"
    assert each.save(trainer_state(2), share_of(arrays_of(2), 0, 1)).step == 2


def test_a_slow_store_fails_a_save_at_its_deadline(tmp_path: Path) -> None:
    class Slow(FolderStore):
        def put(self, key: str, pieces: Iterable[Buffer]) -> None:
            time.sleep(0.3)
            super().put(key, pieces)

    with pytest.raises(SaveFailed, match=r"^step 1, rank 0: not written within 0.2 s$"):
        saver(Slow(tmp_path), deadline_seconds=0.2).save(trainer_state(1), share_of(arrays_of(1), 0, 1))


def test_a_signed_run_signs_every_manifest_and_refuses_to_begin_without_a_key(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from capstan_runtime.checkpoint.layout import SIGNATURE
    from capstan_runtime.checkpoint.signing import check_signature
    from capstan_runtime.errors import ConfigError

    key = ec.generate_private_key(ec.SECP256R1())
    private = tmp_path / "key.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    store = tmp_path / "store"
    saver(store, signing_key=private).save(trainer_state(1), share_of(arrays_of(1), 0, 1))
    folder = store / str(list_candidates(FolderStore(store), RUN).candidates[0].name)
    check_signature((folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes(), public.decode())
    with pytest.raises(ConfigError, match="CAPSTAN_SIGNING_KEY"):
        saver(store, signing_key=tmp_path / "none.pem")


# --- what the digests say ---------------------------------------------------------------------------------------------


@cache
def large_arrays() -> dict[str, np.ndarray]:
    """Several leaves in one tensor, one leaf and a bit, less than a leaf, a scalar, nothing."""
    random = np.random.default_rng(5)
    return {
        "params/large": random.integers(0, 255, 2 * LEAF_BYTES + 40, np.uint8).view(np.float32),
        "params/two": random.integers(0, 255, LEAF_BYTES + 2, np.uint8).view(np.float16).reshape(-1, 1),
        "params/small": random.normal(size=(7, 3)).astype(np.float64),
        "optimizer/count": np.array(3, np.int64),
        "params/empty": np.zeros((0, 3), np.float32),
    }


def expected_logical() -> str:
    """By the definition alone."""
    entries = []
    for name, array in large_arrays().items():
        data = array.tobytes()
        leaves = [digest_of(data[at : at + LEAF_BYTES]) for at in range(0, len(data), LEAF_BYTES)]
        dtype = {"float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64"}[array.dtype.name]
        digest = name_of(digest_of(b"".join(leaves)))
        entries.append(TensorEntry(name=name, dtype=dtype, shape=array.shape, digest=digest))
    return logical_root(entries)


@settings(max_examples=12)
@given(data=st.data(), world=st.integers(1, 5))
def test_the_logical_digest_is_the_state_s_however_it_was_cut_and_the_root_the_checkpoint_s(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, world: int
) -> None:
    shares: list[list[LocalTensor]] = [[] for _ in range(world)]
    for name, array in large_arrays().items():
        flat = array.reshape(-1)
        near = [cut for cut in (LEAF_FLOATS - 1, LEAF_FLOATS, LEAF_FLOATS + 1) if cut <= flat.size] or [0]
        place = st.one_of(st.integers(0, flat.size), st.sampled_from(near))
        cuts = [0, *sorted(data.draw(st.lists(place, max_size=4))), flat.size]
        for start, stop in pairwise(cuts):
            rank = data.draw(st.integers(0, world - 1))
            if start < stop or (flat.size == 0 and stop == 0 and not any(t.name == name for s in shares for t in s)):
                shares[rank].append(LocalTensor(name, array.shape, start, flat[start:stop]))
    store = FolderStore(tmp_path_factory.mktemp("store"))
    facts = facts_of(1, world=world)
    shard_bytes = data.draw(st.sampled_from([LEAF_BYTES // 3, 3 * LEAF_BYTES // 2, 1 << 30]))
    for rank, share in enumerate(shares):
        write_shards(Save(store, facts, rank), iter(share), shard_bytes)
    checkpoint = commit(Save(store, facts, 0), deadline_seconds=1.0)
    assert checkpoint.logical == expected_logical()
    opened = choose(store)
    assert opened is not None
    assert (opened.root, opened.manifest.logical) == (checkpoint.root, checkpoint.logical)
    for name, array in large_arrays().items():
        assert opened.tensors().read(name).tobytes() == array.tobytes()


def test_equal_states_of_different_worlds_have_one_logical_digest_and_roots_of_their_own(tmp_path: Path) -> None:
    saves = [save(tmp_path, step, arrays=arrays_of(1), world=step) for step in (1, 2, 3, 4)]
    other = save(tmp_path, 9, arrays=arrays_of(2))
    assert len({each.logical for each in saves}) == 1
    assert len({each.root for each in saves}) == 4
    assert other.logical != saves[0].logical


def test_a_leaf_that_two_ranks_share_is_read_back_and_must_be_what_was_written(tmp_path: Path) -> None:
    facts = facts_of(1, world=2)
    saves = [Save(FolderStore(tmp_path), facts, rank) for rank in range(2)]
    array = np.arange(1000, dtype=np.float32)
    for rank, part in enumerate((array[:300], array[300:])):
        write_shards(saves[rank], iter([LocalTensor("w", (1000,), 300 * rank, part)]))
    shard = tmp_path / saves[1].key("r1-0.safetensors")
    flip(shard, shard.stat().st_size - 1)
    with pytest.raises(
        SaveFailed, match=r"^step 1: r1-0.safetensors: the bytes of w from \d+ on are not those that were saved$"
    ):
        commit(saves[0], deadline_seconds=1.0)
    assert not (tmp_path / str(facts.step) / COMMIT).exists()


def test_a_manifest_with_too_few_digests_is_refused() -> None:
    save_of = Save(FolderStore(Path("/nowhere")), facts_of(1), 0)
    tensors = iter([LocalTensor("w", (4,), 0, np.zeros(4, np.float32))])
    shards = stage_shards(0, tensors, lambda index, size: memoryview(bytearray(size)))
    manifest = manifest_of(save_of, shards)
    assert hash_shard(shards[0]) == (manifest.files[0], list(manifest.chunks))
    short = manifest.model_copy(update={"chunks": (manifest.chunks[0].model_copy(update={"leaves": ""}),)})
    with pytest.raises(NotTiled, match=r"^w: 0 digests for 1 pieces in r0-0.safetensors$"):
        whole_tensors([short])


# --- killed at any moment ---------------------------------------------------------------------------------------------

_ENDLESS = """
import sys, pathlib, itertools
from tests.runtime.test_saving import saver, trainer_state, share_of, killed_state
each = saver(pathlib.Path(sys.argv[1]))
for step in itertools.count(1):
    checkpoint = each.save(trainer_state(step), share_of(killed_state(step), 0, 1))
    print(step, checkpoint.root, flush=True)
"""


def killed_state(step: int) -> dict[str, np.ndarray]:
    return {"params/w": np.full(3 * LEAF_FLOATS // 2, step, np.float32), "optimizer/count": np.array(step, np.int64)}


@pytest.mark.parametrize("seed", range(3))
def test_a_process_killed_in_the_middle_of_its_saves_leaves_its_last_commit(tmp_path: Path, seed: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        assert first.startswith("1 blake3:")
        time.sleep(np.random.default_rng(seed).uniform(0, 0.2))
    finally:
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
    told_step, told_root = (first + rest).splitlines()[-1].split()
    opened = choose(tmp_path)
    assert opened is not None
    assert opened.manifest.step in (int(told_step), int(told_step) + 1), "the last that was told, or one more"
    if opened.manifest.step == int(told_step):
        assert opened.root == told_root
    assert (opened.tensors().read("params/w") == opened.manifest.step).all()
