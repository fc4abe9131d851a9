"""How fast the embedded API server is: start, memory, pod creations, watch delivery.

The client runs in this process (aiohttp + orjson), the server in one of its own.
"""

import asyncio
import base64
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
import psutil
import yaml

from benchmarks.report import Figure

COMMAND = "python -m benchmarks apiserver"
READY_SECONDS = 30.0
AT_ONCE = 32
UPDATE_PAUSE_SECONDS = 0.005  # about 100-200 updates a second: a busy cluster, not a saturated server


def pod(number: int) -> bytes:
    """About 4 KB, as an operator writes them."""
    env = [{"name": f"SETTING_{at}", "value": f"{at:064d}"} for at in range(24)]
    container = {"name": "main", "image": "example.com/trainer:1", "command": ["run"], "env": env}
    labels = {"app": "bench", "job": f"job-{number // 8}", "rank": str(number % 8)}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{number}", "labels": labels},
        "spec": {"containers": [container]},
    }
    return orjson.dumps(body)


class Server:
    """One server process and how to reach it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started_seconds = 0.0
        self.url = ""
        self.token = ""
        self.tls = ssl.create_default_context()
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def start(self) -> None:
        begun = time.monotonic()
        command = [sys.executable, "-m", "capstan_local", "--home", str(self.home)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the server did not start")
        self.started_seconds = time.monotonic() - begun
        config = yaml.safe_load((self.home / "kubeconfig").read_text())
        cluster = config["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.url, self.token = cluster["server"], config["users"][0]["user"]["token"]
        self.tls = ssl.create_default_context(cadata=authority)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=READY_SECONDS)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connector = aiohttp.TCPConnector(ssl=self.tls, limit=0)
        async with aiohttp.ClientSession(self.url, headers=headers, connector=connector) as session:
            yield session


async def create_pods(session: aiohttp.ClientSession, count: int) -> float:
    """Pods a second."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            async with session.post("/api/v1/namespaces/default/pods", data=pod(number)) as answer:
                if answer.status != 201:
                    raise RuntimeError(await answer.text())
                await answer.read()

    begun = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return count / (time.monotonic() - begun)


async def watch_delays(session: aiohttp.ClientSession, updates: int) -> list[float]:
    """Milliseconds from sending an update to seeing its event, one update after the other."""
    sent: dict[str, float] = {}
    delays: list[float] = []
    seen = asyncio.Event()
    async with session.get("/api/v1/namespaces/default/pods?limit=1") as answer:
        version = orjson.loads(await answer.read())["metadata"]["resourceVersion"]
    path = f"/api/v1/pods?watch=true&resourceVersion={version}&labelSelector=app%3Dbench"
    timeout = aiohttp.ClientTimeout(total=None)

    async def follow() -> None:
        async with session.get(path, timeout=timeout) as stream:
            async for line in stream.content:
                marker = orjson.loads(line)["object"]["metadata"].get("annotations", {}).get("marker", "")
                if marker in sent:
                    delays.append((time.monotonic() - sent.pop(marker)) * 1000)
                    if len(delays) == updates:
                        seen.set()

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.2)
    headers = {"Content-Type": "application/merge-patch+json"}
    for at in range(updates):
        marker = str(at)
        body = orjson.dumps({"metadata": {"annotations": {"marker": marker}}})
        sent[marker] = time.monotonic()
        async with session.patch(
            f"/api/v1/namespaces/default/pods/pod-{at % 100}", data=body, headers=headers
        ) as answer:
            await answer.read()
        await asyncio.sleep(UPDATE_PAUSE_SECONDS)
    await asyncio.wait_for(seen.wait(), READY_SECONDS)
    following.cancel()
    return delays


async def list_seconds(session: aiohttp.ClientSession) -> float:
    begun = time.monotonic()
    async with session.get("/api/v1/pods") as answer:
        await answer.read()
    return time.monotonic() - begun


def megabytes(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


async def measure_server(server: Server, pods: int, updates: int) -> dict[str, tuple[float, str]]:
    """What -> (figure, unit) of a running server."""
    async with server.session() as session:
        idle = megabytes(server.process)
        cpu_before = sum(server.process.cpu_times()[:2])
        rate = await create_pods(session, pods)
        cpu_seconds = sum(server.process.cpu_times()[:2]) - cpu_before
        listed = await list_seconds(session)
        delays = sorted(await watch_delays(session, updates))
        return {
            "API server, idle RSS": (idle, "MB"),
            f"{pods} pods of 4 KB created": (rate, "1/s"),
            "server CPU for one of them": (cpu_seconds / pods * 1000, "ms"),
            f"list of {pods} pods": (listed * 1000, "ms"),
            f"update to watch event at {pods} pods, p50": (statistics.median(delays), "ms"),
            f"update to watch event at {pods} pods, p99": (delays[int(len(delays) * 0.99)], "ms"),
            f"API server, RSS with {pods} pods": (megabytes(server.process), "MB"),
        }


def measure(pods: int = 1000, updates: int = 500) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="capstan-bench-") as folder:
        server = Server(Path(folder))
        try:
            server.start()
            found = {"API server, first start to ready": (server.started_seconds, "s")}
            server.stop()
            server.start()
            found["API server, start to ready"] = (server.started_seconds, "s")
            found |= asyncio.run(measure_server(server, pods, updates))
        finally:
            server.stop()
    return [Figure(name, value, unit, COMMAND) for name, (value, unit) in found.items()]
