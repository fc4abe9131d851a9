"""`python -m capstan_local.node`: a node of a cluster whose API server runs elsewhere."""

import argparse
import asyncio
import logging
import os
import signal
from pathlib import Path

from capstan_local.client import Access, Client
from capstan_local.node.images import ImageRule
from capstan_local.node.kubelet import KubeletAccess
from capstan_local.node.node import Node


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="capstan_local.node", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="how to reach the API server")
    parser.add_argument("--home", type=Path, required=True, help="folder for volumes, logs and records")
    parser.add_argument("--name", help="of the Node; default: the host name")
    parser.add_argument("--images", type=Path, help="YAML list of {pattern, path, env, command}: what images stand for")
    parser.add_argument("--gpus", type=int, help="how many nvidia.com/gpu to offer; default: those nvidia-smi finds")
    parser.add_argument("--kubelet-client-ca", type=Path, help="CA of the client certificate the API server shows")
    parser.add_argument("--kubelet-token-file", type=Path, help="bearer token the API server shows")
    parser.add_argument("--backoff-seconds", type=float, default=10.0, help="first pause before a restart")
    return parser.parse_args()


async def run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    token = arguments.kubelet_token_file.read_text().strip() if arguments.kubelet_token_file else None
    async with Client(Access.from_kubeconfig(arguments.kubeconfig)) as client:
        node = Node(
            client,
            arguments.home,
            arguments.name,
            ImageRule.read(arguments.images) if arguments.images else [],
            arguments.gpus,
            access=KubeletAccess(token, arguments.kubelet_client_ca),
            backoff_seconds=arguments.backoff_seconds,
        )
        await node.run(stop)


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        asyncio.run(run(arguments))
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"capstan_local.node: {error}") from error


if __name__ == "__main__":
    main()
