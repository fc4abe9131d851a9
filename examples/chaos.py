"""`make chaos`: the digits are trained under a storm of faults, beside a twin that is left in peace, and compared.

For each framework `examples/chaos-<framework>/job.yaml` is applied as it is, and again as `…-twin` with no fault but
the NaN: after it a batch is left out of the data for good, and a run that has seen that batch would be another run.
Then the story of the storm is told from its status, and the two runs are compared at every checkpoint. Until the size
of the world or of the micro-batches changes for the first time, which may change the order of additions, they must
agree to the last bit; after that, the losses must be the same within LOSS_TOLERANCE. The exit code is 1 when anything
is not as promised.
"""

import argparse
import asyncio
import copy
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from live import (
    CLAIMS,
    HOME,
    ExampleFailed,
    Object,
    apply,
    capstan,
    read_example,
    remove_earlier,
    say,
    watch,
)

from capstan_local.client import NAMESPACES, VOLUMES, Access, ApiError, Client, Unreachable

FRAMEWORKS = ("flax", "deepspeed")
NAMESPACE = "chaos"
CONSENT = {"capstan.dev/chaos": "allowed"}
TWINS_FAULT = "NaN"
LOSS_TOLERANCE = 0.01
"""Relative, of the loss at a checkpoint. Adding in another order changes digits from the fifth or so on; a lost,
repeated or reordered batch changes the first or second."""
CHANGES_ADDITION = {"GpuOutOfMemory"}
"""Causes of recoveries after which micro-batches are smaller."""


@dataclass(frozen=True, slots=True)
class Save:
    """One committed checkpoint of a run."""

    step: int
    loss: float
    logical: str
    """Digest of its tensors."""


async def prepare(client: Client, frameworks: Sequence[str]) -> None:
    """The namespace that consents, and nothing in it that an earlier storm left."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": CONSENT}}
    try:
        await client.create(NAMESPACES, namespace)
    except ApiError as error:
        if error.code != 409:
            raise
        await client.patch(NAMESPACES, ("", NAMESPACE), {"metadata": {"labels": CONSENT}})
    documents = [document for framework in frameworks for document in read_example(f"chaos-{framework}")]
    await remove_earlier(client, NAMESPACE, [*documents, *twin_of(documents)])


def twin_of(documents: Sequence[Object]) -> list[Object]:
    """The same job under another name, with no fault but the one that changes the data."""
    twin = copy.deepcopy(list(documents))
    for document in twin:
        document["metadata"]["name"] += "-twin"
        if document["kind"] == "TrainingJob":
            spec = document["spec"]
            spec["checkpoint"]["store"]["claim"]["name"] += "-twin"
            spec["chaos"] = [fault for fault in spec["chaos"] if fault["fault"] == TWINS_FAULT]
    return twin


async def run_storm(client: Client, framework: str) -> None:
    """Raises ExampleFailed when the storm was not survived as promised."""
    name = f"chaos-{framework}"
    documents = read_example(name)
    say(f"A storm of {len(documents[-1]['spec']['chaos'])} faults over {name}, and its twin in peace")
    print(f"    kubectl -n {NAMESPACE} apply -f examples/{name}/")
    await apply(client, NAMESPACE, documents)
    await apply(client, NAMESPACE, twin_of(documents))
    started = time.monotonic()
    storm, twin = await watch(client, NAMESPACE, [name, f"{name}-twin"])
    say(f"Both succeeded after {time.monotonic() - started:.0f} s. What happened to {name}, from its status:")
    for line in story(storm["status"]):
        print(f"    {line}")
    problems = [*missing_faults(storm), *restarts_from_nothing(storm["status"])]
    say(f"The loss of {name} at its checkpoints, beside its twin's")
    problems += compare(storm["status"], await saves_of(client, name), await saves_of(client, f"{name}-twin"))
    problems += different_skips(storm["status"], twin["status"])
    if problems:
        raise ExampleFailed("\n       ".join([f"{name} did not survive the storm unchanged:", *problems]))


# the story


def story(status: Object) -> Iterator[str]:
    """What was injected and what was done about it, in the order in which it happened."""
    began = _seconds(status["firstStepAt"])
    lines: list[tuple[float, str]] = []
    for fault in status["injected"]:
        what = f"{fault['fault']} on rank {fault['rank']} after step {fault['step']} ({fault['name']})"
        lines.append((_seconds(fault["at"]), what))
    for record in status["recoveries"]:
        lines.append((_seconds(record.get("recoveredAt", record["at"])), recovery(record)))
    lines += [(_seconds(status["finishedAt"]), f"all {status['steps']} steps are done")]
    for at, line in sorted(lines):
        yield f"{at - began:7.1f} s  {line}"
    goodput = status.get("goodput", {})
    spent = ", ".join(f"{name} {value:.0f}" for name, value in goodput.get("seconds", {}).items() if value >= 0.5)
    yield f"{goodput.get('percent', '')} of the time made steps that stayed. Seconds: {spent}"


def recovery(record: Object) -> str:
    if "recoveredAt" not in record:
        return f"  -> {record['sentence']}: that attempt made no step"
    taken = [f"{name} {value:.1f}" for name, value in record["seconds"].items() if name != "total" and value >= 0.05]
    world = f"{record.get('worldBefore', '?')} -> {record['worldAfter']} ranks"
    lost = record.get("stepsLost", "an unknown number of")
    source = f" from {record['source'].lower()}, {lost} steps lost" if "source" in record else ""
    return (
        f"  -> {record['cause']}: {record['action']}, {world}, at step {record['step']}{source}, after "
        f"{record['seconds']['total']:.1f} s ({', '.join(taken)})"
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# what must hold


def missing_faults(storm: Object) -> list[str]:
    """Every fault must have been injected, or the storm proves nothing."""
    injected = {entry["name"] for entry in storm["status"]["injected"]}
    return [f"{fault['name']} was not injected" for fault in storm["spec"]["chaos"] if fault["name"] not in injected]


def restarts_from_nothing(status: Object) -> list[str]:
    """Every fault comes after the first checkpoint, so nothing may ever start from step 0 again."""
    return [
        f"attempt {record['fence']} started from step 0"
        for record in status["recoveries"]
        if "recoveredAt" in record and record["step"] == 0
    ]


def different_skips(storm: Object, twin: Object) -> list[str]:
    if storm.get("skips") == twin.get("skips"):
        return []
    return [f"batches left out: {storm.get('skips')}, by the twin {twin.get('skips')}"]


async def saves_of(client: Client, name: str) -> dict[int, Save]:
    """The run's checkpoints by step; of two of one step the newer one. As `capstan checkpoint ls` lists them."""
    claim = await client.get(CLAIMS, name, NAMESPACE)
    volume = await client.get(VOLUMES, claim["spec"]["volumeName"])
    folder = volume["spec"]["hostPath"]["path"]
    command = [sys.executable, "-m", "capstan_operator", "checkpoint", "ls", folder, "--output", "json"]
    listed = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    if not listed.stdout:
        raise ExampleFailed(f"{' '.join(command)}: {listed.stderr.strip()}")
    stores = json.loads(listed.stdout)["stores"]
    found = [entry for store in stores for entry in store["checkpoints"] if entry["condition"] == "Committed"]
    return {
        entry["step"]: Save(entry["step"], entry["metrics"]["loss"], entry["logical"])
        for entry in sorted(found, key=lambda entry: entry["createdAt"])
    }


