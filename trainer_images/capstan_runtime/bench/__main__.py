"""A bench pod's process, told by the environment what to do."""

import os
import sys

from pydantic import ValidationError

from capstan_runtime.bench.trial import run_trial
from capstan_runtime.contract.benchmark import TASK, BenchTask
from capstan_runtime.contract.exit_codes import ExitCode


def _pod() -> int:
    try:
        task = BenchTask.model_validate_json(os.environ[TASK])
    except (KeyError, ValidationError) as error:
        print(f"{TASK}: is no task ({error}); a bench pod is started by the operator, which sets it", file=sys.stderr)
        return ExitCode.CONFIG
    if (task.trial is None) == (task.report is None):
        print(f"{TASK}: sets {'neither' if task.trial is None else 'both'} of trial, report; set one", file=sys.stderr)
        return ExitCode.CONFIG
    if task.report is None:
        return run_trial(task, os.environ)
    from capstan_runtime.bench.reporting import run_report  # what draws is not in every image that measures

    return run_report(task, os.environ)


code = _pod()
sys.stdout.flush()
sys.stderr.flush()
# Not sys.exit: exit handlers of frameworks may wait for peers that are gone.
os._exit(code)
