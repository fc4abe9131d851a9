"""What the examples' programs share: the embedded cluster, live tables, and what they print."""

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from capstan_local.client import ApiError, Client, Resource

HOME = Path.home() / ".capstan"
EXAMPLES = Path(__file__).resolve().parent
JOBS = Resource("capstan.dev", "v1alpha1", "trainingjobs")
SERVICES = Resource("capstan.dev", "v1alpha1", "inferenceservices")
BENCHMARKS = Resource("capstan.dev", "v1alpha1", "benchmarks")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
KINDS = {
    "Benchmark": BENCHMARKS,
    "InferenceService": SERVICES,
    "TrainingJob": JOBS,
    "RoleBinding": Resource("rbac.authorization.k8s.io", "v1", "rolebindings"),
    "Role": Resource("rbac.authorization.k8s.io", "v1", "roles"),
    "ServiceAccount": Resource("", "v1", "serviceaccounts"),
    "PersistentVolumeClaim": CLAIMS,
}
"""In the order in which they are removed: who uses something goes before it."""

REMOVAL_SECONDS = 60.0
TRAINING_SECONDS = 900.0
REDRAW_SECONDS = 0.5
QUIET_REDRAW_SECONDS = 5.0
"""Between two tables when the output is a file, where the last one cannot be painted over."""

Object = dict[str, Any]


class ExampleFailed(Exception):
    """Something did not go as promised; the message says what to look at."""


def say(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}==> {text}{plain}", flush=True)


def capstan(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "capstan_operator", *arguments], check=True)


def cluster_is_up(home: Path = HOME) -> bool:
    command = [sys.executable, "-m", "capstan_operator", "local", "status", "--home", str(home)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


async def remove_earlier(client: Client, namespace: str, documents: Sequence[Object]) -> None:
    """Deletes what an earlier run left of these objects, and waits until it is gone."""
    named = {(document["kind"], document["metadata"]["name"]) for document in documents}
    found = [(resource, name) for kind, resource in KINDS.items() for of, name in sorted(named) if of == kind]
    for resource, name in found:
        await client.delete(resource, (namespace, name))
    deadline = time.monotonic() + REMOVAL_SECONDS
    for resource, name in found:
        while await exists(client, resource, namespace, name):
            if time.monotonic() > deadline:
                raise ExampleFailed(f"{resource.plural} {name} of an earlier run is still there; see kubectl describe")
            await asyncio.sleep(0.2)


async def exists(client: Client, resource: Resource, namespace: str, name: str) -> bool:
    try:
        await client.get(resource, name, namespace)
    except ApiError as error:
        if error.code == 404:
            return False
        raise
    return True


def read_example(name: str, file: str = "job.yaml") -> list[Object]:
    """The objects of an example's manifest."""
    documents: list[Object] = list(yaml.safe_load_all((EXAMPLES / name / file).read_text()))
    return documents


async def apply(client: Client, namespace: str, documents: Sequence[Object]) -> None:
    """As `kubectl apply --server-side` does: what is not there is made, what is there becomes as it is written here."""
    for document in documents:
        document["metadata"]["namespace"] = namespace
        await client.request(
            "PATCH",
            KINDS[document["kind"]].path(namespace, document["metadata"]["name"]),
            document,
            params={"fieldManager": "kubectl", "force": "true"},
            content_type="application/apply-patch+yaml",
        )


async def print_table(client: Client, resource: Resource, namespace: str) -> None:
    """What `kubectl get` prints: the API server's own table."""
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    async with client.session.get(resource.path(namespace), headers=accept) as response:
        answer = await response.json()
    shown = [index for index, column in enumerate(answer["columnDefinitions"]) if column.get("priority", 0) == 0]
    rows = [[answer["columnDefinitions"][index]["name"].upper() for index in shown]]
    rows += [
        ["" if row["cells"][index] is None else str(row["cells"][index]) for index in shown] for row in answer["rows"]
    ]
    widths = [max(len(row[column]) for row in rows) + 3 for column in range(len(shown))]
    for row in rows:
        print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def bar(percent: int | None, width: int = 20) -> str:
    filled = round(width * (percent or 0) / 100)
    return "█" * filled + "░" * (width - filled)


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


Columns = Sequence[tuple[str, int]]
"""Names and widths; a negative one aligns to the left."""

JOB_COLUMNS: Columns = (
    ("JOB", -18),
    ("PHASE", -11),
    ("PROGRESS", -21),
    ("STEP", 9),
    ("LOSS", 8),
    ("ACCURACY", 9),
    ("SAMPLES/S", 10),
)


def table(columns: Columns, last: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows under a heading; the column `last` has no width."""
    return [
        " ".join(
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, (_, width) in zip(cells, columns, strict=False)
        )
        + f"  {cells[-1]}"
        for cells in ((*(name for name, _ in columns), last), *rows)
    ]


def row(job: Object) -> tuple[str, ...]:
    status = job.get("status", {})
    metrics = status.get("metrics", {})
    restarts, injected = status.get("restarts", {}).get("total", 0), status.get("injected") or []
    return (
        job["metadata"]["name"],
        status.get("phase") or "Pending",
        bar(status.get("percent")),
        f"{status.get('step', 0)}/{status['steps']}" if status.get("steps") else "",
        number(metrics.get("loss"), 4),
        number(metrics.get("accuracy"), 3),
        number(metrics.get("samples_per_second"), 0),
        "  ".join(
            [
                status.get("checkpoint", {}).get("summary", ""),
                *([f"{restarts} restarts"] if restarts else []),
                *([f"newest fault: {injected[-1]['name']}"] if injected else []),
            ]
        ),
    )


def paint(lines: Sequence[str], shown: Sequence[str]) -> None:
    """On a terminal the new table over the old one; in a file only the lines that changed."""
    if not sys.stdout.isatty():
        print("\n".join(line for line in lines if line not in shown), flush=True)
        return
    width = shutil.get_terminal_size().columns
    up = f"\033[{len(shown)}A" if shown else ""
    print(up + "\n".join(f"\033[2K{line[:width]}" for line in lines), flush=True)


async def watch(client: Client, namespace: str, names: Sequence[str]) -> list[Object]:
    """The jobs once all have ended; paints their progress until then. Raises ExampleFailed when one fails."""
    is_terminal = sys.stdout.isatty()
    deadline = time.monotonic() + TRAINING_SECONDS
    shown: list[str] = []
    while True:
        jobs = [await client.get(JOBS, name, namespace) for name in names]
        phases = [job.get("status", {}).get("phase") for job in jobs]
        lines = table(JOB_COLUMNS, "CHECKPOINT", [row(job) for job in jobs])
        if lines != shown:
            paint(lines, shown)
            shown = lines
        if all(phase in ("Succeeded", "Failed", "Invalid") for phase in phases):
            break
        if time.monotonic() > deadline:
            raise ExampleFailed(f"{', '.join(names)}: not done after {TRAINING_SECONDS:.0f} s; see kubectl describe tj")
        await asyncio.sleep(REDRAW_SECONDS if is_terminal else QUIET_REDRAW_SECONDS)
    for job, phase in zip(jobs, phases, strict=True):
        if phase != "Succeeded":
            raise ExampleFailed(f"{job['metadata']['name']} is {phase}: {job['status'].get('message')}")
    return jobs
