"""Probes and lifecycle handlers: one look at a container, and the loop that repeats it."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from capstan_local.node.processes import Process, StartError

OUTPUT_BYTES = 1024

Exec = Callable[[list[str], int], Awaitable[Process]]
"""(argv, descriptor for its output) -> the process, running inside the container."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a handler acts on."""

    pod_ip: str
    ports: Mapping[str, int]
    """Named ports of the container."""
    http: aiohttp.ClientSession
    execute: Exec


async def run_handler(handler: Mapping[str, Any], target: Target, timeout_seconds: float) -> str | None:
    """None when the handler (exec, httpGet or tcpSocket) succeeded in time, otherwise why it failed."""
    try:
        async with asyncio.timeout(timeout_seconds):
            if "exec" in handler:
                return await _exec(handler["exec"]["command"], target)
            if "httpGet" in handler:
                return await _http_get(handler["httpGet"], target)
            if "tcpSocket" in handler:
                return await _tcp_socket(handler["tcpSocket"], target)
    except TimeoutError:
        return f"no answer within {timeout_seconds:g} s"
    except ValueError as error:
        return str(error)
    return f"handler {next(iter(handler), 'none')} is not supported on this node: use exec, httpGet or tcpSocket"


async def _exec(command: list[str], target: Target) -> str | None:
    output = os.memfd_create("handler-output")
    try:
        process = await target.execute(command, output)
        try:
            ended = await process.wait()
        finally:
            process.kill()
        if ended.code == 0:
            return None
        text = os.pread(output, OUTPUT_BYTES, 0).decode(errors="replace").strip()
        return f"command exited with {ended.code}: {text}" if text else f"command exited with {ended.code}"
    except StartError as error:
        return str(error)
    finally:
        os.close(output)


async def _http_get(action: Mapping[str, Any], target: Target) -> str | None:
    scheme = action.get("scheme", "HTTP").lower()
    host = action.get("host") or target.pod_ip
    headers = {header["name"]: header["value"] for header in action.get("httpHeaders") or []}
    url = f"{scheme}://{host}:{_port(action['port'], target)}{'/' + action.get('path', '/').lstrip('/')}"
    try:
        # Certificates are not verified: a probe asks whether the server answers, not who it is.
        async with target.http.get(url, headers=headers, ssl=False, allow_redirects=False) as response:
            if 200 <= response.status < 400:
                return None
            return f"HTTP probe failed with statuscode: {response.status}"
    except (aiohttp.ClientError, OSError) as error:
        return f"Get {url!r}: {error}"


async def _tcp_socket(action: Mapping[str, Any], target: Target) -> str | None:
    host, port = action.get("host") or target.pod_ip, _port(action["port"], target)
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return f"dial tcp {host}:{port}: {error.strerror or error}"
    writer.close()
    return None


def _port(port: int | str, target: Target) -> int:
    if isinstance(port, str) and port in target.ports:
        return target.ports[port]
    try:
        return int(port)
    except ValueError:
        raise ValueError(f"port {port!r} is neither a number nor the name of one of the container's ports") from None


class Prober:
    """Repeats the probes of one run of a container and reports what changes."""

    def __init__(
        self,
        container: Mapping[str, Any],
        target: Target,
        on_started: Callable[[], None],
        on_ready: Callable[[bool], None],
        on_failure: Callable[[str, str], None],
        on_dead: Callable[[str, int | None], None],
    ) -> None:
        """`on_failure(kind, why)` for each failed look; `on_dead(kind, grace)` when the container must be restarted,
        with the probe's own grace period or None."""
        self._container = container
        self._target = target
        self._on_started = on_started
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._on_dead = on_dead

    async def run(self) -> None:
        """Until cancelled, or until the container is found dead."""
        startup = self._container.get("startupProbe")
        if startup is not None and not await self._starts(startup):
            return
        self._on_started()
        readiness, liveness = self._container.get("readinessProbe"), self._container.get("livenessProbe")
        if readiness is None:
            self._on_ready(True)
        async with asyncio.TaskGroup() as group:
            if readiness is not None:
                group.create_task(self._follow_readiness(readiness))
            if liveness is not None:
                group.create_task(self._follow_liveness(liveness))

    async def _starts(self, probe: Mapping[str, Any]) -> bool:
        async for outcome in self._outcomes("Startup", probe):
            if not outcome:
                self._on_dead("startup", probe.get("terminationGracePeriodSeconds"))
            return outcome
        return False

    async def _follow_readiness(self, probe: Mapping[str, Any]) -> None:
        async for outcome in self._outcomes("Readiness", probe):
            self._on_ready(outcome)

    async def _follow_liveness(self, probe: Mapping[str, Any]) -> None:
        async for outcome in self._outcomes("Liveness", probe):
            if not outcome:
                self._on_dead("liveness", probe.get("terminationGracePeriodSeconds"))
                return

    async def _outcomes(self, kind: str, probe: Mapping[str, Any]) -> AsyncIterator[bool]:
        """True or False each time as many looks in a row agree as the probe's thresholds ask for."""
        streak, last = 0, None
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        while True:
            why = await run_handler(probe, self._target, probe.get("timeoutSeconds", 1))
            succeeded = why is None
            if why is not None:
                self._on_failure(kind, why)
            streak = streak + 1 if succeeded == last else 1
            last = succeeded
            if streak == probe.get("successThreshold" if succeeded else "failureThreshold", 1 if succeeded else 3):
                yield succeeded
            await asyncio.sleep(probe.get("periodSeconds", 10))


def read_tail(path: Path, limit: int) -> bytes:
    """The last `limit` bytes of a file; nothing when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""
