"""Restoring from the pods' memory: from the own one and from the peers', and from the store when that fails."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.choose import Choosing, choose_checkpoint
from capstan_runtime.checkpoint.claims import newest_claim
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.generations import Memory
from capstan_runtime.checkpoint.layout import COMMIT, QUARANTINED, SHARDS, new_attempt
from capstan_runtime.checkpoint.manifest import RankManifest
from capstan_runtime.checkpoint.memory import write_held
from capstan_runtime.checkpoint.peer_store import PeerStore
from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.store import ObjectMissing, StoreError
from capstan_runtime.checkpoint.verified import VerifyingReader
from capstan_runtime.checkpoint.vote import Loaded, Voters
from capstan_runtime.checkpoint.writer import Save, write_shards
from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Phase, Quarantine, Source
from capstan_runtime.supervisor.memory_tier import MemoryFiles, MemoryTier
from tests.support.checkpoints import RUN, arrays_of, facts_of, flip, save, share_of
from tests.support.training_runs import Run, free_port, losses, run_trainers

TOKEN = "the-token-of-this-job"
KEY = "a/shards/r0-0.safetensors"


def hold(folders: list[Path], step: int, *, fence: int = 1, attempt: str | None = None) -> str:
    """A save of `step` that one pod per folder holds in memory, never committed; its name."""
    facts = facts_of(step, fence, len(folders), attempt)
    for rank, folder in enumerate(folders):
        each = Save(FolderStore(folder), facts, rank)
        write_shards(each, share_of(arrays_of(step), rank, len(folders)))
        manifest = RankManifest.model_validate_json((folder / each.key(f"r{rank}.json")).read_bytes())
        write_held(folder / str(each.name), facts, manifest, f"r{rank}.json")
    return str(each.name)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a pod's memory, behind the supervisor's own handler."""
    files, port = MemoryFiles(MemoryTier(folder)), free_port()
    loop, is_up = asyncio.new_event_loop(), threading.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized
        return await files.answer(request)

    async def serve() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/memory/{key:.+}", answer, allow_head=False)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        is_up.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert is_up.wait(20)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)


@dataclass
class World:
    """What the ranks of an attempt saw, each on a thread of its own."""

    world: int
    loaded: list[Loaded | None] = field(default_factory=list)
    tensors: list[dict[str, np.ndarray]] = field(default_factory=list)
    quarantined: list[Quarantine] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loaded = [None] * self.world
        self.tensors = [{} for _ in range(self.world)]
        self._payloads: list[bytes] = [b""] * self.world
        self._barrier = threading.Barrier(self.world, timeout=30)

    def exchange(self, rank: int, payload: bytes) -> list[bytes]:
        assert len(payload) <= 64 * 1024
        self._payloads[rank] = payload
        self._barrier.wait()
        answers = list(self._payloads)
        self._barrier.wait()
        return answers

    def run(self, function: Callable[[int], Loaded | None]) -> None:
        def of_rank(rank: int) -> None:
            try:
                self.loaded[rank] = function(rank)
            except BaseException as error:
                self._barrier.abort()
                self.errors.append(error)

        threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)


def resumed(
    store: Path, folders: list[Path], peers: tuple[str, ...] = (), *, fence: int = 2, floor_step: int = 0
) -> World:
    """What as many ranks as there are folders resume from; every rank reads everything."""
    world, attempt = World(len(folders)), new_attempt(RUN)

    def of_rank(rank: int) -> Loaded | None:
        def load(opened: OpenCheckpoint, reader: VerifyingReader) -> None:
            tensors = opened.tensors(reader)
            world.tensors[rank] = {name: tensors.read(name) for name in tensors.names()}

        return choose_checkpoint(
            Choosing(
                store=FolderStore(store),
                run=RUN,
                membership=Membership(
                    fence=fence, rank=rank, world=len(folders), coordinator="127.0.0.1:1", floor_step=floor_step
                ),
                attempt=attempt,
                voters=Voters(rank, "full", lambda payload: world.exchange(rank, payload), load),
                on_quarantine=world.quarantined.append,
                on_trouble=world.troubles.append,
                memory=Memory(folders[rank], rank, peers, TOKEN),
                visible_seconds=0.2,
            )
        )

    world.run(of_rank)
    assert world.errors == []
    return world


