"""How a bench pod ends: its last words, and the exit code that stands for what went wrong."""

import traceback
from collections.abc import Mapping
from pathlib import Path

from capstan_runtime.contract import env
from capstan_runtime.contract.benchmark import TrialEnd
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import ConfigError, StoreUnavailable, exit_code_of

_LONGEST_MESSAGE = 1000


def write_last_words(text: str, environ: Mapping[str, str]) -> None:
    """The pod's termination message."""
    path = environ.get(env.TERMINATION_LOG)
    if path:
        Path(path).write_text(text)


def end_with(end: TrialEnd, environ: Mapping[str, str]) -> None:
    """Tells the operator and the log how the pod ends."""
    write_last_words(end.model_dump_json(by_alias=True, exclude_none=True), environ)
    print(end.message)


def end_with_error(error: Exception, environ: Mapping[str, str]) -> ExitCode:
    """The exit code that stands for `error`, which is told in one line; CONFIG says that trying again is of no use. A
    store that does not answer may answer later."""
    traceback.print_exception(error)
    code = exit_code_of(StoreUnavailable(str(error)) if isinstance(error, OSError) else error)
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    message = text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"
    end_with(TrialEnd(is_ok=False, message=message[:_LONGEST_MESSAGE], is_final=code == ExitCode.CONFIG), environ)
    return code
