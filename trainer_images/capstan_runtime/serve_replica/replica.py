"""The Serve deployment: one process that verifies, loads and warms the model and then answers clients itself."""

import asyncio
import os
import socket
import sys
import time
from typing import TYPE_CHECKING

from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import Failure, exit_code_of
from capstan_runtime.serve_replica import line
from capstan_runtime.serve_replica.settings import read_settings

if TYPE_CHECKING:
    from capstan_runtime.serve_replica.server import Server

_PATIENCE_SECONDS = 30.0
"""For the pod's first process, which has nothing else to do."""


class Replica:
    def __init__(self) -> None:
        """Returns when it serves. Raises what keeps it from that, and says so to the pod."""
        pod = line.connect(os.environ[line.PATH])
        pod.settimeout(_PATIENCE_SECONDS)
        line.say(pod, line.Kind.HERE, pid=os.getpid())
        _print_to(expect(pod, line.Kind.OUTPUT))
        try:
            self._server = _serve(pod)
        except BaseException as error:
            code = ExitCode.APPLICATION if isinstance(error, SystemExit) else exit_code_of(error)
            line.say(pod, line.Kind.FAILED, code=int(code), message=_one_line(error))
            raise

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that fails three times, or does not answer."""
        await asyncio.wrap_future(self._server.check())


def _serve(pod: socket.socket) -> "Server":
    began = time.monotonic()
    # Here, because the driver and Serve's controller import this module too, and need none of it.
    from capstan_runtime.checkpoint.open import open_store
    from capstan_runtime.serve_replica.server import Server
    from capstan_runtime.serve_replica.tls import open_tls
    from capstan_runtime.serving.app import make_app
    from capstan_runtime.serving.load import load

    settings = read_settings(os.environ)
    tls = open_tls(settings, lambda line: print(line, file=sys.stderr, flush=True))
    model = load(settings.config, open_store(settings.store, os.environ))
    loaded = time.monotonic()
    app = make_app(settings.config, model, api_keys=settings.api_keys, certificate=settings.tls)
    server = Server(app, settings.config, pod, tls)
    server.warm()
    print(f"verified and loaded in {loaded - began:.1f} s, warmed in {time.monotonic() - loaded:.1f} s", flush=True)
    line.say(pod, line.Kind.WARM)
    server.start(socket.socket(fileno=expect(pod, line.Kind.SERVE)))
    return server


def expect(pod: socket.socket, kind: line.Kind) -> int:
    """The descriptor that comes with the next word, which must be of this kind."""
    word = line.hear(pod)
    if word is None or word.kind is not kind or word.descriptor is None:
        raise ConnectionError(f"expected {kind} from the pod's first process, heard {word}")
    return word.descriptor


def _print_to(descriptor: int) -> None:
    """Into the pod's log: Ray would keep it in a file of its session."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Failure) else f"{type(error).__name__}: {text}"
