"""Asks the supervisors in the pods, and tells them their place in the world."""

import hashlib
import hmac
import time
from typing import Self

import aiohttp
from pydantic import ValidationError

from capstan_operator.cluster.errors import SupervisorError, TokenRefused
from capstan_operator.cluster.pods import read_state
from capstan_operator.cluster.trail import Trail
from capstan_runtime.contract.env import SUPERVISOR_PORT
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import State

ASK_SECONDS = 2.0
"""Shorter than the time for which a rank with a broken collective is not blamed (`decide/failure.py`)."""
PUSH_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 * 1024


def job_token(operator_key: bytes, job_uid: str) -> str:
    """The bearer token of one job's supervisors: computed, never stored, so the operator reads no job's Secret."""
    return hmac.new(operator_key, job_uid.encode(), hashlib.sha256).hexdigest()


class SupervisorClient:
    """Use as `async with SupervisorClient() as client`. Every method raises SupervisorError. What supervisors are told
    is noted in `trail`; None: nobody asks."""

    def __init__(self, port: int = SUPERVISOR_PORT, trail: Trail | None = None) -> None:
        self._port = port
        self._trail = trail
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # Connections outlive the pause between two polls, but not much: there may be thousands of pods, and the usual
        # limit is 1,024 open files.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=128, keepalive_timeout=3.0),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch_state(self, ip: str, token: str, *, pod: str, job_uid: str) -> State:
        """The state of `pod`'s supervisor, within 3 s. Another pod that got the same address is an error."""
        answer = await self._send("GET", ip, "/state", token, ASK_SECONDS)
        try:
            state = read_state(answer)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "document"
            raise SupervisorError(f"GET /state of {ip}: {where}: {first['msg']}") from error
        if state.pod != pod or state.uid != job_uid:
            raise SupervisorError(f"GET /state of {ip}: {state.pod} of job {state.uid} answered instead of {pod}")
        return state

    async def push_membership(self, ip: str, token: str, membership: Membership, *, pod: str, pod_uid: str) -> None:
        """Tell a supervisor its place, within 5 s. Repeating it is harmless; an older fence is refused there. What
        equals its default is left out: a supervisor of the release before refuses fields that it does not know."""
        body = membership.model_dump_json(by_alias=True, exclude_defaults=True)
        started = time.monotonic()
        result = "Interrupted"
        try:
            await self._send("PUT", ip, "/membership", token, PUSH_SECONDS, body)
            result = "OK"
        except SupervisorError as error:
            result = type(error).__name__
            raise
        finally:
            if self._trail is not None:
                seconds = time.monotonic() - started
                self._trail.note("push", "Membership", None, pod, uid=pod_uid, result=result, seconds=seconds)

    async def _send(
        self, method: str, ip: str, path: str, token: str, seconds: float, body: str | None = None
    ) -> bytes:
        if self._session is None:
            raise RuntimeError("SupervisorClient is used before `async with`")
        host = f"[{ip}]" if ":" in ip else ip
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            async with self._session.request(
                method,
                f"http://{host}:{self._port}{path}",
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                answer = await read_at_most(response.content, MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise SupervisorError(f"{method} {path} of {ip}: {type(error).__name__}: {error}") from error
        if answer is None:
            raise SupervisorError(f"{method} {path} of {ip}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
        if response.status == 401:
            raise TokenRefused(f"{method} {path} of {ip}: 401: it does not know the token of its job")
        if response.status // 100 != 2:
            raise SupervisorError(
                f"{method} {path} of {ip}: {response.status}: {answer[:200].decode(errors='replace')}"
            )
        return answer


async def read_at_most(stream: aiohttp.StreamReader, limit: int) -> bytes | None:
    """All of it, or None when it is longer than `limit`."""
    answer = bytearray()
    async for chunk in stream.iter_any():
        answer += chunk
        if len(answer) > limit:
            return None
    return bytes(answer)
