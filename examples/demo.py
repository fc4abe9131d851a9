"""`make demo`: starts the embedded cluster, trains the examples on it, and shows what happens while it happens.

Everything here can be done by hand with kubectl; each step says how.
"""

import asyncio
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from capstan_local.client import Access, ApiError, Client, Resource, Unreachable

HOME = Path.home() / ".capstan"
KUBECONFIG = HOME / "kubeconfig"
EXAMPLES = Path(__file__).resolve().parent
NAMESPACE = "default"
JOBS = Resource("capstan.dev", "v1alpha1", "trainingjobs")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
DIGITS = ("digits-flax", "digits-deepspeed")
WANTED_ACCURACY = 0.97

REMOVAL_SECONDS = 60.0
TRAINING_SECONDS = 600.0
REDRAW_SECONDS = 0.5
QUIET_REDRAW_SECONDS = 5.0
"""Between two tables when the output is a file, where the last one cannot be painted over."""

Object = dict[str, Any]


class DemoFailed(Exception):
    """Something did not go as promised; the message says what to look at."""


def say(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}==> {text}{plain}", flush=True)


def capstan(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "capstan_operator", *arguments], check=True)


def cluster_is_up() -> bool:
    quiet = subprocess.DEVNULL
    done = subprocess.run([sys.executable, "-m", "capstan_operator", "local", "status"], stdout=quiet, stderr=quiet)
    return done.returncode == 0


async def remove_earlier(client: Client, names: Sequence[str]) -> None:
    """Deletes what an earlier demo left, and waits until it is gone."""
    for resource in (JOBS, CLAIMS):
        for name in names:
            await client.delete(resource, (NAMESPACE, name))
    deadline = time.monotonic() + REMOVAL_SECONDS
    for resource in (JOBS, CLAIMS):
        for name in names:
            while await exists(client, resource, name):
                if time.monotonic() > deadline:
                    raise DemoFailed(
                        f"{resource.plural} {name} of an earlier demo is still there; see kubectl describe"
                    )
                await asyncio.sleep(0.2)


async def exists(client: Client, resource: Resource, name: str) -> bool:
    try:
        await client.get(resource, name, NAMESPACE)
    except ApiError as error:
        if error.code == 404:
            return False
        raise
    return True


async def apply_example(client: Client, name: str) -> None:
    for document in yaml.safe_load_all((EXAMPLES / name / "job.yaml").read_text()):
        document["metadata"]["namespace"] = NAMESPACE
        await client.create(JOBS if document["kind"] == "TrainingJob" else CLAIMS, document)


def bar(percent: int | None, width: int = 20) -> str:
    filled = round(width * (percent or 0) / 100)
    return "█" * filled + "░" * (width - filled)


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


COLUMNS = (
    ("JOB", -18),
    ("PHASE", -11),
    ("PROGRESS", -21),
    ("STEP", 9),
    ("LOSS", 8),
    ("ACCURACY", 9),
    ("SAMPLES/S", 10),
)


def table(jobs: Sequence[Object]) -> list[str]:
    """One line per job, under a heading."""
    rows = [(*(name for name, _ in COLUMNS), "CHECKPOINT"), *(row(job) for job in jobs)]
    widths = [width for _, width in COLUMNS]
    return [
        " ".join(
            cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, width in zip(cells, widths, strict=False)
        )
        + f"  {cells[-1]}"
        for cells in rows
    ]


def row(job: Object) -> tuple[str, ...]:
    status = job.get("status", {})
    metrics = status.get("metrics", {})
    restarts = status.get("restarts", {}).get("total", 0)
    return (
        job["metadata"]["name"],
        status.get("phase") or "Pending",
        bar(status.get("percent")),
        f"{status.get('step', 0)}/{status['steps']}" if status.get("steps") else "",
        number(metrics.get("loss"), 4),
        number(metrics.get("accuracy"), 3),
        number(metrics.get("samples_per_second"), 0),
        status.get("checkpoint", {}).get("summary", "") + (f"  {restarts} restarts" if restarts else ""),
    )


def paint(lines: Sequence[str], shown: Sequence[str]) -> None:
    """On a terminal the new table over the old one; in a file only the lines that changed."""
    if not sys.stdout.isatty():
        print("\n".join(line for line in lines if line not in shown), flush=True)
        return
    width = shutil.get_terminal_size().columns
    up = f"\033[{len(shown)}A" if shown else ""
    print(up + "\n".join(f"\033[2K{line[:width]}" for line in lines), flush=True)