def compare(storm: Object, ours: dict[int, Save], twins: dict[int, Save]) -> list[str]:
    """Prints the two curves; what of them is not as it must be."""
    exact_until = last_exact_step(storm)
    problems = [f"no checkpoint of step {step} in both runs" for step in sorted(ours.keys() ^ twins.keys())]
    print(f"    {'STEP':>6} {'LOSS':>12} {'TWIN':>12} {'DIFFERENCE':>11}")
    for step in sorted(ours.keys() & twins.keys()):
        our, twin = ours[step], twins[step]
        difference = abs(our.loss - twin.loss) / abs(twin.loss)
        is_same = our.logical == twin.logical
        shown = "bit-equal" if is_same else f"{difference:.1e}"
        print(f"    {step:>6} {our.loss:>12.8f} {twin.loss:>12.8f} {shown:>11}")
        if step <= exact_until and not is_same:
            problems.append(f"step {step}: the states differ, though nothing had changed the order of additions yet")
        elif not difference <= LOSS_TOLERANCE:
            problems.append(f"step {step}: the losses differ by {difference:.1%}")
    print(f"    Ranks and micro-batches were the same up to step {exact_until}.")
    return problems


def last_exact_step(status: Object) -> int:
    """Up to here no attempt had another number of ranks or of micro-batches."""
    changes = (
        record["step"]
        for record in status["recoveries"]
        if "step" in record
        and (record.get("worldBefore") != record["worldAfter"] or record["cause"] in CHANGES_ADDITION)
    )
    return next(changes, status["steps"])


async def run(home: Path, frameworks: Sequence[str]) -> None:
    async with Client(Access.from_kubeconfig(home / "kubeconfig")) as client:
        await prepare(client, frameworks)
        for framework in frameworks:
            await run_storm(client, framework)
    say("The storms are over; every run ended as its twin did. Look further:")
    print(f"    export KUBECONFIG={home / 'kubeconfig'}")
    print(f"    kubectl -n {NAMESPACE} get tj chaos-{frameworks[0]} -o yaml    # the same story, in full")
    print(f"    kubectl -n {NAMESPACE} describe tj chaos-{frameworks[0]}       # as events")
    print("    capstan local up                              # the operator injects nothing any more")


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos.py", description="A storm of faults over a training run.")
    parser.add_argument("frameworks", nargs="*", metavar="FRAMEWORK", help="flax, deepspeed; default: both")
    parser.add_argument("--home", type=Path, default=HOME, help="folder of the embedded cluster (default ~/.capstan)")
    options = parser.parse_args()
    frameworks = options.frameworks or list(FRAMEWORKS)
    if unknown := sorted(set(frameworks) - set(FRAMEWORKS)):
        parser.error(f"unknown framework {unknown[0]}; choose from {', '.join(FRAMEWORKS)}")
    home = options.home.expanduser().absolute()
    try:
        say("Starting the embedded cluster, which may inject faults:  capstan local up --allow-chaos")
        capstan("local", "up", "--home", str(home), "--allow-chaos")
        asyncio.run(run(home, frameworks))
    except subprocess.CalledProcessError:
        return 1  # the command has said why
    except (ExampleFailed, ApiError, Unreachable) as error:
        print(f"\nchaos: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
