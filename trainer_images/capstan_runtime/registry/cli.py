"""`capstan model`: checkpoints under a name and a semantic version, and the stages that lead to them.

Exit codes: 0 good; 1 bytes, or a signature, are not what they should be; 2 the command line names what is not there;
75 the store does not answer; 78 something cannot work as asked: a version that is taken, a missing package, an unfit
key.
"""

import argparse
import math
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from capstan_runtime.checkpoint.cli import BAD_BYTES, USAGE
from capstan_runtime.checkpoint.commands.places import Usage, chosen, one_place
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.command_line import run_program
from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.registry import MODEL_NAME, RUN_FOLDER, is_stage, is_version
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable
from capstan_runtime.registry import commands
from capstan_runtime.registry.commands import Reference
from capstan_runtime.registry.registering import Candidate, Wanted, this_user
from capstan_runtime.registry.registry import NotRegistered, Registry

_COMMANDS = {
    "register": "make a committed checkpoint a version of a model: pinned, every byte proven, never changed again",
    "list": "list models with their stages, or the versions of one",
    "show": "show one version: its checkpoint, where it comes from, its metrics; or how a stage came to mean it",
    "promote": "move a stage to a version, in one piece; services that follow it roll the version out",
    "verify": "read a version, or all of them, and compare every byte with what was registered",
}
_NAMED = "NAME, NAME@VERSION or NAME@STAGE, such as digits@1.4.0 or digits@production"
_MODEL = f"{_NAMED}; default: the newest version"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands. `run` takes what the parser then makes."""
    actions = parser.add_subparsers(dest="model_command", required=True, metavar="COMMAND")
    made = {}
    for name, text in _COMMANDS.items():
        made[name] = command = actions.add_parser(name, help=text, description=text)
        command.add_argument(
            "store",
            metavar="STORE",
            help="the store that jobs write to: a folder, s3://bucket/prefix, gs://… or az://…",
        )
        command.add_argument("--output", choices=["table", "json"], default="table", help="default: table")
    _add_register(made["register"])
    made["list"].add_argument("name", metavar="NAME", nargs="?", type=_name, help="of one model; default: all models")
    made["show"].add_argument("model", metavar="MODEL", type=_reference, help=_MODEL)
    made["promote"].add_argument("model", metavar="MODEL", type=_reference, help=_MODEL)
    made["promote"].add_argument("stage", metavar="STAGE", type=_stage, help="such as staging or production")
    made["promote"].add_argument(
        "--expect", type=_version, metavar="VERSION", help="only if the stage means this version now"
    )
    made["verify"].add_argument(
        "model", metavar="MODEL", nargs="?", type=_reference, help=f"{_NAMED}; default: every version of all models"
    )
    made["verify"].add_argument(
        "--public-key", type=Path, metavar="PEM", help="the entry must be signed by this key's owner"
    )


def _add_register(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", type=_name, help="of the model")
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        default="newest",
        help="a step, 6 digits or more of a root or logical digest, or a folder's name; default: newest",
    )
    version = command.add_mutually_exclusive_group(required=True)
    version.add_argument("--version", type=_version, metavar="VERSION", help="such as 1.4.0 or 2.0.0-rc.1")
    version.add_argument(
        "--bump", choices=["major", "minor", "patch"], help="count up the newest version; the first follows 0.0.0"
    )
    command.add_argument(
        "--run",
        type=_run,
        metavar="NAMESPACE/JOB/UID",
        help="folder of the run in the store; needed where there are several",
    )
    command.add_argument("--stage", type=_stage, metavar="STAGE", help="promote it to this stage as well")
    command.add_argument(
        "--metric",
        type=_metric,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a figure beside those that the checkpoint has; may be given several times",
    )
    command.add_argument(
        "--public-key", type=Path, metavar="PEM", help="the checkpoint must be signed by this key's owner"
    )
    command.add_argument("--signing-key", type=Path, metavar="PEM", help="sign the entry with this ECDSA key")


def _name(text: str) -> str:
    if len(text) > 63 or re.fullmatch(MODEL_NAME, text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be a model's name; give 1 to 63 of a-z, 0-9 and -, with a letter or digit first and last"
        )
    return text


def _version(text: str) -> str:
    if not is_version(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no semantic version; give MAJOR.MINOR.PATCH, such as 1.4.0 or 2.0.0-rc.1, without +build"
        )
    return text


def _stage(text: str) -> str:
    if not is_stage(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be a stage; give 1 to 63 of a-z, 0-9 and -, with a letter first, such as production"
        )
    return text


def _run(text: str) -> str:
    run = text.strip("/")
    if re.fullmatch(RUN_FOLDER, run) is None:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be the folder of a run; give NAMESPACE/JOB/UID")
    return run


def _reference(text: str) -> Reference:
    name, at, which = text.partition("@")
    _name(name)
    if at and not is_version(which) and not is_stage(which):
        raise argparse.ArgumentTypeError(f"{which!r} is no version such as 1.4.0, and no stage such as production")
    return Reference(name, which or None)


def _metric(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=VALUE with a finite number, such as accuracy=0.98")
    return name, number


def main(arguments: list[str] | None = None) -> int:
    return run_program("capstan model", __doc__, add_arguments, run, arguments)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """The exit code; what went wrong is one line on stderr."""
    try:
        return int(_call(options, environ))
    except (Usage, ConfigError, CorruptCheckpoint, StoreUnavailable, OSError) as error:
        print(f"capstan model: {_as_typed(str(error), options)}", file=sys.stderr)
        return _exit_code(error)


def _as_typed(problem: str, options: argparse.Namespace) -> str:
    """A key is called by the option that named it."""
    for field, option in (("checkpoint.verify.publicKey: ", "public_key"), (f"{env.SIGNING_KEY}: ", "signing_key")):
        if problem.startswith(field) and getattr(options, option, None):
            return f"--{option.replace('_', '-')}: {problem.removeprefix(field)}"
    return problem


def _exit_code(error: Exception) -> int:
    if isinstance(error, (Usage, NotRegistered)):
        return USAGE
    if isinstance(error, CorruptCheckpoint):
        return BAD_BYTES
    return ExitCode.CONFIG if isinstance(error, ConfigError) else ExitCode.RETRYABLE


def _call(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    registry, output = Registry(_opened(options.store, environ), environ), options.output
    match options.model_command:
        case "register":
            candidate = _candidate(options, environ)
            return commands.register_one(registry, candidate, _wanted(options), options.stage, output)
        case "list":
            return commands.list_models(registry, options.name, output)
        case "show":
            return commands.show(registry, options.model, output)
        case "promote":
            return commands.promote(registry, options.model, options.stage, options.expect, output)
    return commands.verify(registry, options.model, _key_text(options.public_key), output)


def _opened(place: str, environ: Mapping[str, str]) -> Store:
    store = open_store(place, environ)
    if isinstance(store, FolderStore) and not Path(store.place).is_dir():
        raise Usage(f"STORE: {store.place} is not a folder; give the store that jobs write to")
    return store


def _candidate(options: argparse.Namespace, environ: Mapping[str, str]) -> Candidate:
    """Raises Usage unless there is exactly one such checkpoint below the store."""
    base = options.store.rstrip("/") or "/"
    try:
        place = one_place(
            f"{base}/{options.run}" if options.run else options.store,
            environ,
            "name the run with --run NAMESPACE/JOB/UID",
        )
    except Usage:
        if options.run is None:
            raise
        raise Usage(
            f"--run: there is no run {options.run} with checkpoints in {options.store}; list what there is with: "
            f"capstan checkpoint ls {shlex.quote(options.store)}"
        ) from None
    run = place.store.place.removeprefix(base).strip("/")
    if place.only is not None or not run or not place.store.place.startswith(base):
        raise Usage(
            f"STORE: {options.store} is the folder of one run, and models are registered in the store above it; give "
            "that, and --run NAMESPACE/JOB/UID"
        )
    if re.fullmatch(RUN_FOLDER, run) is None:
        raise Usage(
            f"STORE: {options.store} is not the store that jobs write to: there runs are in NAMESPACE/JOB/UID, and "
            f"this one is in {run}; give the folder above its namespace"
        )
    name = chosen(place, options.checkpoint, lambda line: print(line, file=sys.stderr))
    return Candidate(place.store, run, name, _key_text(options.public_key))


def _wanted(options: argparse.Namespace) -> Wanted:
    return Wanted(
        name=options.name,
        version=options.version,
        bump=options.bump,
        by=this_user(),
        metrics=dict(options.metric),
        signing_key=options.signing_key,
    )


def _key_text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"--public-key: {path} cannot be read: {error}") from error