async def watch(client: Client, names: Sequence[str]) -> list[Object]:
    """The jobs once all have ended; paints their progress until then. Raises DemoFailed when one fails."""
    is_terminal = sys.stdout.isatty()
    deadline = time.monotonic() + TRAINING_SECONDS
    shown: list[str] = []
    while True:
        jobs = [await client.get(JOBS, name, NAMESPACE) for name in names]
        phases = [job.get("status", {}).get("phase") for job in jobs]
        lines = table(jobs)
        if lines != shown:
            paint(lines, shown)
            shown = lines
        if all(phase in ("Succeeded", "Failed", "Invalid") for phase in phases):
            break
        if time.monotonic() > deadline:
            raise DemoFailed(f"{', '.join(names)}: not done after {TRAINING_SECONDS:.0f} s; see kubectl describe tj")
        await asyncio.sleep(REDRAW_SECONDS if is_terminal else QUIET_REDRAW_SECONDS)
    for job, phase in zip(jobs, phases, strict=True):
        if phase != "Succeeded":
            raise DemoFailed(f"{job['metadata']['name']} is {phase}: {job['status'].get('message')}")
    return jobs


async def print_table(client: Client) -> None:
    """What `kubectl get trainingjobs` prints: the API server's own table."""
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    async with client.session.get(JOBS.path(NAMESPACE), headers=accept) as response:
        answer = await response.json()
    shown = [index for index, column in enumerate(answer["columnDefinitions"]) if column.get("priority", 0) == 0]
    rows = [[answer["columnDefinitions"][index]["name"].upper() for index in shown]]
    rows += [
        ["" if row["cells"][index] is None else str(row["cells"][index]) for index in shown] for row in answer["rows"]
    ]
    widths = [max(len(row[column]) for row in rows) + 3 for column in range(len(shown))]
    for row in rows:
        print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


async def train_digits(client: Client) -> None:
    say("Training a CNN on the UCI handwritten digits, with Flax and with DeepSpeed, two workers each")
    for name in DIGITS:
        print(f"    kubectl apply -f examples/{name}/")
        await apply_example(client, name)
    started = time.monotonic()
    jobs = await watch(client, DIGITS)
    say(f"Both succeeded after {time.monotonic() - started:.0f} s:  kubectl get trainingjobs")
    await print_table(client)
    for job in jobs:
        accuracy = job["status"]["metrics"]["accuracy"]
        print(f"    {job['metadata']['name']}: {accuracy:.1%} of the held-out digits are read right")
        if accuracy < WANTED_ACCURACY:
            raise DemoFailed(f"{job['metadata']['name']}: accuracy {accuracy:.3f} is below {WANTED_ACCURACY}")


async def train_text(client: Client) -> None:
    say("Training a small language model on the sources of Python's standard library, byte by byte")
    print("    kubectl apply -f examples/text-flax/")
    await apply_example(client, "text-flax")
    (job,) = await watch(client, ["text-flax"])
    loss = job["status"]["metrics"]["loss"]
    print(f"    Loss fell from {math.log(256):.2f}, which is guessing, to {loss:.2f} (nats per byte)")


def say_what_next() -> None:
    say("The cluster is still up. Look further:")
    print(f"    export KUBECONFIG={KUBECONFIG}")
    for command, meaning in (
        ("kubectl describe tj digits-flax", "conditions, checkpoint, events"),
        ("kubectl logs digits-flax-worker-0", "what the trainer said"),
        ("kubectl get tj digits-flax -o yaml", "the whole status"),
        ("capstan checkpoint ls ~/.capstan", "every checkpoint and its digest (in .venv/bin)"),
        ("make demo-down", "stop everything"),
    ):
        print(f"    {command:<38}# {meaning}")


async def run() -> None:
    async with Client(Access.from_kubeconfig(KUBECONFIG)) as client:
        await remove_earlier(client, (*DIGITS, "text-flax"))
        await train_digits(client)
        await train_text(client)
    say_what_next()


def main() -> int:
    started = time.monotonic()
    was_up = True  # until we know better: what we did not start we do not stop
    try:
        was_up = cluster_is_up()
        say("The embedded cluster is up already" if was_up else "Starting the embedded cluster:  capstan local up")
        capstan("local", "up")
        asyncio.run(run())
    except subprocess.CalledProcessError:
        return 1  # the command has said why
    except (DemoFailed, ApiError, Unreachable) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if not was_up:
            say("Interrupted: stopping the cluster this demo started")
            capstan("local", "down")
        return 130
    print(f"\nDone in {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