def facts(world: World) -> list[tuple[Source, int, bool]]:
    """Of each rank: where its state is from, of which step, and whether the ranks have verified all of it."""
    return [
        (loaded.source, loaded.opened.manifest.step, loaded.is_verified)
        for loaded in world.loaded
        if loaded is not None
    ]


@pytest.fixture
def pods(tmp_path: Path) -> list[Path]:
    """The memory of two pods."""
    return [tmp_path / "pod0", tmp_path / "pod1"]


def test_a_save_that_was_never_committed_is_read_from_both_pods_and_verified(tmp_path: Path, pods: list[Path]) -> None:
    store = tmp_path / "store"
    save(store, 10)
    hold(pods, 15)
    hold(pods, 20)
    with served(pods[0]) as zero, served(pods[1]) as one:
        world = resumed(store, pods, (zero, one), floor_step=10)
    assert facts(world) == [(Source.MEMORY, 20, True)] * 2
    assert world.troubles == []
    for tensors in world.tensors:
        for name, array in arrays_of(20).items():
            np.testing.assert_array_equal(tensors[name], array)
    claim = newest_claim(FolderStore(store), RUN)
    assert claim is not None
    assert world.loaded[0] is not None
    assert (claim.resumed, claim.committed[0], len(claim.committed)) == (*[world.loaded[0].opened.root] * 2, 2)


def test_what_the_pods_hold_has_the_root_that_its_commit_would_have(tmp_path: Path, pods: list[Path]) -> None:
    attempt = new_attempt(RUN)
    committed = save(tmp_path / "store", 20, attempt=attempt, shard_bytes=1 << 29)
    hold(pods, 20, attempt=attempt)
    with served(pods[0]) as zero, served(pods[1]) as one:
        world = resumed(tmp_path / "store", pods, (zero, one))
    assert facts(world) == [(Source.MEMORY, 20, True)] * 2, "memory is quicker than the store"
    assert {each.opened.root for each in world.loaded if each is not None} == {committed.root}


def test_one_rank_reads_its_own_memory_without_any_peer(tmp_path: Path) -> None:
    pod = tmp_path / "pod"
    hold([pod], 20)
    assert facts(resumed(tmp_path / "store", [pod])) == [(Source.MEMORY, 20, True)]


def test_a_part_that_nobody_holds_any_more_sends_all_to_the_store(tmp_path: Path, pods: list[Path]) -> None:
    save(tmp_path / "store", 10)
    hold(pods, 20)
    world = resumed(tmp_path / "store", [pods[0], tmp_path / "a-new-pod"])
    assert (facts(world), world.troubles) == ([(Source.STORE, 10, True)] * 2, [])


def test_what_is_older_than_the_store_or_of_an_attempt_before_is_not_used(tmp_path: Path) -> None:
    pod, store = tmp_path / "pod", tmp_path / "store"
    hold([pod], 20, fence=1)
    save(store, 30, fence=1)
    assert facts(resumed(store, [pod])) == [(Source.STORE, 30, True)]
    hold([pod], 40, fence=1)
    save(store, 35, fence=3)
    assert facts(resumed(store, [pod], fence=4)) == [(Source.STORE, 35, True)], "fence 3 went on from elsewhere"


def test_when_the_newest_in_the_store_is_broken_what_is_in_memory_comes_before_the_one_before(tmp_path: Path) -> None:
    pod, store = tmp_path / "pod", tmp_path / "store"
    save(store, 10)
    hold([pod], 20)
    save(store, 30)
    newest = max(path for path in store.iterdir() if path.name.startswith("0000"))
    shard = newest / SHARDS / "r0-0.safetensors"
    flip(shard, shard.stat().st_size - 1)
    world = resumed(store, [pod])
    assert facts(world) == [(Source.MEMORY, 20, True)]
    assert [each.step for each in world.quarantined] == [30]


