"""`make demo`: starts the embedded cluster, trains the examples on it, and shows what happens while it happens.

Everything here can be done by hand with kubectl; each step says how.
"""

import asyncio
import math
import subprocess
import sys
import time

from live import (
    HOME,
    JOBS,
    ExampleFailed,
    apply,
    capstan,
    cluster_is_up,
    print_table,
    read_example,
    remove_earlier,
    say,
    watch,
)

from capstan_local.client import Access, ApiError, Client, Unreachable

KUBECONFIG = HOME / "kubeconfig"
NAMESPACE = "default"
DIGITS = ("digits-flax", "digits-deepspeed")
WANTED_ACCURACY = 0.97


async def train_digits(client: Client) -> None:
    say("Training a CNN on the UCI handwritten digits, with Flax and with DeepSpeed, two workers each")
    for name in DIGITS:
        print(f"    kubectl apply -f examples/{name}/")
        await apply(client, NAMESPACE, read_example(name))
    started = time.monotonic()
    jobs = await watch(client, NAMESPACE, DIGITS)
    say(f"Both succeeded after {time.monotonic() - started:.0f} s:  kubectl get trainingjobs")
    await print_table(client, JOBS, NAMESPACE)
    for job in jobs:
        accuracy = job["status"]["metrics"]["accuracy"]
        print(f"    {job['metadata']['name']}: {accuracy:.1%} of the held-out digits are read right")
        if accuracy < WANTED_ACCURACY:
            raise ExampleFailed(f"{job['metadata']['name']}: accuracy {accuracy:.3f} is below {WANTED_ACCURACY}")


async def train_text(client: Client) -> None:
    say("Training a small language model on the sources of Python's standard library, byte by byte")
    print("    kubectl apply -f examples/text-flax/")
    await apply(client, NAMESPACE, read_example("text-flax"))
    (job,) = await watch(client, NAMESPACE, ["text-flax"])
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
        documents = [document for name in (*DIGITS, "text-flax") for document in read_example(name)]
        await remove_earlier(client, NAMESPACE, documents)
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
    except (ExampleFailed, ApiError, Unreachable) as error:
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
