"""Clients of several pods in a process of their own, with persistent connections, that ask only ready ones.

`python -m tests.serve_replica.clients BODY`: standard input says `+address` and `-address`; at its end, or when a line
`stop` comes, one line of JSON says how many answers there were, and everything else that happened. A client has one
connection to each pod and gives it up when an answer says so, as any HTTP client does; it never tries again.
"""

import asyncio
import json
import sys
from pathlib import Path

from capstan_runtime.contract import env
from tests.serve_replica.pods import INFER, READY

CLIENTS = 8
LOOK_SECONDS = 0.05
REQUEST_SECONDS = 60.0


class Connection:
    def __init__(self) -> None:
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, address: str, head: str, body: bytes = b"") -> int:
        async with asyncio.timeout(REQUEST_SECONDS):
            if self._streams is None:
                self._streams = await asyncio.open_connection(address, env.SERVE_PORT)
            reader, writer = self._streams
            writer.write(f"{head} HTTP/1.1\r\nhost: digits\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\r\n")[0]))
        if b"connection: close" in answer:
            self.close()
        return int(answer.split(b" ", 2)[1])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def look(address: str, ready: set[str]) -> None:
    while True:
        connection = Connection()
        try:
            is_ready = await connection.ask(address, f"GET {READY}") == 200
        except (OSError, EOFError, TimeoutError):
            is_ready = False
        connection.close()
        (ready.add if is_ready else ready.discard)(address)
        await asyncio.sleep(LOOK_SECONDS)


async def ask_always(body: bytes, ready: set[str], answered: list[int], failed: list[str], stop: asyncio.Event) -> None:
    connections: dict[str, Connection] = {}
    while not stop.is_set():
        if not ready:
            failed.append("no pod is ready")
            await asyncio.sleep(LOOK_SECONDS)
            continue
        for address in sorted(ready):
            try:
                status = await connections.setdefault(address, Connection()).ask(address, f"POST {INFER}", body)
            except (OSError, EOFError, TimeoutError) as error:
                connections.pop(address).close()
                failed.append(f"{address}: {error!r}")
            else:
                answered[0] += status == 200
                if status != 200:
                    failed.append(f"{address}: {status}")


async def main(body: bytes) -> None:
    ready: set[str] = set()
    answered, failed, stop = [0], [], asyncio.Event()
    looks: dict[str, asyncio.Task[None]] = {}
    clients: list[asyncio.Task[None]] = []
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while (line := (await lines.readline()).decode().strip()) not in ("", "stop"):
        if line[0] == "+":
            looks[line[1:]] = asyncio.create_task(look(line[1:], ready))
            while line[1:] not in ready:
                await asyncio.sleep(LOOK_SECONDS)
            clients = clients or [
                asyncio.create_task(ask_always(body, ready, answered, failed, stop)) for _ in range(CLIENTS)
            ]
        else:
            looks.pop(line[1:]).cancel()
    stop.set()
    await asyncio.gather(*clients)
    print(json.dumps({"answered": answered[0], "failed": failed}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_bytes()))
