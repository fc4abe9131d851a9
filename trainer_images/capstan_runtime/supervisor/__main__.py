"""`python -m capstan_runtime.supervisor`: the first process of a training pod."""

import asyncio
import os
import sys

from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import ConfigError
from capstan_runtime.supervisor.settings import Settings, read_settings
from capstan_runtime.supervisor.supervisor import Supervisor


def main() -> int:
    try:
        settings = read_settings(os.environ)
    except ConfigError as error:
        print(f"supervisor: {error}", file=sys.stderr, flush=True)
        return ExitCode.CONFIG
    return asyncio.run(supervise(settings))


async def supervise(settings: Settings) -> int:
    return await Supervisor(settings).run()


if __name__ == "__main__":
    raise SystemExit(main())
