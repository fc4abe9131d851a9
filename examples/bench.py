"""`make demo-bench`: runs every example Benchmark on the embedded cluster, one after the other, with a live table.

Everything here can be done by hand with kubectl; each step says how. Nothing is opened: at the end it says where each
report is. The exit code is 0 when all have succeeded, and the change in `bench-regression` was called a regression, or
Inconclusive, which a noisy machine may make of it, and which is said.
`--keep` writes the reports beside their manifests, `examples/bench-*/report/`, without the machine's name.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live import (
    BENCHMARKS,
    CLAIMS,
    EXAMPLES,
    HOME,
    QUIET_REDRAW_SECONDS,
    REDRAW_SECONDS,
    Columns,
    ExampleFailed,
    Object,
    apply,
    bar,
    capstan,
    cluster_is_up,
    paint,
    print_table,
    read_example,
    remove_earlier,
    say,
    table,
)

from capstan_local.client import VOLUMES, Access, ApiError, Client, Unreachable
from capstan_runtime.bench.reports.html import page
from capstan_runtime.bench.reports.markdown import markdown
from capstan_runtime.bench.result import BenchmarkResult

NAMESPACE = "default"
LONGEST_SECONDS = 900.0
"""For one Benchmark, on a machine that has other things to do."""
ENDS = ("Succeeded", "Failed", "Invalid")
LARGEST_REPORT = 400_000
"""Bytes of a file that is kept beside its manifest."""
VERDICTS = {"after": "Regressed"}
"""What is so of the Benchmarks that are compared with another: a verdict may leave it open, but not deny it."""

COLUMNS: Columns = (
    ("BENCHMARK", -25),
    ("WORKLOAD", -13),
    ("PHASE", -10),
    ("PROGRESS", -17),
    ("RUNS", 6),
    ("SECONDS", 7),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A Benchmark that has ended, and where its report is on this machine."""

    name: str
    example: str
    benchmark: Object
    folder: Path
    seconds: float


def examples() -> list[str]:
    """Names of the folders that hold Benchmarks."""
    return sorted(path.name for path in EXAMPLES.glob("bench-*") if any(path.glob("*.yaml")))


def row(name: str, benchmark: Object, seconds: float) -> tuple[str, ...]:
    status = benchmark.get("status", {})
    progress, running = status.get("progress", {}), status.get("running") or {}
    percent = round(100 * progress.get("done", 0) / progress["total"]) if progress.get("total") else None
    told = " ".join(filter(None, (status.get("verdict"), status.get("result")))) or (
        " ".join(filter(None, (running.get("trial"), running.get("case")))) or status.get("message", "")
    )
    return (
        name,
        next(iter(benchmark["spec"]["workload"])),
        status.get("phase") or "Pending",
        bar(percent, 16),
        progress.get("summary", ""),
        f"{seconds:.0f}",
        told,
    )


async def measure(client: Client, example: str) -> list[Ended]:
    """Applies all manifests of an example, one after the other, and waits for each Benchmark. Raises ExampleFailed when
    one does not succeed."""
    ended = []
    for file in sorted(path.name for path in (EXAMPLES / example).glob("*.yaml")):
        print(f"    kubectl apply -f examples/{example}/{file}")
        documents = read_example(example, file)
        await apply(client, NAMESPACE, documents)
        for document in (one for one in documents if one["kind"] == "Benchmark"):
            ended.append(await watch(client, example, document["metadata"]["name"]))
    return ended


async def watch(client: Client, example: str, name: str) -> Ended:
    started = time.monotonic()
    is_terminal = sys.stdout.isatty()
    shown: list[str] = []
    while True:
        benchmark = await client.get(BENCHMARKS, name, NAMESPACE)
        seconds = time.monotonic() - started
        phase = benchmark.get("status", {}).get("phase")
        lines = table(COLUMNS, "RUN UNDER WAY, THEN RESULT", [row(name, benchmark, seconds)])
        if lines != shown:
            paint(lines, shown)
            shown = lines
        if phase in ENDS:
            break
        if seconds > LONGEST_SECONDS:
            raise ExampleFailed(f"{name}: not done after {LONGEST_SECONDS:.0f} s; see kubectl describe bm {name}")
        await asyncio.sleep(REDRAW_SECONDS if is_terminal else QUIET_REDRAW_SECONDS)
    if phase != "Succeeded":
        raise ExampleFailed(f"{name} is {phase}: {benchmark['status'].get('message')}")
    return Ended(name, example, benchmark, await report_folder(client, benchmark), seconds)


