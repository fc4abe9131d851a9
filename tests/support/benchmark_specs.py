"""Specs of Benchmarks that are right, and such as are wrong, each with what must be said to it."""

from __future__ import annotations

from typing import Any

from tests.support.benchmarks import job_of, spec_of

Document = dict[str, Any]
DIGEST = "blake3:" + "0" * 64
MODEL: Document = {
    "fresh": {"architecture": {"mlp": {"hidden": [8]}}, "input": {"vector": {"features": 4, "classes": 2}}}
}
LOAD: Document = {"rates": [5], "scenario": [{"name": "predict", "path": "/"}]}
SERVICE: Document = {"modelRef": {"trainingJob": {"name": "digits"}}}
GRID: Document = {
    "models": [{"name": f"m{n}", "architecture": {"mlp": {"hidden": [n]}}} for n in (4, 8, 16)],
    "steps": [10, 20, 30],
}
POINTS: list[Document] = [{"parameters": 10.0 * n, "tokens": 100.0 * n, "loss": 9.0 - n} for n in range(1, 6)]
BEFORE: Document = {"benchmark": {"name": "before"}}

ACCEPTED: dict[str, Document] = {
    "a roofline": spec_of(),
    "training": spec_of({"training": {"batchSizes": [16, 32]}}, job=job_of()),
    "scaling": spec_of({"scaling": {"workers": [1, 2], "weak": True}}, job=job_of()),
    "a warm-up of epochs": spec_of(
        {"training": {"warmupSteps": 500}},
        job=job_of() | {"training": {"epochs": 1, "globalBatchSize": 16}},
    ),
    "a warm-up that leaves one window": spec_of(
        {"training": {"warmupSteps": 101}}, job=job_of(steps=120, logEverySteps=10)
    ),
    "inference of a fresh model": spec_of({"inference": {"runtime": "torch", "model": MODEL}}),
    "inference of a checkpoint": spec_of(
        {"inference": {"runtime": "flax", "model": {"checkpoint": {"run": "a/b/c", "digest": DIGEST}}}}
    ),
    "load on a service of its own": spec_of({"serving": {"service": SERVICE} | LOAD}),
    "load on a URL": spec_of({"serving": {"url": "http://digits:8480"} | LOAD}),
    "as many requests as fit into memory": spec_of(
        {"serving": LOAD | {"url": "http://x/@", "rates": [5e5], "seconds": 100, "warmupSeconds": 0}}
    ),
    "a deadline that just holds the load": spec_of(
        {"serving": LOAD | {"url": "http://x", "seconds": 60}}, trialDeadlineSeconds=62
    ),
    "one size of collectives": spec_of(
        {"collectives": {"framework": {"flax": {}}, "smallest": "1024KiB", "largest": "1MiB"}}
    ),
    "a reference row": spec_of({"training": {}}, job=job_of(), baseline={"reference": "a100-1b-2-gpus"}),
    "a key with dots": spec_of(baseline={"configMap": {"name": "kept", "key": ".a..json"}}),
    "collectives": spec_of({"collectives": {"framework": {"flax": {}}, "workers": 4}}),
    "a grid": spec_of({"scalingLaw": {"grid": GRID}}, job=job_of()),
    "points": spec_of({"scalingLaw": {"points": POINTS}}),
    "a file": spec_of({"scalingLaw": {"file": "runs.csv"}}),
    "checkpoints": spec_of({"checkpoint": {"state": "64MiB", "beside": ["TorchDCP"]}}),
    "the control plane": spec_of({"controlPlane": {}}, pods={"serviceAccountName": "bursts"}),
    "a gate": spec_of(repetitions=5, baseline=BEFORE, gate={"metrics": ["samples_per_second"]}),
    "a confidence that so many runs reach": spec_of(repetitions=6, baseline=BEFORE, gate={"confidence": 0.995}),
    "all the confidence there is": spec_of(repetitions=13, baseline=BEFORE, gate={"confidence": 0.9999999}),
    "a rerun": spec_of(baseline={"benchmark": {"name": "before", "rerun": True}}),
    "a kept result": spec_of(repetitions=5, baseline={"configMap": {"name": "kept"}}, gate={}),
    "all the rest": spec_of(
        seed=7,
        suspend=True,
        trialDeadlineSeconds=60,
        ttlSecondsAfterFinished=0,
        pods={"image": "x", "gpus": 1, "nodeSelector": {"a": "b"}, "podPatch": {"spec": {"priorityClassName": "low"}}},
    ),
}

