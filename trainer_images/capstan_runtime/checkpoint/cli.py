"""`capstan checkpoint`: what a store holds, whether it is intact, and what stays of it.

Exit codes: 0 good; 1 bytes, or a signature, are not what they should be; 2 the command line names what is not there;
75 the store does not answer; 78 something cannot work as asked: a later format, a missing package, an unfit key.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from capstan_runtime.checkpoint.commands import check, compare, export, keep, look
from capstan_runtime.checkpoint.commands.places import Place, Usage, chosen, find_places, one_place
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.command_line import run_program
from capstan_runtime.contract import env, saving
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable

BAD_BYTES = check.BAD_BYTES
USAGE = 2

_COMMANDS = {
    "ls": "list everything in a store: checkpoints, why some do not count, and what is not ours",
    "show": "show one checkpoint: who saved it, its state and its tensors",
    "verify": "read a checkpoint, or all of a store, and compare digests",
    "diff": "compare two checkpoints tensor by tensor",
    "scrub": "read from the disk itself; quarantine what is bad, mark what is good as verified",
    "convert": "write plain safetensors and a model card, every byte verified",
    "adopt": "give a checkpoint to another TrainingJob, which goes on from it; for jobs that were made anew",
    "gc": "show what retention would remove, and remove it with --yes; never the newest two that verify, nor what a "
    "job may need: whether one runs now, a store does not tell, nor who serves from it; pin what is served",
    "pin": "keep a checkpoint whatever the rules say",
    "unpin": "undo pin",
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands. `run` takes what the parser then makes."""
    commands = parser.add_subparsers(dest="checkpoint_command", required=True, metavar="COMMAND")
    made = {}
    for name, text in _COMMANDS.items():
        made[name] = command = commands.add_parser(name, help=text, description=text)
        command.add_argument("store", metavar="STORE", help="a folder, s3://bucket/prefix, gs://… or az://…")
        command.add_argument("--output", choices=["table", "json"], default="table", help="default: table")
    which = (
        "a step, 6 digits or more of a root or logical digest, `newest`, or a folder's name; "
        "not needed when STORE is a checkpoint"
    )
    for name in ("show", "verify", "scrub", "convert", "adopt", "pin", "unpin"):
        made[name].add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help=which)
    for name in ("verify", "convert", "adopt"):
        made[name].add_argument(
            "--public-key", type=Path, metavar="PEM", help="the manifest must be signed by its owner"
        )
    made["verify"].add_argument(
        "--level", choices=["full", "sampled", "manifest"], default="full", help="how much is read; default: all"
    )
    made["diff"].add_argument("a", metavar="A", help=which)
    made["diff"].add_argument("b", metavar="B", help=which)
    made["diff"].add_argument("--with", dest="other", metavar="STORE", help="where B is; default: the same store")
    made["scrub"].add_argument(
        "--dry-run", action="store_true", help="only read and tell: quarantine nothing, mark nothing as verified"
    )
    made["convert"].add_argument("--to", type=Path, required=True, metavar="FOLDER", help="it is made")
    made["convert"].add_argument("--optimizer", action="store_true", help="the optimizer's state too")
    made["adopt"].add_argument(
        "--to", required=True, metavar="STORE", help="folder of the job in its store: STORE/NAMESPACE/NAME/UID"
    )
    made["adopt"].add_argument(
        "--signing-key", type=Path, metavar="PEM", help="sign it, for a job that takes only what is signed"
    )
    made["unpin"].add_argument("--force", action="store_true", help="even what is a version of a registered model")
    _add_rules(made["gc"])


def _add_rules(gc: argparse.ArgumentParser) -> None:
    gc.add_argument(
        "--last",
        type=int,
        required=True,
        metavar="N",
        help="keep the newest N; 2 or more, since the newest two that verify stay whatever the rules say",
    )
    gc.add_argument("--every-steps", type=int, metavar="K", help="keep steps that are multiples of K")
    gc.add_argument("--best", type=_best, metavar="METRIC:max|min[:N]", help="keep the best N by a metric (default 1)")
    gc.add_argument(
        "--newer-than", type=_seconds, metavar="30m|12h|7d", help="keep what was committed within this time"
    )
    gc.add_argument(
        "--public-key",
        type=Path,
        metavar="PEM",
        help="of the newest two that verify, only what its owner signed counts",
    )
    gc.add_argument("--yes", action="store_true", help="remove them; without it they are only shown")


