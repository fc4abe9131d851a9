"""`python -m capstan_runtime.serve_replica`: the first process of a serving pod."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import ConfigError
from capstan_runtime.serve_replica.pod import DRIVER, Ending, Pod
from capstan_runtime.serve_replica.settings import read_settings

_MESSAGE_BYTES = 4096
"""What Kubernetes keeps of a termination message."""


def main(driver: tuple[str, ...] = DRIVER) -> int:
    """The exit code of the pod. `driver` replaces Ray."""
    log = os.environ.get(env.TERMINATION_LOG)
    try:
        settings = read_settings(os.environ)
    except ConfigError as error:
        print(f"serve: {error}", file=sys.stderr, flush=True)
        ending = Ending(ExitCode.CONFIG, str(error))
    else:
        ending = asyncio.run(Pod(settings, driver).run())
    if log:
        with contextlib.suppress(OSError):  # a full disk does not change how it ended
            Path(log).write_bytes(f"{ending.message}\n".encode()[:_MESSAGE_BYTES])
    return ending.code


if __name__ == "__main__":
    raise SystemExit(main())
