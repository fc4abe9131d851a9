"""`capstan`: run the operator, the cluster on this machine and benchmarks; look at checkpoints, models and results."""

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

_OF_RESULTS = {
    "report": "print a kept result as Markdown, or write all its reports to a folder",
    "compare": "compare two kept results of the same machine",
    "gate": "say a kept result's verdict by the exit code",
}
_OF_RUNTIME = {
    "checkpoint": ("capstan_runtime.checkpoint", "list, verify, convert, adopt, keep and remove checkpoints"),
    "model": ("capstan_runtime.registry", "register checkpoints as versions of models, promote and verify them"),
    "data": ("capstan_runtime.data_tools", "look at data before a job does, and make token files of text"),
}
"""Module and summary of the runtime's own commands."""
Number = TypeVar("Number", int, float)
DEFAULT_HOME = Path.home() / ".capstan"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 it did not work (one line on stderr says why), 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] in _OF_RUNTIME:
        return _of_runtime(given[0], given[1:])
    if given[:1] == ["bench"] and given[1:2] and given[1] in _OF_RESULTS:
        return _results(given[1:])
    options = _parser().parse_args(given)
    try:
        code = int(options.call(options))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads has had enough: `capstan doctor | head`
        # What is still in the buffer would be complained of when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _of_runtime(command: str, arguments: list[str]) -> int:
    """Becomes the runtime's own command: the operator's code knows nothing of how checkpoints and data are stored."""
    if find_spec("blake3") is None or find_spec("semver") is None:
        print(
            f"capstan {command}: the runtime's library is not installed: pip install 'capstan[runtime]'",
            file=sys.stderr,
        )
        return 1
    os.execv(sys.executable, [sys.executable, "-m", _OF_RUNTIME[command][0], *arguments])