def _best(text: str) -> saving.Best:
    metric, _, rest = text.partition(":")
    mode, _, count = rest.partition(":")
    if mode not in ("max", "min") or not metric or not (count or "1").isdecimal() or count == "0":
        raise argparse.ArgumentTypeError(f"{text!r}: give METRIC:max or METRIC:min, such as accuracy:max or loss:min:3")
    return saving.Best(metric=metric, mode="max" if mode == "max" else "min", keep=int(count or 1))


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d*)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number with s, m, h or d, such as 12h")
    return int(match[1]) * _SECONDS[match[2]]


def main(arguments: list[str] | None = None) -> int:
    return run_program("capstan checkpoint", __doc__, add_arguments, run, arguments)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """The exit code; what went wrong is one line on stderr."""
    try:
        return int(_call(options, environ))
    except (Usage, ConfigError, CorruptCheckpoint, StoreUnavailable, OSError) as error:
        print(f"capstan checkpoint: {_as_typed(str(error), options)}", file=sys.stderr)
        return _exit_code(error)


def _as_typed(problem: str, options: argparse.Namespace) -> str:
    """A key is called by the option that named it, and not by the field that does where a job asks for it."""
    field = "checkpoint.verify.publicKey: "
    if problem.startswith(field) and getattr(options, "public_key", None):
        return f"--public-key: {options.public_key} {problem.removeprefix(field)}"
    field = f"{env.SIGNING_KEY}: "
    if problem.startswith(field) and getattr(options, "signing_key", None):
        return f"--signing-key: {problem.removeprefix(field)}"
    return problem


def _exit_code(error: Exception) -> int:
    if isinstance(error, Usage):
        return USAGE
    if isinstance(error, CorruptCheckpoint):
        return BAD_BYTES
    return ExitCode.CONFIG if isinstance(error, ConfigError) else ExitCode.RETRYABLE


def _call(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    output = options.output
    match options.checkpoint_command:
        case "ls":
            return look.ls(find_places(options.store, environ), output)
        case "gc":
            places, key = find_places(options.store, environ), _key_text(options.public_key)
            return keep.gc(places, _rules(options), key, options.yes, output)
        case "verify":
            targets = check.targets(*_wanted(options, environ), _say)
            return check.verify(targets, options.level, _key_text(options.public_key), output)
        case "scrub":
            return check.scrub(check.targets(*_wanted(options, environ), _say), options.dry_run, output)
        case "diff":
            one = _opened(one_place(options.store, environ), options.a)
            return compare.diff(one, _opened(one_place(options.other or options.store, environ), options.b), output)
    place = one_place(options.store, environ)
    name = chosen(place, options.checkpoint, _refuse if options.checkpoint_command == "adopt" else _say)
    match options.checkpoint_command:
        case "show":
            return look.show(place.store, name, output)
        case "convert":
            opened = open_checkpoint(place.store, name, _key_text(options.public_key))
            return export.export(opened, options.to, options.optimizer, output)
        case "adopt":
            opened = open_checkpoint(place.store, name, _key_text(options.public_key))
            return export.give(opened, open_store(options.to, environ), options.signing_key, output)
    is_wanted = options.checkpoint_command == "pin"
    return keep.set_pin(place.store, name, is_wanted, output, not is_wanted and options.force)


def _wanted(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[list[Place], bool]:
    """Places, and whether one checkpoint was named. Raises Usage."""
    if options.checkpoint is None:
        places = find_places(options.store, environ)
        return places, places[0].only is not None
    place = one_place(options.store, environ)
    return [Place(place.store, chosen(place, options.checkpoint, _say))], True


def _opened(place: Place, which: str) -> OpenCheckpoint:
    return open_checkpoint(place.store, chosen(place, which, _say))


def _key_text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"--public-key: {path} cannot be read: {error}") from error


def _rules(options: argparse.Namespace) -> saving.Retention:
    try:
        return saving.Retention(
            last=options.last,
            every_steps=options.every_steps,
            best=options.best,
            newer_than_seconds=options.newer_than,
        )
    except ValidationError as error:
        first = error.errors()[0]
        rule = str(first["msg"]).lower()
        if first["loc"] == ("last",):
            rule = "give 2 or more: the newest two that verify always stay, and a rule that keeps fewer would not hold"
        raise Usage(f"--{str(first['loc'][0]).replace('_', '-')}: {first['input']} is refused: {rule}") from error


def _refuse(line: str) -> None:
    """A job that went on from an older step than it could would train those between again, and not say so."""
    raise Usage(f"{line}; mend it, or name the checkpoint to go on from")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
