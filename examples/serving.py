"""`make demo-serving`: a model is trained and served, and under load replaced: by a better one, and by a bad one.

Everything here can be done by hand with kubectl and curl; each step says how. The exit code is 0 when no request
failed, the better model was promoted by its gates, and the bad one was rolled back by them.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import orjson
from live import (
    EXAMPLES,
    HOME,
    SERVICES,
    ExampleFailed,
    Object,
    apply,
    capstan,
    cluster_is_up,
    print_table,
    read_example,
    remove_earlier,
    say,
    watch,
)
from load import ANSWER_SECONDS, Answers, Question, Seen, load
from revisions import Revisions, failure_of, is_live, revision_of

from capstan_local.client import Access, ApiError, Client, Unreachable
from capstan_runtime.contract.data import Data, Digits
from capstan_runtime.data.open import open_dataset

NAMESPACE = "default"
EXAMPLE = "digits-service"
FILES = ("job.yaml", "service.yaml", "good.yaml", "bad.yaml")
SERVICE = (NAMESPACE, "digits")
SEVEN = EXAMPLES / EXAMPLE / "requests" / "seven.json"

REQUESTS_PER_SECOND = 200.0
SERVING_SECONDS = 180.0
PROMOTION_SECONDS = 300.0
ROLLBACK_SECONDS = 240.0
AFTER_SECONDS = 3.0
"""The load goes on so long after the last event: what it breaks must be seen."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a model that was to take over fared."""

    model: str
    revision: str
    seconds: float
    """From its verified checkpoint to the verdict that ended it, with the time its pods took to come up."""


# the steps


async def train(client: Client, file: str) -> tuple[str, str]:
    """Applies a manifest and waits for the job in it: the model's name for people, and its checkpoint's digest."""
    print(f"    kubectl apply -f examples/{EXAMPLE}/{file}")
    documents = read_example(EXAMPLE, file)
    await apply(client, NAMESPACE, documents)
    name = next(document["metadata"]["name"] for document in documents if document["kind"] == "TrainingJob")
    (job,) = await watch(client, NAMESPACE, [name])
    status = job["status"]
    print(f"    {name} reads {status['metrics']['accuracy']:.1%} of the held-out digits right")
    return f"{name}@{status['step']}", status["checkpoint"]["root"]


async def serve(client: Client, revisions: Revisions, digest: str) -> str:
    """The service's address, once all replicas answer."""
    say("Serving it on two replicas")
    print(f"    kubectl apply -f examples/{EXAMPLE}/service.yaml")
    await apply(client, NAMESPACE, read_example(EXAMPLE, "service.yaml"))
    service = await revisions.watch(client, SERVICE, "live", SERVING_SECONDS, lambda service: is_live(service, digest))
    say("It is live:  kubectl get infs")
    await print_table(client, SERVICES, NAMESPACE)
    url: str = service["status"]["url"]
    return url


async def ask_once(url: str) -> None:
    say("Asking it what this is")
    body = SEVEN.read_bytes()
    pixels = np.array(json.loads(body)["inputs"][0]["data"]).reshape(8, 8)
    for row in pixels:
        print("    " + "".join(" .:*#"[min(4, int(5 * pixel))] * 2 for pixel in row))
    print(f"    curl -d @examples/{EXAMPLE}/requests/{SEVEN.name} {url}")
    timeout = aiohttp.ClientTimeout(ANSWER_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url, data=body) as response,
        ):
            status, answer = response.status, await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ExampleFailed(f"{url} does not answer: {error or type(error).__name__}") from error
    if status != 200:
        raise ExampleFailed(f"{url} answers with status {status}: {answer}")
    for line in told(json.loads(answer)):
        print(f"    {line}")


def told(answer: Object) -> list[str]:
    """An answer of the Open Inference Protocol, what matters of it."""
    outputs = ", ".join(f"{one['name']} {one['data'][0]:.3g}" for one in answer["outputs"])
    parameters = answer["parameters"]
    return [
        f"{outputs}; after {parameters['total_ms']:.1f} ms, {parameters['model_ms']:.1f} of them in the model",
        f"answered by {answer['model_version']} with {parameters['model_digest'][:19]}",
    ]