def test_wrong_bytes_in_memory_send_all_to_the_store_and_accuse_no_checkpoint(tmp_path: Path, pods: list[Path]) -> None:
    store = tmp_path / "store"
    save(store, 10)
    name = hold(pods, 20)
    shard = pods[1] / name / SHARDS / "r1-0.safetensors"
    flip(shard, shard.stat().st_size - 1)
    with served(pods[0]) as zero, served(pods[1]) as one:
        world = resumed(store, pods, (zero, one))
    assert facts(world) == [(Source.STORE, 10, True)] * 2
    assert world.quarantined == []
    assert list(store.rglob(QUARANTINED)) == []
    assert [text.split(": ", 1)[0] for text in world.troubles] == [
        "the save of step 20 in the pods' memory is not used"
    ] * 2
    assert "r1-0.safetensors: the bytes of params/kernel from" in world.troubles[0]


def test_a_peer_that_is_dead_sends_all_to_the_store(tmp_path: Path, pods: list[Path]) -> None:
    save(tmp_path / "store", 10)
    hold(pods, 20)
    with served(pods[0]) as zero:
        world = resumed(tmp_path / "store", pods, (zero, f"127.0.0.1:{free_port()}"))
    assert facts(world) == [(Source.STORE, 10, True)] * 2
    assert "Connection refused" in world.troubles[0]


def test_memory_that_is_lost_before_anything_was_committed_is_a_start_from_step_0(
    tmp_path: Path, pods: list[Path]
) -> None:
    name = hold(pods, 20)
    shard = pods[0] / name / SHARDS / "r0-0.safetensors"
    flip(shard, shard.stat().st_size - 1)
    with served(pods[0]) as zero, served(pods[1]) as one:
        world = resumed(tmp_path / "store", pods, (zero, one))
    assert (world.loaded, len(world.troubles)) == ([None, None], 2)


