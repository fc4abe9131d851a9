"""`capstan bench`: results that were kept, shown, compared and judged.

Exit codes: 0 passed, improved, or done; 3 regressed; 4 inconclusive; 1 it could not be done; 2 wrong usage.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from capstan_runtime.bench.analysis.judged import judge_anew
from capstan_runtime.bench.reporting import RESULT, parse_result
from capstan_runtime.bench.reports import comparison, markdown, write_reports
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.store import ObjectMissing, Store
from capstan_runtime.contract.benchmark import VERDICT_EXIT, GateTask
from capstan_runtime.errors import ConfigError, StoreUnavailable

DONE, COULD_NOT, USAGE = 0, 1, 2
_DEEPEST = 4
"""Folders below the place that are looked into: <namespace>/<benchmark>/<uid> is 3 deep."""
_WHERE = "a result.json, a folder with one, or s3://bucket/prefix, gs://…, az://…"


class Usage(Exception):
    """The command line names what is not there, or more than one thing. One line; exit code 2."""


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the whole program. A closed pipe and Ctrl-C end it without a word."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return run(arguments, os.environ)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def run(arguments: list[str] | None, environ: Mapping[str, str]) -> int:
    """The exit code; what went wrong is one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.call(options, environ))
    except Usage as error:
        print(f"capstan bench: {error}", file=sys.stderr)
        return USAGE
    except (ConfigError, StoreUnavailable, OSError) as error:
        print(f"capstan bench: {error}", file=sys.stderr)
        return COULD_NOT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="capstan bench", description=__doc__.partition("\n")[0])
    parser.epilog = __doc__.partition("\n\n")[2]
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = _command(commands, "report", "print a result as Markdown, or write all reports to a folder")
    report.add_argument("result", metavar="RESULT", help=_WHERE)
    _add_output(report)
    report.set_defaults(call=_report)
    compare = _command(commands, "compare", "compare two results of the same machine, whatever they were judged by")
    compare.add_argument("baseline", metavar="BASELINE", help=_WHERE)
    compare.add_argument("candidate", metavar="CANDIDATE", help="the same")
    compare.add_argument(
        "--minimum-effect-percent",
        type=_effect,
        default=5.0,
        metavar="PERCENT",
        help="differences below this are none, however certain (default 5)",
    )
    compare.add_argument(
        "--confidence", type=_confidence, default=0.95, metavar="SHARE", help="of intervals and tests (default 0.95)"
    )
    compare.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="judge this one; may be repeated (default: headlines)",
    )
    _add_output(compare)
    compare.set_defaults(call=_compare)
    gate = _command(commands, "gate", "say a result's verdict in one line and by the exit code")
    gate.add_argument("result", metavar="RESULT", help=_WHERE)
    gate.set_defaults(call=_gate)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help=f"write {RESULT}, report.md, report.html and metrics.prom there"
    )


def _effect(text: str) -> float:
    return _between(text, 0.0, 1000.0, "above 0 and at most 1000")


def _confidence(text: str) -> float:
    value = _between(text, 0.0, 1.0, "from 0.8 to below 1")
    if not 0.8 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.8 to below 1")
    return value


def _between(text: str, low: float, high: float, rule: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number") from None
    if not low < value <= high:
        raise argparse.ArgumentTypeError(f"{text} is not {rule}")
    return value


def _report(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    result = read_result(options.result, "RESULT", environ)
    if options.output is None:
        print(markdown(result), end="")
    else:
        _write(result, options.output)
    return DONE


def _compare(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    baseline = read_result(options.baseline, "BASELINE", environ)
    candidate = read_result(options.candidate, "CANDIDATE", environ)
    gate = GateTask(
        minimum_effect_percent=options.minimum_effect_percent,
        confidence=options.confidence,
        metrics=tuple(options.metric),
    )
    result = judge_anew(baseline, candidate, gate)
    print(comparison(result), end="")
    if options.output is not None:
        _write(result, options.output)
    return _say_verdict(result)


def _gate(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return _say_verdict(read_result(options.result, "RESULT", environ))


def _say_verdict(result: BenchmarkResult) -> int:
    who = f"{result.namespace}/{result.name}"
    if result.verdict is None:
        print(
            f"capstan bench: {who} was compared with nothing, so there is no verdict; set spec.baseline, or use "
            "capstan bench compare",
            file=sys.stderr,
        )
        return COULD_NOT
    print(f"{result.verdict}: {who}: {result.reason}", file=sys.stderr)
    return VERDICT_EXIT[result.verdict]


def _write(result: BenchmarkResult, folder: Path) -> None:
    whole = folder.resolve()
    store = FolderStore(whole.parent)
    store.put(f"{whole.name}/{RESULT}", [result.model_dump_json(by_alias=True, exclude_none=True).encode()])
    write_reports(result, store, whole.name)
    print(f"wrote {folder}/report.html, report.md, metrics.prom and {RESULT}", file=sys.stderr)


def read_result(place: str, field: str, environ: Mapping[str, str]) -> BenchmarkResult:
    """The one result at or below `place`. Raises Usage, ConfigError, OSError."""
    store, key = _found(place, field, environ)
    try:
        text = store.get(key)
    except ObjectMissing as error:
        raise Usage(f"{field}: there is no {key} in {store.place}") from error
    return parse_result(text, f"{field}: {store.place}/{key}")


def _found(place: str, field: str, environ: Mapping[str, str]) -> tuple[Store, str]:
    """The store, and the key in it."""
    above, _, last = place.rstrip("/").rpartition("/")
    if last.endswith(".json"):
        return _opened(above or ("/" if place.startswith("/") else "."), field, environ), last
    store = _opened(place, field, environ)
    found = list(_results_below(store, "", _DEEPEST))
    if not found:
        raise Usage(f"{field}: there is no {RESULT} in {place} or the {_DEEPEST} levels of folders below it")
    if len(found) > 1:
        names = ", ".join(found[:3])
        raise Usage(f"{field}: there are {len(found)} results below {place} ({names}, …); name one of them")
    return store, found[0]


def _opened(place: str, field: str, environ: Mapping[str, str]) -> Store:
    try:
        store = open_store(place, environ)
    except ConfigError as error:
        raise Usage(f"{field}: {str(error).removeprefix('checkpoint store: ')}") from error
    if isinstance(store, FolderStore) and not Path(store.place).is_dir():
        is_there = Path(store.place).exists()
        raise Usage(f"{field}: {place} {'is no folder' if is_there else 'is not there'}; give {_WHERE}")
    return store


def _results_below(store: Store, prefix: str, depth: int) -> Iterator[str]:
    names = store.children(prefix)
    if RESULT in names:
        yield f"{prefix}/{RESULT}".lstrip("/")
        return
    for name in names if depth else []:
        below = f"{prefix}/{name}".lstrip("/")
        if isinstance(store, FolderStore) and not Path(store.place, below).is_dir():
            continue
        yield from _results_below(store, below, depth - 1)


if __name__ == "__main__":
    raise SystemExit(main())