async def replace_with_better(client: Client, revisions: Revisions, models: dict[str, str]) -> Rollout:
    say("A better model, trained longer. The service goes on with the old one until its checkpoint is verified")
    model, digest = await train(client, "good.yaml")
    models[digest] = model
    say("It is to have a third of the traffic until its gates are certain (+ passed, - failed, ? not certain yet)")
    began = time.monotonic()

    def is_promoted(service: Object) -> bool:
        failure = failure_of(service, digest)
        if failure:
            raise ExampleFailed(f"{model} was given up: {failure['reason']}: {failure['message']}")
        return is_live(service, digest)

    service = await revisions.watch(client, SERVICE, f"serving {model}", PROMOTION_SECONDS, is_promoted)
    rollout = Rollout(model, service["status"]["stable"], time.monotonic() - began)
    print_gates(revision_of(service, digest))
    return rollout


async def replace_with_bad(client: Client, revisions: Revisions, models: dict[str, str]) -> Rollout:
    say("A bad model: five steps of training")
    model, digest = await train(client, "bad.yaml")
    models[digest] = model
    say("It answers quickly and never fails; only what it says is wrong")
    began = time.monotonic()
    given_up_at: list[float] = []

    def is_rolled_back(service: Object) -> bool:
        if is_live(service, digest):
            raise ExampleFailed(f"{model} was promoted, and should not have been")
        failure = failure_of(service, digest)
        if failure and not given_up_at:
            given_up_at.append(time.monotonic())
        status = service["status"]
        return failure is not None and status.get("traffic") == f"{status['stable']} 100%"

    service = await revisions.watch(client, SERVICE, f"rid of {model}", ROLLBACK_SECONDS, is_rolled_back)
    revision = revision_of(service, digest)
    if not any(gate["name"] == "Agreement" and gate["verdict"] == "Fail" for gate in revision["gates"]):
        failure = revision["failure"]
        raise ExampleFailed(f"{model} was given up, but not for its answers: {failure['reason']}: {failure['message']}")
    print_gates(revision)
    return Rollout(model, revision["name"], given_up_at[0] - began)


def print_gates(revision: Object) -> None:
    """What the gates that have come to a verdict measured, as status has it."""
    for gate in revision["gates"]:
        if gate["verdict"] != "Inconclusive":
            print(f"    {gate['name']} {gate['verdict']}: {gate['message']}")


# what is told in the end


def summary(seen: Seen, promoted: Rollout, rolled_back: Rollout) -> list[str]:
    good, bad = (seen.by_revision.get(rollout.revision, Answers()) for rollout in (promoted, rolled_back))
    total = sum(answers.count for answers in seen.by_revision.values())
    half, nearly_all = (1e3 * seen.percentile(share) for share in (0.5, 0.99))
    return [
        f"{seen.asked:,} requests, {seen.failed} failed; half were answered within {half:.0f} ms, 99 % within "
        f"{nearly_all:.0f} ms",
        f"{promoted.model} was promoted {promoted.seconds:.0f} s after its checkpoint was verified; of its "
        f"{good.count:,} answers {good.right / max(1, good.count):.0%} are right",
        f"{rolled_back.model} was rolled back {rolled_back.seconds:.0f} s after its checkpoint was verified, "
        f"{bad.last_at - bad.first_at:.0f} s after its first answer",
        f"it gave {bad.count:,} answers, {bad.share:.0%} of those in that time and {bad.count / max(1, total):.1%} of "
        f"all; {bad.right / max(1, bad.count):.0%} of them are right",
    ]


def problems(seen: Seen, promoted: Rollout, rolled_back: Rollout) -> list[str]:
    """What is not as promised."""
    unseen = [one.model for one in (promoted, rolled_back) if one.revision not in seen.by_revision]
    failures = [f"{count} requests failed: {what}" for what, count in seen.failures.most_common(3)]
    return failures + [f"{model} never answered a request, so its gates have proven nothing" for model in unseen]