@contextmanager
def peer(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A peer that does `answer` to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        has_ended = threading.Event()

        def serve() -> None:
            while not has_ended.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            has_ended.set()
            thread.join(20)


HEAD = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/10\r\n\r\n"


def hang(connection: socket.socket) -> None:
    time.sleep(0.5)


def drip(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    try:
        for _ in range(8):
            time.sleep(0.1)
            connection.sendall(b"x")
    except OSError:
        return  # the other side has given up, as it should


def break_off(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"12345")


def talk_nonsense(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def refuse(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")


def send_all(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1234567890")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (hang, "timed out"),
        (drip, "not read within 0.3 s"),
        (break_off, "broke off after 5 bytes"),
        (talk_nonsense, "SSH-2.0"),
        (refuse, "status 503"),
        (send_all, "status 200"),
    ],
)
def test_a_peer_that_does_not_answer_as_it_should_is_a_store_error_in_time(
    answer: Callable[[socket.socket], None], problem: str
) -> None:
    with peer(answer) as address:
        store = PeerStore(address, TOKEN, stall_seconds=0.25, call_seconds=0.3)
        with pytest.raises(StoreError, match=rf"^memory of {address}: .*{problem}"):
            store.read_into(KEY, 0, memoryview(bytearray(10)))


def test_a_peers_files_are_read_like_those_of_a_store(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    FolderStore(tmp_path).put(KEY, [data])
    FolderStore(tmp_path).put("a/empty", [])
    with served(tmp_path) as address:
        store = PeerStore(address, TOKEN)
        assert (store.get(KEY), store.size(KEY)) == (data, len(data))
        assert (store.get("a/empty"), store.size("a/empty"), store.size("a/b")) == (b"", 0, None)
        target = bytearray(3_000_000)
        store.read_into(KEY, 12345, memoryview(target))
        assert bytes(target) == data[12345 : 12345 + len(target)]
        with pytest.raises(ObjectMissing, match=rf"^{KEY}: ends before byte {len(data) + 1} in the memory of"):
            store.read_into(KEY, len(data) - 4, memoryview(bytearray(5)))
        with pytest.raises(ObjectMissing, match=rf"^{KEY}: ends before"):
            store.read_into(KEY, len(data), memoryview(bytearray(1)))
        with pytest.raises(ObjectMissing, match=r"^a/b: is not in the memory of"):
            store.get("a/b")
        with pytest.raises(StoreError, match="status 401"):
            PeerStore(address, "another token").get(KEY)


def test_a_killed_trainer_goes_on_from_its_pods_memory(tmp_path: Path) -> None:
    run, log = Run(tmp_path), tmp_path / "steps.log"
    memory: dict[str, Any] = {env.MEMORY: str(tmp_path / "memory"), "STEP_LOG": str(log), "AWAIT_SAVES": "1"}
    (tmp_path / "memory").mkdir()
    (killed,) = run_trainers(run, world=1, FAULT_KIND="kill", FAULT_STEP="27", **memory)
    assert killed.code == -signal.SIGKILL
    (ended,) = run_trainers(run, world=1, fence=2, floor_step=20, **memory)
    assert ended.code == 0, ended.output
    (restored,) = [line.restored for line in ended.progress if line.restored is not None]
    (resumed_from,) = [line.resumed_from for line in ended.progress if line.resumed_from is not None]
    assert (restored.source, resumed_from.step) == (Source.MEMORY, 20)
    assert restored.bytes > 0
    assert "from the pods' memory in " in ended.output
    assert [step for step, _ in losses(log)] == [*range(1, 28), *range(21, 31)]


def test_a_last_step_that_was_never_committed_is_saved_before_the_run_is_called_a_success(tmp_path: Path) -> None:
    run, log = Run(tmp_path), tmp_path / "steps.log"
    memory: dict[str, Any] = {env.MEMORY: str(tmp_path / "memory"), "STEP_LOG": str(log), "AWAIT_SAVES": "1"}
    (tmp_path / "memory").mkdir()
    run_trainers(run, world=1, **memory)
    last = next(path for path in run.store.iterdir() if path.name.startswith(f"{30:012d}"))
    (last / COMMIT).unlink()  # as a trainer leaves it that is killed when all is staged
    (ended,) = run_trainers(run, world=1, fence=2, floor_step=20, **memory)
    assert ended.code == 0, ended.output
    assert [line.restored.source for line in ended.progress if line.restored] == [Source.MEMORY]
    assert [step for step, _ in losses(log)] == list(range(1, 31)), "no step is done again"
    listing = list_candidates(FolderStore(run.store), "3f1c-uid")
    newest = listing.candidates[0]
    assert (newest.name.step, newest.name.fence, newest.problem) == (30, 2, None)
    assert [line.phase for line in ended.progress if line.phase][-1] is Phase.SUCCEEDED


def test_what_was_in_memory_alone_is_owed_to_the_store_at_the_first_agreement(tmp_path: Path) -> None:
    run = Run(tmp_path)
    memory: dict[str, Any] = {env.MEMORY: str(tmp_path / "memory"), "AWAIT_SAVES": "1"}
    (tmp_path / "memory").mkdir()
    (killed,) = run_trainers(run, world=1, FAULT_KIND="kill", FAULT_STEP="23", **memory)
    assert killed.code == -signal.SIGKILL
    last = next(path for path in run.store.iterdir() if path.name.startswith(f"{20:012d}"))
    (last / COMMIT).unlink()  # as a trainer leaves it that is killed when all is staged
    (ended,) = run_trainers(run, world=1, fence=2, floor_step=10, **memory)
    assert [line.restored.source for line in ended.progress if line.restored] == [Source.MEMORY]
    found = [
        (each.name.step, each.name.fence) for each in list_candidates(FolderStore(run.store), "3f1c-uid").candidates
    ]
    assert found == [(30, 2), (21, 2), (10, 1)]


def test_what_is_in_the_store_as_well_is_not_saved_once_more(tmp_path: Path) -> None:
    run = Run(tmp_path)
    memory: dict[str, Any] = {env.MEMORY: str(tmp_path / "memory"), "AWAIT_SAVES": "1"}
    (tmp_path / "memory").mkdir()
    run_trainers(run, world=1, FAULT_KIND="kill", FAULT_STEP="23", **memory)
    (ended,) = run_trainers(run, world=1, fence=2, floor_step=20, **memory)
    assert [line.restored.source for line in ended.progress if line.restored] == [Source.MEMORY]
    found = [each.name.step for each in list_candidates(FolderStore(run.store), "3f1c-uid").candidates]
    assert found == [30, 20, 10]
