"""`python -m capstan_local --home FOLDER`: the API server alone, in the foreground, until SIGTERM or Ctrl-C."""

import argparse
import asyncio
import logging
import os
import signal
from pathlib import Path

from capstan_local.cluster import DEFAULT_HOME, LocalControlPlane


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="capstan_local", description=__doc__)
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="folder for state, keys and the kubeconfig")
    parser.add_argument("--port", type=int, default=0, help="loopback port; 0 takes a free one")
    return parser.parse_args()


async def serve(home: Path, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with LocalControlPlane(home=home, port=port) as plane:
        print(f"export KUBECONFIG={plane.kubeconfig_path}", flush=True)
        await stop.wait()


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        asyncio.run(serve(arguments.home, arguments.port))
    except OSError as error:
        raise SystemExit(f"capstan_local: {error}") from error


if __name__ == "__main__":
    main()
