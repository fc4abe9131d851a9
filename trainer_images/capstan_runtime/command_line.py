"""What the groups of commands have in common that run in a process of their own."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping


def run_program(
    name: str,
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace, Mapping[str, str]], int],
    arguments: list[str] | None = None,
) -> int:
    """The exit code of the whole program `name`. A closed pipe, Ctrl-C and SIGTERM end it without a word.

    `description` is the help's first paragraph and, after an empty line, what stands below the options; `run` gets what
    `add_arguments` made room for, and the environment. `arguments`: None: those of this process.
    """
    first, _, rest = description.partition("\n\n")
    parser = argparse.ArgumentParser(prog=name, description=first.partition("\n")[0], epilog=rest)
    add_arguments(parser)
    options = _parsed(parser, sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _leave)
    try:
        return run(options, os.environ)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """As `parser.parse_args`, but a positional that may be left out may also come after options: argparse takes it as
    left out as soon as an option comes."""
    options, left = parser.parse_known_args(arguments)
    if left:
        commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        name = getattr(options, commands.dest)
        options, left = commands.choices[name].parse_known_intermixed_args(
            arguments[arguments.index(name) + 1 :], argparse.Namespace(**{commands.dest: name})
        )
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return options


def _leave(number: int, _: object) -> None:
    """By an exception, so that what is half written is removed on the way out."""
    raise SystemExit(128 + number)