def say_what_next(home: Path, url: str) -> None:
    say("The service is still up. Look further:")
    print(f"    export KUBECONFIG={home / 'kubeconfig'}")
    down = "make demo-down" if home == HOME else f"capstan local down --home {home}"
    for command, meaning in (
        ("kubectl get infs digits -o yaml", "the whole status, with why the bad model went"),
        ("kubectl describe infs digits", "the same as a story of events"),
        (f"curl {url}/v2/models/digits", "what it serves, by digest"),
        (f"kubectl apply --server-side -f examples/{EXAMPLE}/good.yaml", "ask for what serves again: no pod changes"),
        (down, "stop everything"),
    ):
        print(f"    {command:<66}# {meaning}")


# all of it


def held_out_digits() -> list[Question]:
    """Those that no model here was trained on: which these are follows from the jobs' seed."""
    seed = read_example(EXAMPLE)[-1]["spec"]["training"]["seed"]
    samples = open_dataset(Data(digits=Digits()), seed, {}).validation
    images, labels = samples.fetch(np.arange(len(samples)))
    return [Question(_infer(image), int(label)) for image, label in zip(images, labels, strict=True)]


def _infer(image: np.ndarray) -> bytes:
    """A request of the Open Inference Protocol for the class of an image [8, 8, 1]."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, *image.shape], "data": image.ravel().tolist()}
    return orjson.dumps({"inputs": [tensor], "outputs": [{"name": "label"}]})


def all_documents() -> list[Object]:
    return [document for file in FILES for document in read_example(EXAMPLE, file)]


async def run(home: Path) -> None:
    questions = held_out_digits()
    async with Client(Access.from_kubeconfig(home / "kubeconfig")) as client:
        await remove_earlier(client, NAMESPACE, all_documents())
        say("Training a small CNN on the UCI handwritten digits, two workers")
        model, digest = await train(client, "job.yaml")
        models = {digest: model}
        url = await serve(client, Revisions(models), digest)
        infer = f"{url}/v2/models/{SERVICE[1]}/infer"
        await ask_once(infer)
        say(f"From now on it is asked {REQUESTS_PER_SECOND:.0f} times a second, whatever happens")
        async with load(infer, questions, REQUESTS_PER_SECOND) as seen:
            revisions = Revisions(models, seen)
            promoted = await replace_with_better(client, revisions, models)
            rolled_back = await replace_with_bad(client, revisions, models)
            await asyncio.sleep(AFTER_SECONDS)
    say("What its clients saw")
    for line in summary(seen, promoted, rolled_back):
        print(f"    {line}")
    wrong = problems(seen, promoted, rolled_back)
    if wrong:
        raise ExampleFailed("; ".join(wrong))
    say_what_next(home, url)


async def remove(home: Path) -> None:
    async with Client(Access.from_kubeconfig(home / "kubeconfig")) as client:
        await remove_earlier(client, NAMESPACE, all_documents())


def clean_up(home: Path, *, was_up: bool) -> None:
    """Ends what this demo has started, and nothing else."""
    if was_up:
        say("Interrupted: removing what this demo made")
        asyncio.run(remove(home))
    else:
        say("Interrupted: stopping the cluster this demo started")
        capstan("local", "down", "--home", str(home))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="serving.py", description="A model is served, and replaced under load.")
    parser.add_argument("--home", type=Path, default=HOME, help="folder of the embedded cluster (default ~/.capstan)")
    home = parser.parse_args(arguments).home.expanduser().absolute()
    started = time.monotonic()
    was_up = True  # until we know better: what we did not start we do not stop
    try:
        was_up = cluster_is_up(home)
        say("The embedded cluster is up already" if was_up else "Starting the embedded cluster:  capstan local up")
        capstan("local", "up", "--home", str(home))
        try:
            asyncio.run(run(home))
        except KeyboardInterrupt:
            clean_up(home, was_up=was_up)
            return 130
    except subprocess.CalledProcessError:
        return 1  # the command has said why
    except (ExampleFailed, ApiError, Unreachable) as error:
        print(f"\ndemo-serving: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if not was_up:
            clean_up(home, was_up=False)
        return 130
    print(f"\nDone in {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
