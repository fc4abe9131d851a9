"""Draws docs/pictures/*.svg: `python scripts/pictures.py [--check]`. What they show is told in docs/architecture.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drawing import Box, Picture

FOLDER = Path("docs/pictures")


def flow() -> Picture:
    """Observe, decide, apply."""
    picture = Picture(
        920,
        378,
        "Observe, decide, apply",
        "Users write objects to the API server. The operator watches it and asks the pods' supervisors, makes a "
        "snapshot, decides, and applies what follows to the API server and to the supervisors.",
    )
    users = picture.box(20, 30, 150, 66, "You", "kubectl, Helm, Argo CD")
    server = picture.box(240, 30, 170, 66, "API server", "spec: yours", "status: the operator's")
    node = picture.box(480, 30, 150, 66, "Node", "kubelet, or the", "embedded node")
    pod = picture.box(710, 30, 190, 66, "Pod", "supervisor, PID 1,", "and its trainer")
    picture.group(20, 158, 880, 200, "Operator")
    stores = picture.box(40, 196, 150, 76, "Stores", "`cluster/reflector.py`", "`cluster/poller.py`", kind="ours")
    observe = picture.box(232, 196, 150, 76, "Observe", "`observe.py`", "one frozen snapshot", kind="ours")
    decide = picture.box(424, 196, 170, 76, "Decide", "`decide/`", "pure; time is an argument", kind="good")
    apply = picture.box(
        636, 196, 244, 76, "Apply", "`reconcile_*.py`", "children, status, memberships, events", kind="ours"
    )
    queue = picture.box(232, 308, 150, 34, "Work queue", kind="ours")
    picture.arrow(users.right(), server.left(), label=["spec"])
    picture.arrow(server.right(), node.left(), label=["pods"])
    picture.arrow(node.right(), pod.left(), label=["starts"])
    picture.arrow((274, 96), (274, 140), (130, 140), (130, 196), label=["watch"], at=(200, 134))
    picture.arrow((760, 96), (760, 118), (160, 118), (160, 196), label=["GET /state"], at=(560, 112))
    picture.arrow(stores.right(), observe.left())
    picture.arrow(observe.right(), decide.left())
    picture.arrow(decide.right(), apply.left())
    picture.arrow((665, 196), (665, 140), (376, 140), (376, 96), label=["writes the difference"], at=(560, 134))
    picture.arrow((846, 196), (846, 96), label=["PUT /membership"], at=(840, 186), anchor="end")
    picture.arrow(stores.bottom(), (115, 325), queue.left(), label=["wakes"], at=(172, 319))
    picture.arrow(queue.top(), observe.bottom(), label=["one object at a time"], at=(316, 294), anchor="start")
    picture.arrow(apply.bottom(), (758, 325), queue.right(), label=["look again after so many seconds"], at=(600, 319))
    return picture


def pod() -> Picture:
    """What is inside a worker pod."""
    picture = Picture(
        920,
        460,
        "Inside a worker pod",
        "The supervisor is process 1. It starts a trainer for each membership, keeps a warm spare, and answers the "
        "operator. Trainers save to the pod's memory first and to the store after.",
    )
    operator = picture.box(20, 56, 130, 96, "Operator", "asks, decides,", "pushes places", kind="ours")
    picture.group(256, 20, 440, 424, "Pod NAME-worker-0")
    supervisor = picture.box(
        276,
        56,
        400,
        96,
        "Supervisor, process 1",
        "`supervisor/`",
        "GET /state, PUT /membership, GET /metrics",
        "kills what hangs; writes the last words",
        kind="ours",
    )
    trainer = picture.box(
        276, 222, 190, 96, "Trainer", "`loop.py`", "one membership long:", "join, restore, step, save", kind="good"
    )
    spare = picture.box(
        526, 222, 150, 96, "Warm spare", "`warm_spare.py`", "imports done,", "waits for a place", kind="wait"
    )
    memory = picture.box(276, 380, 400, 48, "Memory tier: this rank's newest saves", "`memory_tier.py`")
    peers = picture.box(
        756, 222, 146, 96, "Other ranks", "collectives of JAX", "or torch; messages:", "`parallel/star.py`"
    )
    store = picture.box(756, 380, 146, 48, "Store", "claim, folder, bucket")
    picture.arrow(operator.right(0.3), supervisor.left(0.3), label=["membership"], at=(203, 79))
    picture.arrow(supervisor.left(0.7), operator.right(0.7), label=["fence, rank,", "step, exit, …"], at=(203, 140))
    picture.arrow((310, 152), (310, 222), label=["starts, stops, kills"], at=(318, 190), anchor="start")
    picture.arrow((450, 222), (450, 152), label=["reports"], at=(458, 190), anchor="start")
    picture.arrow((601, 152), spare.top(), label=["keeps one"], at=(609, 190), anchor="start")
    picture.arrow(spare.left(), trainer.right(), label=["becomes"])
    picture.arrow(
        (350, 318), (350, 380), label=["copies its state: training waits for no more"], at=(358, 366), anchor="start"
    )
    picture.arrow(memory.right(), store.left(), label=["hashed,", "written"], at=(704, 376), anchor="start")
    picture.arrow((440, 318), (440, 338), (829, 338), peers.bottom(), label=["GET /memory, too"], at=(764, 332))
    return picture


def job() -> Picture:
    """The phases of a TrainingJob."""
    picture = Picture(
        920,
        460,
        "The life of a job",
        "Pending, Starting, Running, Succeeded; Restarting after a failure; Suspending and Suspended by spec.suspend; "
        "Failed when a budget is used up or nothing would help; Invalid while the spec breaks a rule.",
    )
    invalid = picture.box(20, 50, 130, 56, "Invalid", "InvalidSpec", kind="bad")
    pending = picture.box(20, 190, 130, 70, "Pending", "WaitingForWorkers", "Unschedulable, …", kind="wait")
    starting = picture.box(250, 190, 140, 70, "Starting", "AttemptStarting", kind="wait")
    running = picture.box(490, 190, 140, 70, "Running", "Training", kind="good")
    succeeded = picture.box(760, 190, 140, 70, "Succeeded", "Completed", kind="good")
    restarting = picture.box(
        350, 50, 220, 70, "Restarting", "BackingOff, ReplacingPods,", "AttemptStarting", kind="wait"
    )
    failed = picture.box(760, 50, 140, 70, "Failed", "…BudgetExhausted,", "ConfigError, …", kind="bad")
    suspending = picture.box(490, 360, 140, 70, "Suspending", "pods save and stop", kind="wait")
    suspended = picture.box(250, 360, 140, 70, "Suspended", "no pod is left")
    picture.arrow(invalid.bottom(), pending.top(), label=["spec mended"], at=(93, 152), anchor="start")
    picture.arrow(pending.right(), starting.left(), label=["enough", "workers"], at=(200, 201))
    picture.arrow(starting.right(), running.left(), label=["all ranks", "make steps"], at=(440, 201))
    picture.arrow(running.right(), succeeded.left(), label=["all steps done,", "the last is saved"], at=(695, 243))
    picture.arrow(
        (554, 190),
        (554, 120),
        label=["a rank fails,", "or a pod goes"],
        at=(562, 143),
        anchor="start",
    )
    picture.arrow(
        (420, 120),
        (420, 150),
        (510, 150),
        (510, 190),
        label=["from the newest checkpoint", "that verifies"],
        at=(414, 143),
        anchor="end",
    )
    picture.arrow(
        (630, 206),
        (690, 206),
        (690, 85),
        failed.left(),
        label=["budget used up, no", "progress, or nothing", "would help"],
        at=(698, 140),
        anchor="start",
    )
    picture.arrow(
        failed.top(),
        (830, 30),
        (460, 30),
        restarting.top(),
        label=["limit raised, or suspended and resumed"],
        at=(660, 24),
    )
    picture.arrow(running.bottom(), suspending.top(), label=["spec.suspend: true"], at=(568, 316), anchor="start")
    picture.arrow(suspending.left(), suspended.right())
    picture.arrow(
        suspended.left(), (85, 395), pending.bottom(), label=["spec.suspend: false"], at=(93, 330), anchor="start"
    )
    picture.words(
        664,
        372,
        "A job that takes a worker in passes",
        "through Starting again. Pods of an",
        "ended job stay for their logs, until",
        "ttlSecondsAfterFinished.",
    )
    return picture


def checkpoint() -> Picture:
    """What is written, in which order, and what the digests cover."""
    picture = Picture(
        920,
        452,
        "A checkpoint: what it is made of, and how it is committed",
        "Every rank writes shards and a manifest of their digests. Rank 0 proves that every tensor is there once, "
        "writes MANIFEST.json, whose digest is the root, and COMMIT last.",
    )
    picture.group(20, 24, 560, 404, "Folder STEP.FENCE.ATTEMPT, such as 000000000173.1.9e18b14eb725")
    shard0 = picture.box(
        44, 70, 230, 70, "1 shards/r0-0.safetensors", "rank 0's part of each tensor,", "a digest for every 4 MiB"
    )
    shard1 = picture.box(326, 70, 230, 70, "1 shards/r1-0.safetensors", "rank 1's part")
    rank0 = picture.box(44, 186, 230, 52, "2 shards/r0.json", "names files, tensors, digests", kind="ours")
    rank1 = picture.box(326, 186, 230, 52, "2 shards/r1.json", kind="ours")
    picture.box(150, 286, 300, 52, "3 MANIFEST.json", "its BLAKE3 digest is the root", kind="ours")
    commit = picture.box(150, 370, 130, 40, "5 COMMIT", kind="good")
    picture.box(320, 370, 130, 40, "4 MANIFEST.sig", "if there is a key", kind="plain")
    picture.arrow(shard0.bottom(), rank0.top(), label=["fsync, then"], at=(166, 168), anchor="start")
    picture.arrow(shard1.bottom(), rank1.top())
    picture.arrow(rank0.bottom(), (159, 262), (250, 262), (250, 286), label=["digests of both"], at=(300, 258))
    picture.arrow(rank1.bottom(), (441, 262), (350, 262), (350, 286))
    picture.arrow((215, 338), commit.top())
    picture.arrow((385, 338), (385, 370))
    picture.words(
        606,
        88,
        "Each step is settled before the next begins:",
        "a writer may die between any two of them.",
        "Until COMMIT is there, readers see the",
        "checkpoint before.",
        "",
        "Rank 0 commits when each element of each",
        "tensor is there exactly once, and no newer",
        "attempt has claimed the store.",
        "",
        "A reader takes the newest COMMIT whose",
        "bytes all verify. One that does not gets",
        "QUARANTINED, status says so, and the one",
        "before is read. None left: the job halts;",
        "it never starts from step 0 by itself.",
        "",
        "Beside it, later: VERIFIED (read back and",
        "whole), PINNED (a person's wish).",
        "claims/FENCE.ATTEMPT.json: which commits an",
        "attempt found when it took over.",
    )
    return picture


def rollout() -> Picture:
    """How another revision of a service takes over."""
    picture = Picture(
        920,
        400,
        "A rollout",
        "A new revision starts beside the proven one, gets a share of the traffic, is judged by its gates, and takes "
        "over or is given up. The proven one keeps its pods until then.",
    )
    live = picture.box(20, 40, 150, 62, "Live", "the proven revision", "has all traffic", kind="good")
    starting = picture.box(250, 40, 150, 62, "Starting", "new pods come up,", "no traffic yet", kind="wait")
    canary = picture.box(490, 40, 170, 62, "Canary", "steps[].weight of it,", "holdSeconds each", kind="wait")
    shifting = picture.box(750, 40, 150, 62, "Shifting", "pods for all traffic", kind="wait")
    holding = picture.box(750, 180, 150, 62, "Holding", "the old one could", "still take over", kind="wait")
    proven = picture.box(750, 318, 150, 62, "Live", "the new revision,", "proven now", kind="good")
    gates = picture.box(
        470,
        180,
        210,
        80,
        "Gates, at every look",
        "errors: maxErrorRateIncrease",
        "latency: maxLatencyRatio",
        "answers: minAgreement",
        kind="ours",
    )
    retreating = picture.box(250, 180, 150, 80, "Retreating", "all traffic back to", "the proven revision", kind="bad")
    given_up = picture.box(
        20, 180, 150, 80, "Given up", "RolledBack is True;", "status.revisions", "says why", kind="bad"
    )
    picture.arrow(live.right(), starting.left(), label=["spec, or", "checkpoint"], at=(210, 48))
    picture.arrow(starting.right(), canary.left(), label=["ready"], at=(445, 64))
    picture.arrow(canary.right(), shifting.left(), label=["all gates", "pass"], at=(705, 48))
    picture.arrow(shifting.bottom(), holding.top())
    picture.arrow(holding.bottom(), proven.top(), label=["old pods drain"], at=(817, 285), anchor="end")
    picture.arrow(gates.top(), canary.bottom(), label=["judge"], at=(583, 146), anchor="start")
    picture.arrow(gates.left(), retreating.right(), label=["one", "fails"], at=(435, 197))
    picture.arrow(retreating.left(), given_up.right())
    picture.arrow(
        (300, 102),
        (300, 140),
        (95, 140),
        given_up.top(),
        label=["pods crash, the checkpoint is corrupt,", "or the deadline is missed"],
        at=(308, 132),
        anchor="start",
    )
    picture.words(
        20,
        300,
        "A gate compares the canary with the proven revision over the same time, with bounds that hold however",
        "often one looks (beta-binomial martingale, decide/serving/gates.py), at gates.confidence. Too little",
        "traffic in four times holdSeconds is GateInconclusive: given up, and tried again when the spec changes.",
        "Strategy rolling goes from Starting to Shifting, blueGreen to Holding.",
    )
    return picture


def gate() -> Picture:
    """From runs to a verdict."""
    picture = Picture(
        920,
        420,
        "From runs to the verdict of a Benchmark",
        "Runs of candidate and baseline alternate. Each figure's effect has an interval and a chance; machines that "
        "differ, or changed, end the comparison; the gate makes of them a verdict and an exit code.",
    )
    same = _comparison(picture)
    inconclusive = _verdicts(picture)
    picture.arrow(
        same.bottom(0.2),
        (326, 142),
        (80, 142),
        (80, 350),
        (810, 350),
        inconclusive.bottom(),
        label=["no, or it changed"],
        at=(200, 136),
    )
    picture.words(
        150,
        380,
        "The worst verdict of all judged figures counts: Regressed, then Inconclusive, Improved, Passed. A gate that",
        "no difference could reach with so few runs is refused before the first one (decide/bench/gate.py).",
    )
    return picture


def _comparison(picture: Picture) -> Box:
    """The upper row, from the runs to the gate's rule; returns the box in which a comparison may end early."""
    runs = picture.box(
        20,
        40,
        210,
        84,
        "Runs, one after the other",
        "fresh processes each,",
        "candidate and baseline",
        "take turns (rerun: true)",
        kind="ours",
    )
    same = picture.box(
        290, 40, 180, 84, "Same hardware?", "every rank's machine;", "a control that is timed", "before and after"
    )
    effect = picture.box(
        524,
        40,
        180,
        84,
        "Effect of each figure",
        "Hodges-Lehmann ratio,",
        "interval of bootstrap",
        "and test, the wider",
        kind="ours",
    )
    chance = picture.box(
        740, 40, 160, 84, "Chance", "Wilcoxon if paired,", "else Mann-Whitney;", "Holm over figures", kind="ours"
    )
    picture.arrow(runs.right(), same.left(), label=["samples"], at=(260, 74))
    picture.arrow(same.right(), effect.left(), label=["yes"], at=(497, 74))
    picture.arrow(effect.right(), chance.left())
    picture.arrow((820, 124), (820, 160))
    return same


