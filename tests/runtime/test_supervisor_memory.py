"""`GET /memory/<key>`: what a pod shows its peers of its memory, and what it does not."""

import http.client
import os
import threading
from pathlib import Path

import pytest

from capstan_runtime.checkpoint.peer_store import PeerStore
from capstan_runtime.checkpoint.store import StoreError
from capstan_runtime.contract import env
from capstan_runtime.contract.state import Phase
from capstan_runtime.supervisor.memory_tier import MemoryTier, NoSuchFile
from tests.support.training_runs import FIRST_STEP, TOKEN, Pod, Run, StartPod, alone, scripted

GENERATION = "000000000010.1.a"
BYTES = bytes(range(256)) * 40_000


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    folder = tmp_path / "memory"
    (folder / GENERATION / "shards").mkdir(parents=True)
    (folder / GENERATION / "shards" / "r0-0.safetensors").write_bytes(BYTES)
    (folder / GENERATION / "empty").touch()
    return folder


def get(
    pod: Pod, key: str, token: str = TOKEN, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(pod.address, env.SUPERVISOR_PORT, timeout=10)
    try:
        connection.putrequest(method, f"/memory/{key}", skip_accept_encoding=True)
        for name, value in {"Authorization": f"Bearer {token}", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_files_and_ranges_of_them_are_sent_to_who_has_the_token(
    tmp_path: Path, memory: Path, start_pod: StartPod
) -> None:
    pod = start_pod(Run(tmp_path), **{env.MEMORY: str(memory)})
    key, size = f"{GENERATION}/shards/r0-0.safetensors", len(BYTES)
    status, headers, body = get(pod, key)
    assert (status, headers["content-length"], headers["accept-ranges"]) == (200, str(size), "bytes")
    assert body == BYTES
    for wanted, first, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=1000-4999", 1000, 5000),
        (f"bytes={size - 1}-", size - 1, size),
        (f"bytes=7-{size + 50}", 7, size),
    ):
        status, headers, body = get(pod, key, Range=wanted)
        assert (status, headers["content-range"]) == (206, f"bytes {first}-{end - 1}/{size}")
        assert body == BYTES[first:end]
    for wanted in (f"bytes={size}-", "bytes=5-4", "bytes=-5", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b"):
        status, headers, _ = get(pod, key, Range=wanted)
        assert (status, headers.get("content-range")) == (416, f"bytes */{size}"), wanted
    assert get(pod, f"{GENERATION}/empty")[::2] == (200, b"")
    assert get(pod, key, token="wrong")[0] == 401
    for method in ("PUT", "DELETE", "POST", "HEAD"):
        assert get(pod, key, method=method)[0] == 405
    (memory / GENERATION / "empty").unlink()
    assert get(pod, f"{GENERATION}/empty")[0] == 404


def test_a_peer_reads_what_the_pod_holds(tmp_path: Path, memory: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path), **{env.MEMORY: str(memory)})
    key = f"{GENERATION}/shards/r0-0.safetensors"
    peer = PeerStore(f"{pod.address}:{env.SUPERVISOR_PORT}", TOKEN)
    assert (peer.size(key), peer.size(f"{GENERATION}/empty"), peer.size("missing")) == (len(BYTES), 0, None)
    assert (peer.get(key), peer.get(f"{GENERATION}/empty")) == (BYTES, b"")
    target = bytearray(100_000)
    peer.read_into(key, 777, memoryview(target))
    assert target == BYTES[777:100_777]
    with pytest.raises(StoreError, match="401"):
        PeerStore(f"{pod.address}:{env.SUPERVISOR_PORT}", "wrong").size(key)


def test_nothing_outside_the_folder_can_be_read(tmp_path: Path, memory: Path, start_pod: StartPod) -> None:
    (tmp_path / "secret").write_text("secret")
    (memory / "link").symlink_to(tmp_path / "secret")
    (memory / "folder-link").symlink_to(tmp_path)
    (memory / ".part").write_text("half")
    os.mkfifo(memory / "pipe")
    pod = start_pod(Run(tmp_path), **{env.MEMORY: str(memory)})
    for key in (
        "../secret",
        "%2e%2e/secret",
        "..%2fsecret",
        f"{GENERATION}/../../secret",
        f"/{tmp_path}/secret",
        "%2fetc/passwd",
        "link",
        "folder-link/secret",
        ".part",
        "pipe",
        GENERATION,
        f"{GENERATION}/",
        f"{GENERATION}//empty",
        "a%00b",
        "x" * 600,
        "",
    ):
        status, _, body = get(pod, key)
        assert (status, body == b"secret") == (404, False), key


def test_more_peers_than_may_read_at_once_wait_their_turn(tmp_path: Path, memory: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path), **{env.MEMORY: str(memory)})
    found: list[bytes] = []
    readers = [
        threading.Thread(target=lambda: found.append(get(pod, f"{GENERATION}/shards/r0-0.safetensors")[2]))
        for _ in range(12)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert found == [BYTES] * 12


def test_a_pod_without_a_memory_tier_has_no_files(tmp_path: Path, memory: Path, start_pod: StartPod) -> None:
    key = f"{GENERATION}/shards/r0-0.safetensors"
    assert get(start_pod(Run(tmp_path / "a")), key)[0] == 404
    unused = start_pod(Run(tmp_path / "b", overrides={"memoryTier": False}), **{env.MEMORY: str(memory)})
    assert get(unused, key)[0] == 404


def test_a_run_that_has_succeeded_leaves_its_memory_empty_and_any_other_as_it_is(
    tmp_path: Path, memory: Path, start_pod: StartPod
) -> None:
    (memory / "link").symlink_to(tmp_path)
    done = ({"signal": 9, "fence": 1}, {"report": {"phase": "Succeeded"}}, {"exit": 0})
    pod = start_pod(Run(tmp_path), **scripted(*FIRST_STEP, *done), **{env.MEMORY: str(memory)})
    pod.put(alone(1, pod))
    pod.wait_for(Phase.EXITED)
    assert (memory / GENERATION / "empty").exists()
    pod.put(alone(2, pod))
    assert pod.wait_for_end()[0] == 0
    assert list(memory.iterdir()) == []
    assert (tmp_path / "run.json").exists(), "links are not followed"


def test_a_missing_folder_holds_no_files(tmp_path: Path) -> None:
    tier = MemoryTier(tmp_path / "nowhere")
    with pytest.raises(NoSuchFile, match="a/b: No such file"), tier.open("a/b"):
        pass
