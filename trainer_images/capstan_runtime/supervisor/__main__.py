"""`python -m capstan_runtime.supervisor`: the first process of a training pod."""

import asyncio
import os
import sys
from dataclasses import replace

from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import ConfigError
from capstan_runtime.supervisor.settings import Settings, read_settings
from capstan_runtime.supervisor.supervisor import Supervisor


def main(command: tuple[str, ...] | None = None) -> int:
    """The exit code of the pod. `command` replaces the trainer of the run's framework; None: it does not."""
    try:
        settings = read_settings(os.environ)
    except ConfigError as error:
        print(f"supervisor: {error}", file=sys.stderr, flush=True)
        return ExitCode.CONFIG
    return asyncio.run(_supervise(settings if command is None else replace(settings, command=command)))


async def _supervise(settings: Settings) -> int:
    return await Supervisor(settings).run()


if __name__ == "__main__":
    raise SystemExit(main())
