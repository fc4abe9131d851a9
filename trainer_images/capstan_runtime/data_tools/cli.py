"""`capstan data`: looks at data before a job does, and makes token files of text.

Exit codes: 0 good; 1 some samples cannot be trained on; 2 what was given cannot be used; 75 the bucket does not answer,
or a disk is full or fails; 78 the data cannot be trained on as its manifest says.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from capstan_runtime.command_line import run_program
from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.data_tools.token_folder import TokenFolder, Unusable
from capstan_runtime.errors import ConfigError, StoreUnavailable

BAD_SAMPLES = 1
USAGE = 2
_MIB = 1 << 20
_LARGEST = (1 << 31) - 1
"""As of seeds of jobs, and token ids."""
_WRONG_PATH = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_COMMANDS = {
    "inspect": "look at the data that a manifest names: bad samples, duplicates, classes, tokens, drift",
    "tokenize": "make token files of text: bytes, or byte pairs of a tokenizer that is given or trained",
    "pack": "string the documents of token files together and cut them into samples of one length",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands. `run` takes what the parser then makes."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    made = {
        name: commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, text in _COMMANDS.items()
    }
    inspect = made["inspect"]
    inspect.add_argument("manifest", type=Path, metavar="FILE", help="YAML with a TrainingJob, or its data section")
    inspect.add_argument(
        "--volume",
        action="append",
        default=[],
        type=_mount,
        metavar="MOUNT=FOLDER",
        help="where a mount of the pod is on this machine, such as /data=./data",
    )
    inspect.add_argument(
        "--samples",
        type=_whole(1),
        default=10_000,
        metavar="N",
        help="most samples to look at, evenly spaced (default 10,000, as a job does)",
    )
    inspect.add_argument("--reference", type=Path, metavar="REPORT", help="an earlier report, to tell the drift from")
    inspect.add_argument("--output", choices=["table", "json"], default="table", help="default: table")
    tokenize = made["tokenize"]
    tokenize.add_argument("text", type=Path, metavar="TEXT", help="a file, or a folder of files; each is a document")
    _add_target(tokenize)
    how = tokenize.add_mutually_exclusive_group(required=True)
    how.add_argument("--bytes", action="store_true", help="each byte is a token: 257 with the end of text")
    how.add_argument("--vocabulary", type=_whole(1), metavar="N", help="train a tokenizer of so many tokens")
    how.add_argument("--tokenizer", type=Path, metavar="FILE", help="use this tokenizer.json")
    tokenize.add_argument("--pattern", default="**/*.txt", help="which files of a folder, as a glob (default **/*.txt)")
    tokenize.add_argument(
        "--training-mib",
        type=_whole(1),
        default=256,
        metavar="N",
        help="train the tokenizer on so much of the text (default 256)",
    )
    tokenize.add_argument(
        "--file-mib",
        type=_whole(1),
        default=256,
        metavar="N",
        help="text in each token file; more begins another (default 256)",
    )
    pack = made["pack"]
    pack.add_argument("tokens", type=Path, metavar="TOKENS", help="a folder that tokenize has written")
    _add_target(pack)
    pack.add_argument("--sequence-length", type=_whole(2), required=True, metavar="T", help="tokens of a sample")
    pack.add_argument("--seed", type=_whole(0), help="shuffle the documents by it; left out: they stay in their order")
    pack.add_argument(
        "--file-samples", type=_whole(1), default=1 << 16, metavar="N", help="samples in each file (default 65,536)"
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="it is made; one that the same command left unfinished is gone on with",
    )


def _whole(least: int) -> Callable[[str], int]:
    """Of an argument that is a whole number of at least so much."""

    def parsed(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= _LARGEST:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {_LARGEST:,}; give one")
        return int(text)

    return parsed


def _mount(text: str) -> tuple[str, str]:
    mount, separator, folder = text.partition("=")
    if not separator or not mount.startswith("/") or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r}: give MOUNT=FOLDER, such as /data=./data, of a folder that is there"
        )
    return mount, str(Path(folder).resolve())


def main(arguments: list[str] | None = None) -> int:
    return run_program("capstan data", __doc__, add_arguments, run, arguments)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """The exit code; what went wrong is one line on stderr."""
    try:
        match options.data_command:
            case "inspect":
                return _inspect(options, environ)
            case "tokenize":
                return _tokenize(options)
        return _pack(options)
    except (Unusable, ConfigError, StoreUnavailable, OSError) as error:
        told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"capstan data: {told}", file=sys.stderr)
        if isinstance(error, (Unusable, *_WRONG_PATH)):
            return USAGE
        return ExitCode.CONFIG if isinstance(error, ConfigError) else ExitCode.RETRYABLE


def _inspect(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from capstan_runtime.data_tools.inspecting import data_of, inspect, shown

    mounts = json.dumps(dict(options.volume)) if options.volume else environ.get(env.POD_MOUNTS, "{}")
    report, spec = inspect(
        data_of(options.manifest), options.samples, options.reference, {**environ, env.POD_MOUNTS: mounts}
    )
    print(shown(report, spec, options.output))
    return BAD_SAMPLES if report.bad else 0


def _tokenize(options: argparse.Namespace) -> int:
    from capstan_runtime.data_tools.tokenizing import find_text, tokenize

    made = tokenize(
        find_text(options.text, options.pattern),
        options.to,
        vocabulary=options.vocabulary,
        tokenizer=options.tokenizer,
        bytes_per_file=options.file_mib * _MIB,
        training_bytes=options.training_mib * _MIB,
        tell=_say,
    )
    _tell_made(made, options.to, "SEQUENCE_LENGTH")
    return 0


def _pack(options: argparse.Namespace) -> int:
    from capstan_runtime.data_tools.packing import find_source, pack

    made = pack(
        find_source(options.tokens),
        options.to,
        sequence_length=options.sequence_length,
        samples_per_file=options.file_samples,
        seed=options.seed,
        tell=_say,
    )
    _tell_made(made, options.to, str(options.sequence_length))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _tell_made(made: TokenFolder, folder: Path, sequence_length: str) -> None:
    """What a job is told of it."""
    tokens = sum(file.tokens for file in made.files)
    _say(f"{made.documents:,} documents, {tokens:,} tokens in {len(made.files)} files")
    print(
        "data:\n  tokens:\n"
        f"    path: {folder}\n    dtype: {made.dtype}\n    vocabulary: {made.vocabulary}\n"
        f"    endOfText: {made.end_of_text}\n    sequenceLength: {sequence_length}"
    )