TWICE: list[tuple[str, Any, Document]] = [
    ("a size of training in batchSizes", 16, spec_of({"training": {"batchSizes": [16, 8, 16]}}, job=job_of())),
    ("a number of workers", 2, spec_of({"scaling": {"workers": [1, 2, 2]}}, job=job_of())),
    (
        "a size of inference in batchSizes",
        4,
        spec_of({"inference": {"runtime": "torch", "model": MODEL, "batchSizes": [4, 4]}}),
    ),
    (
        "one of operations",
        "allReduce",
        spec_of({"collectives": {"framework": {"flax": {}}, "operations": ["allReduce", "allReduce"]}}),
    ),
    ("one of dtypes", "fp32", spec_of({"roofline": {"runtime": "torch", "dtypes": ["fp32", "fp32"]}})),
    ("one of matrixSizes", 64, spec_of({"roofline": {"runtime": "torch", "matrixSizes": [64, 64]}})),
    (
        "one of a roofline's models",
        "m",
        spec_of({"roofline": {"runtime": "torch", "models": [{"name": "m", **MODEL["fresh"]}] * 2}}),
    ),
    (
        "one of a grid's models",
        "m4",
        spec_of({"scalingLaw": {"grid": GRID | {"models": [*GRID["models"], GRID["models"][0]]}}}, job=job_of()),
    ),
    (
        "one of a grid's steps",
        20,
        spec_of({"scalingLaw": {"grid": GRID | {"steps": [10, 20, 20]}}}, job=job_of()),
    ),
    ("one of beside", "Orbax", spec_of({"checkpoint": {"beside": ["Orbax", "Orbax"]}})),
    (
        "one of a gate's metrics",
        "loss",
        spec_of(repetitions=5, baseline=BEFORE, gate={"metrics": ["loss", "loss"]}),
    ),
]
"""What is there twice, the last word being its field; the value; the spec."""