def _results(arguments: list[str]) -> int:
    """Becomes the runtime's own command: what measures and judges is none of the operator's code."""
    if find_spec("matplotlib") is None or find_spec("scipy") is None:
        print("capstan bench: what judges and draws is not installed: pip install 'capstan[bench]'", file=sys.stderr)
        return 1
    os.execv(sys.executable, [sys.executable, "-m", "capstan_runtime.bench.cli", *arguments])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="capstan", description="Trains and serves models on Kubernetes and does not lose steps."
    )
    parser.add_argument("--version", action="version", version=f"capstan {version('capstan')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_local(commands)
    _add_bench(commands)
    _add_doctor(commands)
    # Listed for --help only; main() hands their arguments on unread.
    for name, (_, summary) in _OF_RUNTIME.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser(
        "run",
        help="run the operator until it is stopped",
        description="Runs the operator. Several replicas may run; one acts, the others take over when it is gone.",
    )
    run.add_argument("--kubeconfig", type=Path, help="default: $KUBECONFIG, the pod's account, ~/.kube/config")
    run.add_argument("--context", help="context of the kubeconfig; default: its current one")
    run.add_argument("--namespace", type=_namespace, help="look after the objects of this namespace only")
    run.add_argument("--host", default="127.0.0.1", help="address of /metrics, /healthz, /readyz and /hint")
    run.add_argument("--port", type=_port, default=8080, help="port of the same; 0 takes a free one (default 8080)")
    run.add_argument("--url", type=_url, help="URL under which pods reach that port; left out: they are polled only")
    run.add_argument("--flax-image", help="image of Flax workers that name none")
    run.add_argument("--deepspeed-image", help="image of DeepSpeed workers that name none")
    run.add_argument("--serve-image", help="image of InferenceServices that name none")
    run.add_argument("--bench-image", help="image of Benchmarks' reports, and of their load and other work on any CPU")
    run.add_argument(
        "--allow-chaos",
        action="store_true",
        help="inject the faults of spec.chaos in namespaces labelled capstan.dev/chaos=allowed",
    )
    run.add_argument(
        "--allow-host-path",
        action="store_true",
        help="let specs name folders of the nodes (hostPath), as a store or in a podPatch; left out: they are refused",
    )
    run.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    run.set_defaults(call=_run)


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bench = commands.add_parser(
        "bench",
        help="run a Benchmark; show, compare and judge results",
        description="Exit codes: 0 passed, improved, or done; 3 regressed; 4 inconclusive; 1 it could not be done; "
        "2 wrong usage.",
    )
    actions = bench.add_subparsers(title="commands", required=True, metavar="COMMAND")
    text = "apply a Benchmark, follow it to its end, and exit with its verdict"
    run = actions.add_parser("run", help=text, description=f"{text[0].upper()}{text[1:]}.")
    run.add_argument("file", type=Path, metavar="FILE", help="YAML with one Benchmark, and the claims it needs")
    run.add_argument("--kubeconfig", type=Path, help="default: $KUBECONFIG, the pod's account, ~/.kube/config")
    run.add_argument("--context", help="context of the kubeconfig; default: its current one")
    run.add_argument("-n", "--namespace", type=_namespace, help="default: that of the file, else of the context")
    run.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="stop looking after so long; it goes on")
    run.add_argument("--output", type=Path, metavar="FOLDER", help="bring the reports there")
    run.add_argument("--rerun", action="store_true", help="one that has ended is deleted, and measured anew")
    run.set_defaults(call=_bench_run)
    # Listed for --help only; main() hands their arguments on unread.
    for name, description in _OF_RESULTS.items():
        actions.add_parser(name, help=description, add_help=False)


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "look at a cluster: what is right, what is wrong, and what to do"
    doctor = commands.add_parser(
        "doctor",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. It writes nothing, and needs no rights but yours: what they do not "
        "show is skipped, with the right that would. Exit codes: 0 nothing failed; 1 something did, or the API server "
        "cannot be asked; 2 wrong usage.",
    )
    doctor.add_argument("--kubeconfig", type=Path, help="default: $KUBECONFIG, the pod's account, ~/.kube/config")
    doctor.add_argument("--context", help="context of the kubeconfig; default: its current one")
    doctor.add_argument(
        "-n", "--namespace", type=_namespace, help="look at the objects of this namespace only; default: at all"
    )
    doctor.add_argument("-o", "--output", choices=["text", "json"], default="text", help="json is for machines")
    doctor.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="give up after so long (default 60)"
    )
    doctor.set_defaults(call=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from capstan_operator.doctor import command

    return command.main(options)


def _bench_run(options: argparse.Namespace) -> int:
    from capstan_operator import bench_run

    return bench_run.main(options)


def _namespace(text: str) -> str:
    if len(text) > 63 or re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", text) is None:  # RFC 1123, as Kubernetes has it
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be a namespace; give 1 to 63 of a-z, 0-9 and -, with a letter or digit first and last"
        )
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_one = False
    if not is_one or re.search(r"\s", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no URL; give http://HOST:PORT, as pods reach it")
    return text


def _seconds(text: str) -> float:
    seconds = _number(float, text, "a number of seconds")
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _port(text: str) -> int:
    port = _number(int, text, "a port; choose 0 to 65535")
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not a port; choose 0 to 65535")
    return port


def _count(text: str) -> int:
    count = _number(int, text, "a whole number")
    if count < 0:
        raise argparse.ArgumentTypeError(f"{count} is below 0")
    return count


def _positive(text: str) -> int:
    count = _number(int, text, "a whole number")
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is below 1")
    return count


def _number(kind: Callable[[str], Number], text: str, what: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None


def _run(options: argparse.Namespace) -> int:
    from capstan_operator.observe import OperatorSettings
    from capstan_operator.run import RunSettings
    from capstan_operator.run import main as run_operator

    chosen = {
        "flax_image": options.flax_image,
        "deepspeed_image": options.deepspeed_image,
        "serve_image": options.serve_image,
        "bench_image": options.bench_image,
        "operator_url": options.url,
        "allow_chaos": options.allow_chaos,
        "allow_host_path": options.allow_host_path,
    }
    settings = RunSettings(
        kubeconfig=options.kubeconfig,
        context=options.context,
        namespace=options.namespace,
        http_host=options.host,
        http_port=options.port,
        operator=OperatorSettings(**{name: value for name, value in chosen.items() if value is not None}),
    )
    return run_operator(settings, log_level=options.log_level)


def _add_local(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    local = commands.add_parser(
        "local",
        help="a Kubernetes cluster on this machine, without Docker",
        description="An API server and a node that runs containers as processes, with the operator on it.",
    )
    actions = local.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, description in (
        ("up", "start it in the background and wait until it is ready; does nothing when it is"),
        ("down", "stop it; its state stays for the next `up`"),
        ("status", "say whether it runs and where; exit code 1 when it does not"),
        ("serve", "run it in the foreground, without installing anything on it"),
        ("node", "join this machine to another cluster as a node that runs pods as processes"),
    ):
        action = actions.add_parser(name, help=description, description=description)
        action.add_argument("--home", type=Path, default=DEFAULT_HOME, help="folder of its state (default ~/.capstan)")
        if name in ("up", "serve"):
            action.add_argument(
                "--port",
                type=_port,
                default=0,
                help="of the API server; default: that of the last start, or a free one",
            )
            default = None if name == "up" else 1
            action.add_argument("--nodes", type=_positive, default=default, help="nodes on this machine (default 1)")
        if name in ("up", "serve", "node"):
            action.add_argument("--gpus", type=_count, help="GPUs to offer; default: what nvidia-smi lists")
        if name == "up":
            action.add_argument(
                "--allow-chaos",
                action="store_true",
                help="inject faults where a namespace is labelled capstan.dev/chaos=allowed",
            )
        if name == "node":
            action.add_argument("--kubeconfig", type=Path, required=True, help="the cluster to join")
            action.add_argument("--name", help="name of the node; default: this machine's host name")
        action.set_defaults(call=_local, action=name)


def _local(options: argparse.Namespace) -> int:
    if find_spec("cryptography") is None:
        print("capstan local: the embedded cluster is not installed: pip install 'capstan[local]'", file=sys.stderr)
        return 1
    from capstan_operator import local_cluster

    return local_cluster.main(options)
