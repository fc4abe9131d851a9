"""The process of a pod that finds out which checkpoint a version or a stage means: `python -m …registry.resolve`.

It looks until there is an answer, and ends with that as its termination message. Whatever is in its way is a line of
its log; what no later look could mend ends it with an exit code, and the pod's node starts it again.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.registry import REGISTRY, RESOLVE, Resolved, ResolveTask
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable
from capstan_runtime.registry.registry import NotRegistered, Registry
from capstan_runtime.registry.verifying import require_signed

LOOK_SECONDS = 10.0
"""A promotion is followed so soon. 260,000 listings a month cost whoever pays for a bucket about 1.30 $ (S3, 2026)."""


def resolve(registry: Registry, task: ResolveTask) -> Resolved | None:
    """What the reference means; None: what the operator knows already. Raises NotRegistered while there is no such
    version or promotion, CorruptCheckpoint (NotSigned too), ConfigError, StoreUnavailable, OSError."""
    version = task.version
    if version is None:
        assert task.stage is not None, "exactly one of the two is set"
        version = registry.promoted(task.name, task.stage).version
    if version == task.known:
        return None
    entry = registry.entry(task.name, version)
    if task.public_key is not None:
        require_signed(registry, entry, task.public_key)
    answer = {"name": entry.name, "version": entry.version, "digest": entry.root, "run": entry.run}
    try:
        return Resolved.parse({**answer, "step": entry.step, "framework": entry.framework})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CorruptCheckpoint(f"{task.name} {version}: {where} {first['input']!r} cannot be served") from error


def main(environ: Mapping[str, str] = os.environ) -> int:
    """The exit code."""
    try:
        task = ResolveTask.model_validate_json(environ[RESOLVE])
        registry = Registry(open_store(environ[REGISTRY], environ), environ)
        answer = _wait_for(registry, task)
    except (KeyError, ValidationError, ConfigError) as error:
        return _end(environ, f"{type(error).__name__}: {error}".splitlines()[0], ExitCode.CONFIG)
    text = answer.model_dump_json(by_alias=True)
    print(f"{answer.name} {answer.version} is {answer.digest}, step {answer.step} of {answer.run}", flush=True)
    return _end(environ, text, ExitCode.OK)


def _wait_for(registry: Registry, task: ResolveTask) -> Resolved:
    told = None
    while True:
        try:
            answer, problem = resolve(registry, task), f"{task.name} {task.stage} is {task.known}"
        except (NotRegistered, CorruptCheckpoint, StoreUnavailable, OSError) as error:
            answer, problem = None, str(error)
        if answer is not None:
            return answer
        if problem != told:
            told = problem
            print(problem, file=sys.stderr, flush=True)
        time.sleep(LOOK_SECONDS)


def _end(environ: Mapping[str, str], text: str, code: ExitCode) -> int:
    if environ.get(env.TERMINATION_LOG):
        Path(environ[env.TERMINATION_LOG]).write_text(text)
    if code != ExitCode.OK:
        print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