def _verdicts(picture: Picture) -> Box:
    """The gate's rule and the four verdicts below it; returns that of what is not certain."""
    rule = picture.box(150, 160, 750, 34, "gate: minimumEffectPercent, confidence, metrics")
    picture.box(150, 230, 170, 84, "Passed", "the whole interval is", "inside the minimum", "exit 0", kind="good")
    picture.box(
        340, 230, 170, 84, "Improved", "sure, and at least the", "minimum, for the better", "exit 0", kind="good"
    )
    picture.box(
        530, 230, 170, 84, "Regressed", "sure, and at least the", "minimum, for the worse", "exit 3", kind="bad"
    )
    inconclusive = picture.box(
        720, 230, 180, 84, "Inconclusive", "anything else: the reason", "says what would tell", "exit 4", kind="wait"
    )
    for x in (235, 425, 615, 810):
        picture.arrow((x, rule.bottom()[1]), (x, inconclusive.y))
    return inconclusive


PICTURES = {"flow": flow, "pod": pod, "job": job, "checkpoint": checkpoint, "rollout": rollout, "gate": gate}


def main() -> int:
    """Writes the pictures and returns 0; with --check compares and returns 1 if one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a picture is out of date")
    options = parser.parse_args()
    outdated = False
    for name, draw in PICTURES.items():
        path, text = FOLDER / f"{name}.svg", draw().svg()
        if not options.check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path} is out of date; run `make generate`", file=sys.stderr)
            outdated = True
    return int(outdated)


if __name__ == "__main__":
    raise SystemExit(main())