async def report_folder(client: Client, benchmark: Object) -> Path:
    """Where the report is on this machine: in the folder that the embedded cluster made for the claim."""
    claim = await client.get(CLAIMS, benchmark["spec"]["results"]["store"]["claim"]["name"], NAMESPACE)
    volume = await client.get(VOLUMES, claim["spec"]["volumeName"])
    metadata = benchmark["metadata"]
    return Path(volume["spec"]["hostPath"]["path"], NAMESPACE, metadata["name"], metadata["uid"])


def keep(ended: Ended) -> None:
    """Writes the report beside its manifest, as it would be had the machine no name."""
    result = BenchmarkResult.model_validate_json((ended.folder / "result.json").read_bytes())
    nameless = [one.model_copy(update={"node": ""}) for one in result.environments]
    result = result.model_copy(update={"environments": tuple(nameless)})
    if result.baseline is not None and result.baseline.environment is not None:
        environment = result.baseline.environment.model_copy(update={"node": ""})
        result = result.model_copy(update={"baseline": result.baseline.model_copy(update={"environment": environment})})
    kept = {
        "result.json": result.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n",
        "report.md": markdown(result),
        "report.html": page(result),
    }
    folder = EXAMPLES / ended.example / "report"
    folder.mkdir(exist_ok=True)
    for name, text in kept.items():
        if len(text.encode()) > LARGEST_REPORT:
            raise ExampleFailed(f"{ended.name}: {name} has {len(text.encode())} bytes, at most {LARGEST_REPORT}")
        (folder / name).write_text(text)
    print(f"    kept in {folder.relative_to(EXAMPLES.parent)}")


def judge(ended: Sequence[Ended]) -> None:
    """Says where a machine was too noisy for a verdict. Raises ExampleFailed when one is wrong, or missing."""
    for one in ended:
        verdict, wanted = one.benchmark["status"].get("verdict"), VERDICTS.get(one.name)
        if wanted is None or verdict == wanted:
            continue
        reason = one.benchmark["status"].get("verdictReason")
        if verdict == "Inconclusive":
            print(f"    {one.name} is Inconclusive: this machine is too noisy now to see that it is {wanted}: {reason}")
        else:
            raise ExampleFailed(f"{one.name} is called {verdict} and not {wanted}: {reason}")


async def run(chosen: Sequence[str], is_kept: bool) -> None:
    async with Client(Access.from_kubeconfig(HOME / "kubeconfig")) as client:
        ended: list[Ended] = []
        for example in chosen:
            files = sorted(path.name for path in (EXAMPLES / example).glob("*.yaml"))
            documents: list[dict[str, Any]] = [one for file in files for one in read_example(example, file)]
            say(example)
            await remove_earlier(client, NAMESPACE, documents)
            found = await measure(client, example)
            if is_kept:
                keep(found[-1])
            ended += found
        say("What was measured:  kubectl get benchmarks")
        await print_table(client, BENCHMARKS, NAMESPACE)
        say("The reports")
        for one in ended:
            print(f"    {one.name:<25} {one.seconds:4.0f} s  {one.folder / 'report.html'}")
        judge(ended)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help=f"any of {', '.join(examples())}; default: all")
    parser.add_argument("--keep", action="store_true", help="write the reports to examples/bench-*/report/")
    options = parser.parse_args()
    unknown = sorted(set(options.examples) - set(examples()))
    if unknown:
        parser.error(f"unknown example {unknown[0]}; choose from {', '.join(examples())}")
    started = time.monotonic()
    was_up = True  # until we know better: what we did not start we do not stop
    try:
        was_up = cluster_is_up()
        say("The embedded cluster is up already" if was_up else "Starting the embedded cluster:  capstan local up")
        capstan("local", "up")
        asyncio.run(run(options.examples or examples(), options.keep))
    except subprocess.CalledProcessError:
        return 1  # the command has said why
    except (ExampleFailed, ApiError, Unreachable) as error:
        print(f"\ndemo-bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if not was_up:
            say("Interrupted: stopping the cluster this demo started")
            capstan("local", "down")
        return 130
    print(f"\nDone in {time.monotonic() - started:.0f} s. The cluster is still up; make demo-down stops it.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