REFUSED: dict[str, tuple[Document, str]] = {
    "an unknown field": (spec_of(cases=3), "cases"),
    "no workload": (spec_of({"none": {}}), "workload"),
    "two workloads": (
        spec_of({"roofline": {"runtime": "torch"}, "controlPlane": {}}),
        "got roofline, controlPlane: set exactly one of",
    ),
    "training without a job": (
        spec_of({"training": {}}),
        "job: is missing, and this workload runs TrainingJobs; add the job to run",
    ),
    "a job that nobody runs": (spec_of(job=job_of()), "job: is run by no part of this workload; remove it"),
    "a job for given points": (
        spec_of({"scalingLaw": {"points": POINTS}}, job=job_of()),
        "job: is run by no part of this workload; remove it",
    ),
    "a warm-up longer than the job": (
        spec_of({"training": {"warmupSteps": 500}}, job=job_of(steps=120, logEverySteps=10)),
        "workload.training.warmupSteps: 500 leaves no whole window of job.training.logEverySteps 10 of the 120 steps, "
        "so nothing would be measured; lower warmupSteps or job.training.logEverySteps, or raise job.training.steps",
    ),
    "a warm-up that leaves part of a window": (
        spec_of({"scaling": {"workers": [1, 2], "warmupSteps": 101}}, job=job_of(steps=119, logEverySteps=10)),
        "workload.scaling.warmupSteps: 101 leaves no whole window of job.training.logEverySteps 10 of the 119 steps",
    ),
    "scaling without a base": (
        spec_of({"scaling": {"workers": [2, 4]}}, job=job_of()),
        "workers: holds no 1, which all others are compared with; add 1",
    ),
    "a service and a URL": (
        spec_of({"serving": {"service": SERVICE, "url": "http://x"} | LOAD}),
        "set exactly one of service, url",
    ),
    "no load": (spec_of({"serving": {"url": "http://x"}}), "rates"),
    "a rate twice": (
        spec_of({"serving": LOAD | {"url": "http://x", "rates": [5.5, 7, 5.5]}}),
        "rates: holds 5.5 twice, and figures are told apart by it; remove one of them",
    ),
    "two requests of one name": (
        spec_of({"serving": LOAD | {"url": "http://x", "scenario": [{"name": "a", "path": "/"}] * 2}}),
        "scenario: holds a twice, and figures are told apart by it; remove one of them",
    ),
    **{
        f"{what} twice": (
            spec,
            f"{what.split()[-1]}: holds {value} twice, and figures are told apart by it; remove one of them",
        )
        for what, value, spec in TWICE
    },
    "more requests than fit into memory": (
        spec_of({"serving": LOAD | {"url": "http://x", "rates": [1000.5, 1e6], "seconds": 600}}),
        "requests in seconds and warmupSeconds of one run, and 50,000,000 are the most; lower rates or seconds",
    ),
    "a user in a URL": (
        spec_of({"serving": LOAD | {"url": "http://me:secret@x/y"}}),
        "url: holds a user, and a spec is no place for secrets; put credentials into scenario[].headers as $(NAME)",
    ),
    "a query in a URL": (
        spec_of({"serving": LOAD | {"url": "http://x/y?key=1"}}),
        "url: http://x/y?key=1 has a query or a fragment, which belong to one request; put the query into "
        "scenario[].path",
    ),
    "scaling of neither kind": (
        spec_of({"scaling": {"workers": [1, 2], "strong": False}}, job=job_of()),
        "strong: false, and weak is false, too, so nothing is left to measure; set one of them",
    ),
    "sizes that fall": (
        spec_of({"collectives": {"framework": {"flax": {}}, "smallest": "2MiB", "largest": "2047KiB"}}),
        "smallest: 2MiB is above largest 2047KiB; exchange them",
    ),
    "a row that does not exist": (
        spec_of({"training": {}}, job=job_of(), baseline={"reference": "flax-mlp"}),
        "baseline.reference: flax-mlp is no reference row of training; choose one of a100-1b-2-gpus,",
    ),
    "a row for a workload that has none": (
        spec_of(baseline={"reference": "flax-mlp"}),
        "baseline.reference: flax-mlp is no reference row of this workload; remove it: there is none",
    ),
    "a folder above that of results": (
        spec_of({"inference": {"runtime": "flax", "model": {"checkpoint": {"run": "a/../c", "digest": DIGEST}}}}),
        "run",
    ),
    "a ConfigMap of another namespace": (
        spec_of(baseline={"configMap": {"name": "../../theirs/configmaps/kept"}}),
        "name",
    ),
    "a key that is no file's name": (spec_of(baseline={"configMap": {"name": "kept", "key": "../passwd"}}), "key"),
    "a key above its folder": (spec_of(baseline={"configMap": {"name": "kept", "key": ".."}}), "key"),
    "inference beyond its deadline": (
        spec_of({"inference": {"runtime": "torch", "model": MODEL, "seconds": 59}}, trialDeadlineSeconds=119),
        "trialDeadlineSeconds: 119 cannot hold the 120 s that inference measures in one run, batchSizes x (seconds + "
        "warmupSeconds); raise it, or lower those",
    ),
    "load beyond its deadline": (
        spec_of({"serving": LOAD | {"url": "http://x", "seconds": 60}}, trialDeadlineSeconds=60),
        "trialDeadlineSeconds: 60 cannot hold the 62 s that serving measures in one run, rates x seconds + ",
    ),
    "a roofline beyond its deadline": (
        spec_of({"roofline": {"runtime": "torch", "seconds": 4.5}}, trialDeadlineSeconds=13),
        "trialDeadlineSeconds: 13 cannot hold the 13.5 s that roofline measures in one run, dtypes x matrixSizes x ",
    ),
    "collectives of one": (spec_of({"collectives": {"framework": {"flax": {}}, "workers": 1}}), "workers"),
    "a size in other units": (
        spec_of({"checkpoint": {"state": "64MB"}}),
        "64MB is no size; write a whole number with one of B, KiB, MiB, GiB, such as 64MiB",
    ),
    "too few points": (spec_of({"scalingLaw": {"points": POINTS[:4]}}), "points"),
    "a model that takes something else": (
        spec_of(
            {
                "inference": {
                    "runtime": "torch",
                    "model": {
                        "fresh": {
                            "architecture": {"mlp": {"hidden": [8]}},
                            "input": {"tokens": {"vocabulary": 9, "sequenceLength": 8}},
                        }
                    },
                }
            }
        ),
        "input: transformer takes tokens, cnn takes image, mlp takes image or vector; change input or architecture",
    ),
    "a model that takes a condition": (
        spec_of(
            {
                "inference": {
                    "runtime": "torch",
                    "model": {
                        "fresh": {
                            "architecture": {"mlp": {"hidden": [8], "conditionalScaling": {"film": {}}}},
                            "input": {"vector": {"features": 9, "classes": 2}},
                        }
                    },
                }
            }
        ),
        "architecture: conditionalScaling and adaptiveNorm take a condition, which no input here has; remove them",
    ),
    "no repetition": (spec_of(repetitions=0), "repetitions"),
    "more repetitions than anybody waits for": (spec_of(repetitions=101), "repetitions"),
    "a gate without a baseline": (
        spec_of(repetitions=5, gate={}),
        "gate: compares with a baseline, and there is none; add spec.baseline, or remove gate",
    ),
    "a gate that nothing could pass": (
        spec_of(repetitions=4, baseline=BEFORE, gate={}),
        "repetitions: 4 cannot be judged; a gate needs 5 or more: raise repetitions, or remove gate",
    ),
    "a confidence that so few runs cannot reach": (
        spec_of(repetitions=5, baseline=BEFORE, gate={"confidence": 0.995}),
        "repetitions: 5 cannot reach gate.confidence 0.995, however large a difference is; raise repetitions to 6, or "
        "lower gate.confidence",
    ),
    "near certainty": (
        spec_of(repetitions=12, baseline=BEFORE, gate={"confidence": 0.99999999}),
        "repetitions: 12 cannot reach gate.confidence 0.99999999, however large a difference is; raise repetitions to "
        "13, or",
    ),
    "a gate at a reference row": (
        spec_of(
            {"training": {}},
            job=job_of(),
            repetitions=5,
            baseline={"reference": "a100-1b-2-gpus"},
            gate={},
        ),
        "baseline.reference: a reference row is never a gate, only shown beside; remove gate",
    ),
    "a gate for given points": (
        spec_of({"scalingLaw": {"points": POINTS}}, repetitions=5, baseline=BEFORE, gate={}),
        "gate: this scalingLaw runs nothing that could be repeated; remove gate, or use scalingLaw.grid",
    ),
    "two baselines": (
        spec_of(baseline=BEFORE | {"configMap": {"name": "kept"}}),
        "got benchmark, configMap: set exactly one of benchmark, configMap, reference",
    ),
    "no effect": (spec_of(repetitions=5, baseline=BEFORE, gate={"minimumEffectPercent": 0}), "minimumEffectPercent"),
    "certainty": (spec_of(repetitions=5, baseline=BEFORE, gate={"confidence": 1.0}), "confidence"),
    "nowhere to keep results": ({"workload": {"roofline": {"runtime": "torch"}}}, "results"),
    "a deadline that is over at once": (spec_of(trialDeadlineSeconds=1), "trialDeadlineSeconds"),
}
