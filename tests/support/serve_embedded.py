"""Runs the embedded control plane until SIGTERM: `serve_embedded.py HOME ANNOUNCE [--controllers]`.

Writes the path of its kubeconfig to ANNOUNCE once it serves.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from capstan_local.client import Access, Client
from capstan_local.cluster import LocalControlPlane
from capstan_local.controllers import run_controllers


async def serve(home: Path, announce: Path, with_controllers: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with LocalControlPlane(home=home, port=0) as plane:
        partial = announce.with_suffix(".part")
        partial.write_text(str(plane.kubeconfig_path))
        partial.rename(announce)
        if with_controllers:
            async with Client(Access.from_kubeconfig(plane.kubeconfig_path)) as client:
                await run_controllers(client, stop)
        else:
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), "--controllers" in sys.argv[3:]))
