"""Runs the embedded control plane until SIGTERM: `serve_embedded.py HOME ANNOUNCE [--node]`.

Writes the path of its kubeconfig to ANNOUNCE once it serves.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from capstan_local.cluster import LocalControlPlane


async def serve(home: Path, announce: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with LocalControlPlane(home=home, port=0) as plane:
        partial = announce.with_suffix(".part")
        partial.write_text(str(plane.kubeconfig_path))
        partial.rename(announce)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
