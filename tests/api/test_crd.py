"""The generated CRD: legal, complete, small, and of one mind with the models it comes from."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from capstan_local.schema.structural import check_structural, compile_schema
from capstan_operator.api.program_rules import NOT_FOR_PROGRAMS, parts_of_trainers
from capstan_operator.api.training_job import Run, TrainingJobSpec
from capstan_operator.build.children import longest_job_name
from capstan_operator.crd_size import MAX_CRD_BYTES, applied_bytes, say_once
from capstan_operator.crdgen import UntranslatableSchema, render, structural, training_job_crd
from capstan_operator.decide.validation import spec_problems

CRD = training_job_crd()
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
COMPILED = compile_schema(SCHEMA)


CLAIM = {"claim": {"name": "store"}}
TEXT = {"text": {"path": "/data", "sequenceLength": 8}}
ODD_TEXT = {"text": {"path": "/data", "sequenceLength": 7}}
DECODER = {"model": {"transformer": {"layers": 2, "dim": 16, "heads": 4}}, "data": TEXT}
OFFLOAD = {"optimizer": {"cpu": {}}}
NOVOGRAD = {"novograd": {"learningRate": 0.1}}
DROPLESS = {"count": 2, "dropless": {}}


def decoder(**changes: Any) -> dict[str, Any]:
    return {"model": {"transformer": {"layers": 2, "dim": 16, "heads": 4, **changes}}}


def a_spec(**changes: Any) -> dict[str, Any]:
    """A valid spec, with top-level sections replaced."""
    return {
        "framework": {"flax": {}},
        "model": {"cnn": {"channels": [8]}},
        "data": {"digits": {}},
        "optimizer": {"adamw": {"learningRate": 0.001}},
        "schedule": {"constant": {}},
        "training": {"steps": 10, "globalBatchSize": 8},
        "workers": {"max": 2},
        "checkpoint": {"store": CLAIM},
        **changes,
    }


def a_job(spec: dict[str, Any], name: str = "j") -> dict[str, Any]:
    return {"apiVersion": "capstan.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name}, "spec": spec}


def a_program(**changes: Any) -> dict[str, Any]:
    """A valid spec of a job that runs a program, with top-level sections replaced."""
    return {
        "program": {"command": ["python", "/code/train.py"], "framework": "torch"},
        "training": {"steps": 10, "globalBatchSize": 8},
        "workers": {"max": 2},
        "checkpoint": {"store": CLAIM},
        **changes,
    }


def schema_refusals(spec: dict[str, Any], old: dict[str, Any] | None = None, name: str = "j") -> list[str]:
    """What the API server says to creating (or, with `old`, updating to) this spec; unknown fields included."""
    job = COMPILED.default(copy.deepcopy(a_job(spec, name)))
    before = COMPILED.default(copy.deepcopy(a_job(old))) if old is not None else None
    pruned, unknown = COMPILED.prune(copy.deepcopy(job))
    return unknown + [str(error) for error in COMPILED.validate(pruned, before)]


def model_accepts(spec: dict[str, Any]) -> bool:
    try:
        TrainingJobSpec.parse(spec)
    except ValidationError:
        return False
    return True


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


def test_the_schema_is_structural() -> None:
    assert check_structural(SCHEMA) == []


def test_every_field_is_described() -> None:
    undescribed = [path for path, node in nodes(SCHEMA) if not node.get("description") and path != ".metadata"]
    assert undescribed == []


def test_the_crd_is_small_enough_for_a_client_side_apply() -> None:
    assert applied_bytes(CRD) < MAX_CRD_BYTES


def test_a_large_group_of_fields_is_described_where_it_stands_nearest_to_the_root() -> None:
    def group(said: str, about: str = "Field") -> dict[str, Any]:
        fields = {f"f{number}": {"type": "string", "description": f"{about} {number}."} for number in range(200)}
        return {"type": "object", "description": said, "properties": fields}

    deep = {"type": "object", "description": "Deep.", "properties": {"inner": group("Inner.")}}
    others = {"near": group("Near."), "another": group("Another.", about="Other field")}
    schema = {"type": "object", "properties": {"deep": deep, **others}}
    say_once(schema)
    assert schema["properties"] == {"deep": deep, "near": group("Near."), "another": group("Another.", "Other field")}
    fields = {f"f{number}": {"type": "string"} for number in range(200)}
    described = {"type": "object", "description": "Inner. Fields as in spec.near.", "properties": fields}
    assert deep["properties"] == {"inner": described}


def test_one_letter_words_survive_yaml_1_1() -> None:
    crd = {"metadata": {"name": "y"}, "n": ["Y", "no"]}
    assert "name: 'y'" in render(crd)
    assert yaml.safe_load(render(crd)) == crd


def test_what_a_crd_cannot_express_is_refused_by_name() -> None:
    with pytest.raises(UntranslatableSchema, match=r"spec\.pair: a CRD cannot express 'prefixItems'"):
        structural({"type": "object", "properties": {"pair": {"type": "array", "prefixItems": []}}}, {}, "spec")


def test_the_api_server_fills_in_what_the_models_fill_in() -> None:
    defaulted = COMPILED.default(a_job(a_spec()))["spec"]
    assert defaulted == TrainingJobSpec.parse(a_spec()).document()


@pytest.mark.parametrize("path", sorted(Path("examples").glob("*/*.yaml")), ids=str)
def test_every_example_is_accepted(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] == "TrainingJob":
            assert schema_refusals(document["spec"]) == []
            assert model_accepts(document["spec"])


REFUSED = {
    "an unknown field": (a_spec(traning={}), "traning"),
    "a string for a number": (a_spec(training={"steps": "10", "globalBatchSize": 8}), "spec.training.steps"),
    "two optimizers": (
        a_spec(optimizer={"adamw": {"learningRate": 0.1}, "sgd": {"learningRate": 0.1}}),
        "got adamw, sgd: set exactly one of adamw",
    ),
    "no optimizer": (a_spec(optimizer={}), "got none: set exactly one of adamw"),
    "a model without a version": (
        a_spec(registerAs={"name": "digits"}),
        "register: give version, or bump to have it counted up from the newest; exactly one of the two",
    ),
    "a version that is counted up": (
        a_spec(registerAs={"name": "digits", "version": "1.0.0", "bump": "patch"}),
        "register: give version, or bump to have it counted up from the newest; exactly one of the two",
    ),
    "a version that is none": (a_spec(registerAs={"name": "digits", "version": "v1"}), "spec.registerAs.version"),
    "compression that makes nothing smaller": (
        a_spec(compression={}),
        "got none: set at least one of prune, distill, lowRank, quantize",
    ),
    "pruning that ends before it begins": (
        a_spec(compression={"prune": {"magnitude": {"sparsity": 0.5, "beginStep": 9, "endStep": 9}}}),
        "prune.magnitude: endStep 9 must be beginStep 9 plus a multiple of everySteps 100, for the last cut to be",
    ),
    "pruning that ends between two cuts": (
        a_spec(compression={"prune": {"magnitude": {"sparsity": 0.5, "endStep": 7, "everySteps": 2}}}),
        "prune.magnitude: endStep 7 must be beginStep 0 plus a multiple of everySteps 2, for the last cut to be there",
    ),
    "pruning that goes on after the last step": (
        a_spec(
            compression={"prune": {"magnitude": {"sparsity": 0.5, "endStep": 200}}},
            training={"steps": 199, "globalBatchSize": 8},
        ),
        "compression: prune makes its last cut at step 200, after the last of training.steps 199; lower it",
    ),
    "pruning that begins with the last step": (
        a_spec(
            compression={"prune": {"nm": {"keep": 2, "of": 4, "beginStep": 10}}},
            training={"steps": 10, "globalBatchSize": 8},
        ),
        "compression: prune makes its last cut at step 11, after the last of training.steps 10; lower it",
    ),
    "pruning that leaves nothing out": (
        a_spec(compression={"prune": {"nm": {"keep": 4, "of": 4}}}),
        "prune.nm: keep 4 of 4 leaves nothing out; lower keep, such as 2 of 4",
    ),
    "pruning of parameters that are cut up": (
        a_spec(framework={"deepspeed": {"zeroStage": 2}}, compression={"prune": {"nm": {"keep": 2, "of": 4}}}),
        "compression: prune needs whole parameters, which deepspeed.zeroStage above 0 cuts up; choose zeroStage 0",
    ),
    "pruning of a model that is not ours": (
        a_spec(compression={"prune": {"nm": {"keep": 2, "of": 4}}}, model={"custom": {"target": "mine:make"}}),
        "compression: prune does not know how the weights of model.custom lie; remove one of the two",
    ),
    "pruning of weights that are averaged": (
        a_spec(
            compression={"prune": {"nm": {"keep": 2, "of": 4}}},
            training={"steps": 1, "globalBatchSize": 8, "ema": {}},
        ),
        "compression: prune leaves no zeros in the average of training.ema",
    ),
    "a teacher by version and stage": (
        a_spec(
            compression={"distill": {"teacher": {"registry": {"name": "t", "version": "1.0.0", "stage": "production"}}}}
        ),
        "registry: give version, which never changes, or stage, of which the meaning now holds; exactly one",
    ),
    "factors of a model that is not ours": (
        a_spec(compression={"lowRank": {"rank": 4}}, model={"custom": {"target": "mine:make"}}),
        "compression: lowRank does not know how the weights of model.custom lie; remove one of the two",
    ),
    "factors that are to be spread": (
        a_spec(
            model={"transformer": {"layers": 1, "dim": 8, "heads": 2}},
            data={"text": {"path": "t", "sequenceLength": 8}},
            compression={"lowRank": {"rank": 1}},
            parallelism={},
        ),
        "compression: lowRank has products where parallelism looks for matrices to spread; remove one of the two",
    ),
    "a rank of nothing": (a_spec(compression={"lowRank": {"rank": 0}}), "spec.compression.lowRank.rank"),
    "a teacher that is nobody": (a_spec(compression={"distill": {"teacher": {}}}), "got none: set exactly one of"),
    "integers of channels that are cut up": (
        a_spec(framework={"deepspeed": {"zeroStage": 3}}, compression={"quantize": {}}),
        "compression: quantize needs whole channels, which deepspeed.zeroStage 3 cuts up; choose zeroStage 0, 1 or 2",
    ),
    "integers of channels that FSDP cuts up": (
        a_spec(framework={"flax": {"fsdp": {}}}, compression={"quantize": {"aware": {}}}),
        "compression: quantize needs whole channels, which flax.fsdp cuts up; remove one of the two",
    ),
    "integers of a model that is not ours": (
        a_spec(compression={"quantize": {}}, model={"custom": {"target": "mine:make"}}),
        "compression: quantize does not know how the weights of model.custom lie; remove one of the two",
    ),
    "integers of matrices that are spread": (
        a_spec(
            framework={"deepspeed": {}},
            model={"transformer": {"layers": 2, "dim": 16, "heads": 4}},
            data={"tokens": {"path": "/data/tokens.bin", "vocabulary": 32, "sequenceLength": 8}},
            parallelism={"tensor": 2},
            compression={"quantize": {}},
        ),
        "compression: quantize needs whole matrices, which parallelism spreads over devices; remove one of the two",
    ),
    "integers of three bits": (a_spec(compression={"quantize": {"bits": 3}}), "spec.compression.quantize.bits"),
    "training that is aware of integers it never has": (
        a_spec(
            compression={"quantize": {"aware": {"beginStep": 10}}},
            training={"steps": 10, "globalBatchSize": 8},
        ),
        "compression: quantize.aware begins after step 10, and training.steps 10 has none after it; lower beginStep",
    ),
    "neither steps nor epochs": (a_spec(training={"globalBatchSize": 8}), "set exactly one of steps, epochs"),
    "steps and epochs": (
        a_spec(training={"globalBatchSize": 8, "steps": 1, "epochs": 1}),
        "set exactly one of steps, epochs",
    ),
    "a world that does not divide the virtual ranks": (
        a_spec(workers={"max": 3}, training={"steps": 1, "globalBatchSize": 8, "virtualRanks": 8}),
        "workers: max 3 does not divide virtualRanks 8",
    ),
    "workers that are no whole replicas": (
        a_spec(workers={"max": 6, "min": 3}, parallelism={"tensor": 2}, **DECODER),
        "workers: 3 is not a multiple of the 2 workers over which parallelism spreads one replica; choose a multiple",
    ),
    "replicas that do not divide the virtual ranks": (
        a_spec(
            workers={"max": 12},
            parallelism={"tensor": 2, "pipeline": 2},
            training={"steps": 1, "globalBatchSize": 8, "virtualRanks": 8},
            **DECODER,
        ),
        "workers: max 12 in replicas of 4 does not divide virtualRanks 8; choose",
    ),
    "a batch that the replicas do not divide": (
        a_spec(workers={"max": 12}, parallelism={"tensor": 4}, **DECODER),
        "globalBatchSize 8 is not a multiple of virtualRanks 3 (default: replicas of workers.max); choose",
    ),
    "devices that make no whole replicas": (
        a_spec(workers={"max": 2, "gpus": 4}, parallelism={"tensor": 3}, **DECODER),
        "parallelism: tensor x sequence x pipeline is 3, and workers.gpus 4 neither divides it nor is a multiple of it",
    ),
    "experts shared by more replicas than there are": (
        a_spec(workers={"max": 2, "gpus": 2}, parallelism={"tensor": 4, "expert": 2}, **DECODER),
        "parallelism: expert 2 does not divide the 1 replicas that the workers hold; choose a divisor",
    ),
    "experts that neither fill a worker nor several": (
        a_spec(workers={"max": 2, "gpus": 6}, parallelism={"expert": 4}, **DECODER),
        "parallelism: of expert 4 and the 6 replicas of each worker neither divides the other; choose degrees that fit",
    ),
    "DeepSpeed over the GPUs of one worker": (
        a_spec(
            workers={"max": 2, "gpus": 2},
            parallelism={"tensor": 2},
            framework={"deepspeed": {"zeroStage": 1}},
            **DECODER,
        ),
        "parallelism: DeepSpeed has one GPU in each worker; set workers.gpus to 1, and as many workers as there are",
    ),
    "a classifier over several devices": (
        a_spec(workers={"max": 2}, parallelism={"tensor": 2}),
        "parallelism: only layers of model.transformer can be spread over devices; remove it, or choose that model",
    ),
    "heads that cannot be shared out": (
        a_spec(workers={"max": 8}, parallelism={"tensor": 4, "sequence": 2}, **DECODER),
        "parallelism: tensor x sequence 8 does not divide model.transformer.heads 4; choose a divisor",
    ),
    "layers that cannot be shared out": (
        a_spec(workers={"max": 4}, parallelism={"pipeline": 4}, **DECODER),
        "parallelism: pipeline 4 does not divide model.transformer.layers 2; choose a divisor",
    ),
    **{
        f"parallelism with {name}": (
            a_spec(**{"workers": {"max": 2}, "framework": {"deepspeed": {}}, **DECODER, **changes}),
            f"parallelism: {reason}",
        )
        for name, reason, changes in (
            ("norms of matrices", "tensor leaves each worker", {"parallelism": {"tensor": 2}, "optimizer": NOVOGRAD}),
            (
                "an odd width",
                "tensor 2 does not divide model.transformer.hiddenDim 3",
                {"parallelism": {"tensor": 2}, **decoder(hiddenDim=3)},
            ),
            (
                "experts",
                "sequence leaves each worker",
                {"parallelism": {"sequence": 2}, **decoder(experts={"count": 2})},
            ),
            (
                "an odd length",
                "sequence 2 does not divide data.text.sequenceLength 7",
                {"parallelism": {"sequence": 2}, "data": ODD_TEXT},
            ),
            ("dropless", "expert leaves each worker", {"parallelism": {"expert": 2}, **decoder(experts=DROPLESS)}),
            (
                "weights that all gather in one order",
                "pipeline gives each worker",
                {"parallelism": {"pipeline": 2}, "framework": {"deepspeed": {"zeroStage": 3}}},
            ),
            (
                "an embedding that both ends have",
                "pipeline gives each worker",
                {"parallelism": {"pipeline": 2}, "framework": {"deepspeed": {"zeroStage": 2}}, **decoder(tied=True)},
            ),
            (
                "a second backward pass",
                "pipeline leaves each worker",
                {"parallelism": {"pipeline": 2}, "optimizer": {"sophia": {"learningRate": 0.1}}},
            ),
        )
    },
    **{
        f"parallelism of Flax with {name}": (
            a_spec(**{"workers": {"max": 2}, "framework": {"flax": flax}, **DECODER, **changes}),
            f"parallelism: {reason}",
        )
        for name, reason, flax, changes in (
            ("pieces", "tensor leaves each device", {"fsdp": {}}, {"parallelism": {"tensor": 2}}),
            ("state elsewhere", "Flax spreads state", {"offload": OFFLOAD}, {"parallelism": {"sequence": 2}}),
            ("stages in pieces", "pipeline makes stages", {"fsdp": {}}, {"parallelism": {"pipeline": 2}}),
            (
                "stages that go back",
                "pipeline makes stages",
                {},
                {"parallelism": {"pipeline": 2}, **decoder(reversible={})},
            ),
            (
                "experts in cut stages",
                "layers with experts are too much",
                {},
                {
                    "workers": {"max": 4},
                    "parallelism": {"pipeline": 2, "tensor": 2},
                    **decoder(experts={"count": 4}),
                },
            ),
            (
                "experts that take what comes",
                "expert leaves each device",
                {},
                {"parallelism": {"expert": 2}, **decoder(experts={"count": 4, "dropless": {}})},
            ),
            (
                "some tokens",
                "sequence leaves each device",
                {},
                {"parallelism": {"sequence": 2}, **decoder(layers=3, tokenDropout={"keep": 0.5})},
            ),
            (
                "an odd length",
                "sequence 2 does not divide data.text.sequenceLength 7",
                {},
                {"parallelism": {"sequence": 2}, "data": ODD_TEXT},
            ),
        )
    },
    "pruning over the stages of a pipeline": (
        a_spec(
            framework={"deepspeed": {"zeroStage": 0}},
            compression={"prune": {"nm": {"keep": 2, "of": 4}}},
            parallelism={"pipeline": 2},
            workers={"max": 2},
            **DECODER,
        ),
        "compression: prune needs whole matrices, and all, and parallelism tensor, pipeline and expert leave",
    ),
    "parallelism of a program": (
        a_program(parallelism={"tensor": 2}, workers={"max": 2}),
        "parallelism: the program decides that itself; remove it",
    ),
    "a batch the ranks do not divide": (
        a_spec(workers={"max": 3}),
        "globalBatchSize 8 is not a multiple of virtualRanks 3 (default: workers.max); choose",
    ),
    "a claim and a bucket": (
        a_spec(checkpoint={"store": {"claim": {"name": "c"}, "object": {"url": "s3://b"}}}),
        "got claim, object: set exactly one of claim, hostPath, object",
    ),
    "data at a place that nobody can read": (
        a_spec(data={"arrays": {"path": "https://example.com/x.npz"}}),
        "path: https://example.com/x.npz is neither a path in the pod nor the URL of a bucket; give s3://bucket/key",
    ),
    "an account for data on a volume": (
        a_spec(data={"arrays": {"path": "/data/x.npz", "bucket": {"secretName": "s"}}}),
        "bucket: is for a path in a bucket, not for /data/x.npz; remove it, or give the URL",
    ),
    "a region of a bucket that is not of S3": (
        a_spec(data={"images": {"path": "gs://b/p", "size": 8, "bucket": {"region": "r"}}}),
        "bucket: endpoint and region are for s3:// only, not for gs://b/p; remove them",
    ),
    "a cache of no size": (
        a_spec(data={"images": {"path": "s3://b/p", "size": 8, "bucket": {"cacheSize": "1GB"}}}),
        "cacheSize: 1GB is no size; write a whole number with one of B, KiB, MiB, GiB, such as 64MiB",
    ),
    "pictures for a transformer": (
        a_spec(
            model={"transformer": {"layers": 1, "dim": 8, "heads": 1}}, data={"images": {"path": "/data", "size": 8}}
        ),
        "transformer trains on data text or tokens, mlp and cnn on digits, arrays or images; change model or data",
    ),
    "a reference at a place that nobody can read": (
        a_spec(dataQuality={"reference": "ftp://host/data-quality.json"}),
        "reference: ftp://host/data-quality.json is neither a path in the pod nor the URL of a bucket",
    ),
    "augmentation of text": (
        a_spec(
            model={"transformer": {"layers": 1, "dim": 8, "heads": 1}},
            data={"text": {"path": "/t", "sequenceLength": 8}},
            augmentation={"horizontalFlip": {}},
        ),
        "augmentation: changes pictures, and data text or tokens has none; remove it",
    ),
    "many sizes for a model of one": (
        a_spec(model={"mlp": {"hidden": [4]}}, augmentation={"multiScale": {"sizes": [6, 8]}}),
        "augmentation: multiScale changes the size of inputs, and mlp has weights for one size; choose model cnn",
    ),
    "a mean of three channels and a deviation of one": (
        a_spec(augmentation={"normalize": {"mean": [0.5, 0.5, 0.5], "std": [1]}}),
        "mean has 3 entries and std 1; give one of each per channel",
    ),
    "a mean of one channel for pictures of three": (
        a_spec(data={"images": {"path": "/data", "size": 8}}, augmentation={"normalize": {"mean": [0.5], "std": [1]}}),
        "augmentation: normalize has 1 channels and data images 3; give one mean and one std for each channel",
    ),
    "a store that is no bucket": (
        a_spec(checkpoint={"store": {"object": {"url": "http://b/p"}}}),
        "spec.checkpoint.store.object: Invalid value: url: http://b/p is not the URL of a bucket; give "
        "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
    ),
    "a store in no certain folder": (
        a_spec(checkpoint={"store": {"hostPath": {"path": "checkpoints"}}}),
        "path: checkpoints is not absolute; give the whole path on the nodes, such as /checkpoints",
    ),
    "an endpoint that is not of S3": (
        a_spec(checkpoint={"store": {"object": {"url": "gs://b/p", "endpoint": "http://e"}}}),
        "endpoint and region are for s3:// only, not for gs://b/p; remove them",
    ),
    "a key that nothing signs with": (
        a_spec(checkpoint={"store": CLAIM, "verify": {"publicKey": "-----BEGIN PUBLIC KEY-----\nx"}}),
        "verify.publicKey takes only what is signed, and nothing signs: set sign, or remove publicKey",
    ),
    "a key that is none": (
        a_spec(checkpoint={"store": CLAIM, "sign": {"secretName": "keys"}, "verify": {"publicKey": "abc"}}),
        "verify.publicKey does not begin with -----BEGIN PUBLIC KEY-----: give the PEM of an ECDSA public key",
    ),
    "a fault at no time": (a_spec(chaos=[{"name": "a", "fault": "Kill"}]), "set exactly one of step, seconds"),
    "two faults of one name": (
        a_spec(chaos=[{"name": "a", "fault": "Kill", "step": 1}, {"name": "a", "fault": "NaN", "step": 2}]),
        "spec.chaos[1]: Duplicate value",
    ),
    "a fault for a rank that never is": (
        a_spec(chaos=[{"name": "a", "fault": "Kill", "step": 1, "rank": 2}]),
        "chaos: a is for a rank that is not below workers.max 2; lower its rank",
    ),
    "a fault for a step that never is": (
        a_spec(training={"steps": 10, "globalBatchSize": 8}, chaos=[{"name": "a", "fault": "Kill", "step": 10}]),
        "chaos: a is for a step that is not below training.steps 10; lower its step",
    ),
    "min above max": (a_spec(workers={"max": 2, "min": 4}), "workers: min 4 is above max 2"),
    "two gangs": (
        a_spec(workers={"max": 2, "gang": {"volcano": {}, "schedulerPlugins": {}}}),
        "got volcano, schedulerPlugins: set exactly one of volcano, schedulerPlugins",
    ),
    "no gang": (
        a_spec(workers={"max": 2, "gang": {}}),
        "got none: set exactly one of volcano, schedulerPlugins",
    ),
    "a queue that is none": (a_spec(workers={"max": 2, "gang": {"volcano": {"queue": "Team A"}}}), "volcano.queue"),
    "17 GPUs in one worker": (a_spec(workers={"max": 2, "gpus": 17}), "spec.workers.gpus"),
    "a CNN on text": (
        a_spec(data={"text": {"path": "/data", "sequenceLength": 8}}),
        "model: transformer trains on data text or tokens",
    ),
    "a module that nothing names": (
        a_spec(model={"custom": {"target": "mine.py"}}),
        "spec.model.custom: Invalid value: target: mine.py names nothing to call; give package.module:factory",
    ),
    "a Flax module in a precision": (
        a_spec(
            model={"custom": {"target": "mine:make"}},
            training={"steps": 1, "globalBatchSize": 8, "precision": "bf16"},
        ),
        "training.precision: in Flax, what a module computes in is said by its layers",
    ),
    "bf16 without ZeRO": (
        a_spec(
            framework={"deepspeed": {"zeroStage": 0}},
            training={"steps": 1, "globalBatchSize": 8, "precision": "bf16"},
        ),
        "zeroStage 0 cannot train in precision bf16",
    ),
    "fp16 without ZeRO": (
        a_spec(
            framework={"deepspeed": {"zeroStage": 0}},
            training={"steps": 1, "globalBatchSize": 8, "precision": "fp16"},
        ),
        "zeroStage 0 cannot train in precision fp16",
    ),
    "a scale for nothing": (
        a_spec(training={"steps": 1, "globalBatchSize": 8, "lossScale": {}}),
        "lossScale is for precision fp16 alone",
    ),
    "an attack in fp16": (
        a_spec(
            regularization={"adversarial": {"fgsm": {"epsilon": 0.1}}},
            training={"steps": 1, "globalBatchSize": 8, "precision": "fp16"},
        ),
        "training: precision fp16 cannot train with regularization.adversarial",
    ),
    "whole parameters that are cut up": (
        a_spec(framework={"flax": {"fsdp": {}}}, optimizer={"novograd": {"learningRate": 0.1}}),
        "framework: flax.fsdp cannot train with optimizer.novograd",
    ),
    "an offload of what is whole": (
        a_spec(framework={"deepspeed": {"zeroStage": 2, "offload": {"parameters": {"cpu": {}}}}}),
        "offload.parameters needs zeroStage 3",
    ),
    "an offload of nothing": (
        a_spec(framework={"deepspeed": {"zeroStage": 2, "offload": {}}}),
        "offload names nothing; set optimizer, parameters or both",
    ),
    "an offload without ZeRO": (
        a_spec(framework={"deepspeed": {"zeroStage": 0, "offload": {"optimizer": {"cpu": {}}}}}),
        "zeroStage 0 cannot offload",
    ),
    "activations of no blocks": (
        a_spec(
            model={"mlp": {"hidden": [8]}},
            training={"steps": 1, "globalBatchSize": 8, "activationCheckpointing": {"policy": "full"}},
        ),
        "training: activationCheckpointing repeats what happens in blocks",
    ),
    "an early stop that nothing leads to": (
        a_spec(callbacks={"earlyStopping": {"patience": 2}}),
        "callbacks: earlyStopping follows evaluations, and there are none; set training.evaluation",
    ),
    "NovoGrad over ZeRO": (
        a_spec(framework={"deepspeed": {"zeroStage": 2}}, optimizer={"novograd": {"learningRate": 0.01}}),
        "deepspeed.zeroStage 2 cannot train with optimizer.novograd: it needs whole parameters, which ZeRO cuts "
        "up; choose zeroStage 0",
    ),
    "adaptive clipping over ZeRO, by default": (
        a_spec(
            framework={"deepspeed": {}}, training={"steps": 1, "globalBatchSize": 8, "adaptiveClip": {"factor": 0.02}}
        ),
        "deepspeed.zeroStage 1 cannot train with training.adaptiveClip: it needs whole parameters",
    ),
    "Sophia over whole ZeRO": (
        a_spec(framework={"deepspeed": {"zeroStage": 3}}, optimizer={"sophia": {"learningRate": 0.01}}),
        "deepspeed.zeroStage 3 cannot train with optimizer.sophia: its second backward pass needs whole parameters",
    ),
    "a plateau without evaluations": (
        a_spec(schedule={"plateau": {}}),
        "schedule: plateau follows evaluations, and there are none; set training.evaluation",
    ),
    "no patience": (a_spec(callbacks={"earlyStopping": {"patience": 0}}), "spec.callbacks.earlyStopping.patience"),
    "tokens that are to be blended": (
        a_spec(
            model={"transformer": {"layers": 1, "dim": 8, "heads": 1}},
            data={"text": {"path": "/t", "sequenceLength": 8}},
            regularization={"mixup": {}},
        ),
        "regularization: mixup and cutmix blend inputs, which tokens cannot be; remove them",
    ),
    "boxes of no image": (
        a_spec(model={"mlp": {"hidden": [4]}}, regularization={"cutmix": {}}),
        "regularization: cutmix pastes boxes of images, and model mlp sees none; choose mixup, or model cnn",
    ),
    "nobody to mix with": (
        a_spec(regularization={"mixup": {}}, training={"steps": 1, "globalBatchSize": 8, "virtualRanks": 8}),
        "regularization: mixup and cutmix take two samples of one virtual rank, which has 1; raise globalBatchSize",
    ),
    "two passes that are the same": (
        a_spec(regularization={"consistency": {}}),
        "regularization: consistency compares two passes that dropout makes different, and the model has none; add",
    ),
    "an attack at ZeRO stage 3": (
        a_spec(framework={"deepspeed": {"zeroStage": 3}}, regularization={"adversarial": {"fgsm": {"epsilon": 0.1}}}),
        "regularization: adversarial takes gradients past DeepSpeed, which needs whole weights, and",
    ),
    "a step longer than the radius": (
        a_spec(regularization={"adversarial": {"pgd": {"epsilon": 0.1, "stepSize": 0.2}}}),
        "stepSize 0.2 is above epsilon 0.1; lower stepSize",
    ),
    "a password in an address": (
        a_spec(tracking={"mlflow": {"uri": "http://me:secret@mlflow:5000", "experiment": "e"}}),
        "spec.tracking.mlflow.uri",
    ),
    "W&B without a key": (
        a_spec(tracking={"wandb": {"project": "p"}}),
        "mode online needs an API key; set secretName, or mode to offline",
    ),
    "a key that nobody asks for": (
        a_spec(tracking={"wandb": {"project": "p", "mode": "offline", "secretName": "wandb"}}),
        "mode offline asks no server, and needs no API key; remove secretName, or set mode to online",
    ),
    "groups that do not divide the channels": (a_spec(model={"cnn": {"channels": [12]}}), "groups 8 does not divide"),
    "nothing to train": (
        {name: part for name, part in a_spec().items() if name not in ("model", "schedule")},
        "model, schedule: missing; add what Capstan is to train, or set program",
    ),
    "a program and a model": (
        a_program(model={"mlp": {"hidden": [8]}}, framework={"flax": {}}),
        "framework, model: the program decides that itself; remove it",
    ),
    "a program in a precision": (
        a_program(training={"steps": 1, "globalBatchSize": 8, "precision": "bf16", "gradientClip": 1.0}),
        "training.precision, training.gradientClip: the program decides that itself; remove it",
    ),
    "a program that is stopped early": (
        a_program(callbacks={"earlyStopping": {"patience": 2}}, registerAs={"name": "m"}),
        "callbacks, registerAs: the program decides that itself; remove it",
    ),
    "a program of epochs": (
        a_program(training={"epochs": 1, "globalBatchSize": 8}),
        "training.epochs: only the program knows how many steps that is; set steps",
    ),
    "a program in no image": (
        a_program(program={"command": ["train"]}),
        "program.framework: nothing says what the pods run in; set it, or workers.image",
    ),
    "a program without a command": (a_program(program={"command": [], "framework": "jax"}), "spec.program.command"),
    "a program that drops updates": (
        a_program(recovery={"numerical": {"nonFinite": "ignore"}}),
        "recovery.numerical.nonFinite: ignore drops an update, and only the program makes updates",
    ),
    "a program that records its steps": (
        a_program(recordSteps=True),
        "recordSteps: the program decides that itself; remove it",
    ),
    "a fault inside a program": (
        a_program(chaos=[{"name": "a", "fault": "NaN", "step": 1}]),
        "chaos: a happens inside the steps of a trainer, and this is a program; remove it",
    ),
    "a program on too many workers": (
        a_program(workers={"max": 3}, training={"steps": 1, "globalBatchSize": 8, "virtualRanks": 8}),
        "workers: max 3 does not divide virtualRanks 8",
    ),
    "an odd width of heads for rotary positions": (
        a_spec(model={"transformer": {"layers": 1, "dim": 9, "heads": 3}}, data=TEXT),
        "dim 9 is not an even multiple of heads 3",
    ),
    "heads that do not divide the width": (
        a_spec(model={"transformer": {"layers": 1, "dim": 8, "heads": 3, "alibi": {}}}, data=TEXT),
        "dim 8 is not a multiple of heads 3; choose a multiple",
    ),
    "more experts for a token than there are": (
        a_spec(
            model={"transformer": {"layers": 2, "dim": 8, "heads": 2, "experts": {"count": 2, "topK": 3}}}, data=TEXT
        ),
        "topK 3 is above count 2; lower topK",
    ),
    "dropped units of experts": (
        a_spec(
            model={"transformer": {"layers": 2, "dim": 8, "heads": 2, "experts": {"count": 2}, "adaptiveDropout": {}}},
            data=TEXT,
        ),
        "adaptiveDropout: drops units of the SwiGLU layer, which experts replace; remove one of the two",
    ),
    "reversible layers whose weights are in parts": (
        a_spec(
            framework={"deepspeed": {"zeroStage": 3}},
            model={"transformer": {"layers": 2, "dim": 8, "heads": 2, "reversible": {}}},
            data=TEXT,
        ),
        "framework: deepspeed.zeroStage 3 cannot train model.transformer.reversible",
    ),
    "reversible layers and activations to be kept": (
        a_spec(
            training={"steps": 1, "globalBatchSize": 8, "activationCheckpointing": {}},
            model={"transformer": {"layers": 2, "dim": 8, "heads": 2, "reversible": {}}},
            data=TEXT,
        ),
        "training: activationCheckpointing keeps or computes again what model.transformer.reversible does not keep",
    ),
    "dropped tokens without a layer to skip": (
        a_spec(model={"transformer": {"layers": 2, "dim": 8, "heads": 2, "tokenDropout": {"keep": 0.5}}}, data=TEXT),
        "tokenDropout: no layer of 2 is between the first and the last",
    ),
    "groups of a chosen norm that do not divide the channels": (
        a_spec(model={"cnn": {"channels": [12], "norm": {"group": {}}}}),
        "norm.group.groups 8 does not divide every entry of channels",
    ),
    "groups that do not divide the hidden layers": (
        a_spec(model={"mlp": {"hidden": [9], "norm": {"group": {"groups": 2}}}}),
        "norm.group.groups 2 does not divide every entry of hidden",
    ),
    "batch statistics of a single sample": (
        a_spec(model={"cnn": {"channels": [8], "norm": {"batch": {}}}}, workers={"max": 8}),
        "training: globalBatchSize 8 over virtualRanks 8 is fewer than 2 samples for norm batch or mix to take",
    ),
    "features that wait for conditions": (
        a_spec(model={"cnn": {"channels": [8], "conditionalScaling": {"film": {}}}}),
        "model: conditionalScaling and adaptiveNorm need a condition for each sample, and there is none; set data",
    ),
    "conditions that nothing looks at": (
        a_spec(data={"arrays": {"path": "/a.npz", "condition": "c"}}),
        "data.arrays.condition: nothing in the model looks at it; give the model conditionalScaling or adaptiveNorm",
    ),
    "conditions of samples that are made of two": (
        a_spec(
            model={"mlp": {"hidden": [8], "conditionalScaling": {"film": {}}}},
            data={"arrays": {"path": "/a.npz", "condition": "c"}},
            regularization={"mixup": {}},
        ),
        "regularization: mixup and cutmix make one sample of two, which have two conditions; remove them, or",
    ),
    "experts that would be chosen again": (
        a_spec(
            model={"transformer": {"layers": 2, "dim": 8, "heads": 2, "reversible": {}, "experts": {"count": 4}}},
            data=TEXT,
        ),
        "model: transformer.reversible computes the inputs of each layer again, equal but for the last bits, and its "
        "router would choose other experts by these than in the forward pass; remove one of the two",
    ),
    "pictures of many sizes for a module that is tried with one": (
        a_spec(
            model={"custom": {"target": "mine:make"}},
            augmentation={"multiScale": {"sizes": [6, 8]}},
        ),
        "augmentation: multiScale changes the size of inputs, and model.custom is tried with the size of spec.data",
    ),
    "adaptive clipping of a module whose output layer nobody knows": (
        a_spec(
            model={"custom": {"target": "mine:make"}},
            training={"steps": 10, "globalBatchSize": 8, "adaptiveClip": {}},
        ),
        "training.adaptiveClip: leaves out the output layer, and which layer of model.custom that is, only your module",
    ),
    "a quantity that is none": (a_spec(workers={"max": 2, "resources": {"cpu": "two"}}), "resources"),
}


@pytest.mark.parametrize(("spec", "expected"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_at_apply_time_and_by_the_models(spec: dict[str, Any], expected: str) -> None:
    refusals = schema_refusals(spec)
    assert any(expected in line for line in refusals), refusals
    assert not model_accepts(spec)


@pytest.mark.parametrize("store", [{"object": {"url": "http://b/p"}}, {"hostPath": {"path": "checkpoints"}}])
def test_of_a_store_that_is_none_one_line_is_said(store: dict[str, Any]) -> None:
    (line,) = schema_refusals(a_spec(checkpoint={"store": store}))
    assert "such as /checkpoints" in line or "s3://bucket/prefix" in line


def test_of_every_field_it_is_decided_whether_it_is_for_programs() -> None:
    shared = {
        "checkpoint",
        "recovery",
        "tracking",
        "chaos",
        "suspend",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
        "managedBy",
    }
    decided = {"program", "training", "workers", *parts_of_trainers(Run), *NOT_FOR_PROGRAMS, *shared}
    assert {field.alias or name for name, field in TrainingJobSpec.model_fields.items()} == decided


def test_a_program_stays_a_program_and_a_trainer_a_trainer() -> None:
    other = a_program(program={"command": ["python", "/code/other.py"], "framework": "torch"})
    for old, new in ((a_program(), other), (a_program(), a_spec()), (a_spec(), a_program())):
        refusals = schema_refusals(new, old=old)
        assert any("program: cannot change after the job was created" in line for line in refusals), refusals
    assert schema_refusals(a_program(), old=a_program()) == []


def test_what_the_run_is_cannot_change_but_its_size_and_suspension_can() -> None:
    old = a_spec(workers={"max": 2}, training={"steps": 10, "globalBatchSize": 8, "virtualRanks": 4})
    assert schema_refusals({**old, "suspend": True, "workers": {"max": 4}}, old) == []
    changed = schema_refusals({**old, "model": {"cnn": {"channels": [16]}}}, old)
    assert len(changed) == 1
    assert "model: cannot change after the job was created" in changed[0]


def test_where_checkpoints_are_cannot_change_but_faults_may_come_and_go() -> None:
    old = a_spec(checkpoint={"store": {"object": {"url": "s3://b/p", "region": "r"}}})
    assert schema_refusals({**old, "chaos": [{"name": "a", "fault": "Kill", "step": 1}]}, old) == []
    moved = a_spec(checkpoint={"store": {"object": {"url": "s3://b/q", "region": "r"}}})
    refusals = schema_refusals(moved, old)
    assert len(refusals) == 1
    assert "checkpoint.store: cannot change" in refusals[0]


ONE_KEY, ANOTHER = {"sign": {"secretName": "key"}}, {"sign": {"secretName": "other"}}


@pytest.mark.parametrize(("old", "new"), [(ONE_KEY, ANOTHER), (ONE_KEY, {}), ({}, ONE_KEY)])
def test_how_checkpoints_are_kept_may_change_but_not_who_signs_them(old: dict[str, Any], new: dict[str, Any]) -> None:
    store = {"store": {"hostPath": {"path": "/c"}}}
    before = a_spec(checkpoint=store | old)
    kept = {"interval": {"steps": 5}, "retention": {"last": 9}, "verify": {"level": "sampled"}}
    assert schema_refusals(a_spec(checkpoint=store | old | kept), before) == []
    (refusal,) = schema_refusals(a_spec(checkpoint=store | new), before)
    assert "checkpoint.sign: cannot change after the job was created" in refusal


@pytest.mark.parametrize("field", ["max", "min"])
def test_a_number_of_workers_below_one_is_refused_in_one_line(field: str) -> None:
    refusals = schema_refusals(a_spec(workers={"max": 2, field: 0}))
    assert len(refusals) == 1, refusals
    assert f"spec.workers.{field}" in refusals[0]


@pytest.mark.parametrize("workers", [1, 2, 10, 11, 100])
def test_the_longest_name_is_the_same_at_apply_time_as_for_the_operator(workers: int) -> None:
    spec = a_spec(workers={"max": workers}, training={"steps": 1, "globalBatchSize": workers})
    room = longest_job_name(workers)
    assert schema_refusals(spec, name="x" * room) == []
    refusals = schema_refusals(spec, name="x" * (room + 1))
    assert len(refusals) == 1
    assert f"leave room for {room}; shorten it" in refusals[0]
    assert spec_problems("x" * room, TrainingJobSpec.parse(spec), "default") == []
    assert len(spec_problems("x" * (room + 1), TrainingJobSpec.parse(spec), "default")) == 1


BASES = (
    a_spec(),
    a_spec(
        framework={"deepspeed": {"zeroStage": 2}},
        model={"mlp": {"hidden": [8, 4]}},
        data={"arrays": {"path": "/a.npz"}},
        workers={"max": 4, "min": 2, "gpus": 1, "resources": {"cpu": "500m"}, "tolerations": [{"key": "gpu"}]},
    ),
    a_spec(
        model={"transformer": {"layers": 2, "dim": 16, "heads": 4, "kvHeads": 2}},
        data={"text": {"path": "/t", "sequenceLength": 8}},
        training={"epochs": 2, "globalBatchSize": 12, "virtualRanks": 6, "precision": "bf16"},
        workers={"max": 6, "min": 3},
    ),
    a_program(),
    a_spec(model={"custom": {"target": "mine:make", "config": {"width": 8}}}),
)
SMALL = range(-1, 10)
NUMBERS = (-1.0, 0, 0.0, 0.5, 1, 1.0, 2, "0.5", True)
VALUES: dict[str, Any] = {
    "program": (
        {"command": ["a"]},
        {"command": ["a"], "framework": "jax"},
        {"command": []},
        {"command": "a"},
        {"framework": "jax"},
        {},
    ),
    "recordSteps": (True, False, "no"),
    "framework": ({"flax": {}}, {"deepspeed": {}}, {"deepspeed": {"zeroStage": 0}}, {}, {"jax": {}}),
    "framework.deepspeed": tuple({"zeroStage": stage} for stage in SMALL),
    "model": tuple({"cnn": {"channels": [channels], "groups": groups}} for channels in (4, 6, 8) for groups in SMALL),
    "model.cnn": tuple(
        {"channels": [channels], "norm": norm}
        for channels in (4, 6, 9)
        for norm in ({"batch": {}}, {"mix": {}}, {"group": {}}, {"group": {"groups": 3}}, {"layer": {}}, {"no": {}}, {})
    ),
    "model.mlp.norm": (
        {"batch": {"momentum": 0}},
        {"mix": {}},
        {"group": {"groups": 4}},
        {"instance": {}},
        {"rms": {}},
    ),
    "model.custom": (
        {"target": "a:b"},
        {"target": "a.b:c.d", "config": {"width": [1, {"deep": True}]}},
        {"target": "a b:c"},
        {"target": "a:b", "config": 3},
        {"target": ":b"},
        {"target": "ä:b"},
        {"target": "a:b\n"},
    ),
    "model.mlp": ({"hidden": []}, {"hidden": [0]}, {"hidden": [1] * 65}, {"hidden": [3], "hiden": [3]}, {"hidden": 3}),
    "model.transformer": tuple(
        {"layers": 1, "dim": dim, "heads": heads} | ({"kvHeads": kv} if kv != 9 else {})
        for dim in (7, 8, 12, 16)
        for heads in (0, 1, 2, 3, 4)
        for kv in (0, 1, 2, 3, 9)
    ),
    "data": ({"digits": {}}, {"digits": {}, "text": {"path": "/t", "sequenceLength": 2}}, {"tokens": {"path": "/t"}}),
    "data.digits.validationFraction": NUMBERS,
    "data.arrays": (
        {"path": ""},
        {"path": "s3://"},
        {"path": "s3://b/x.npz"},
        {"path": "s3://b/x.npz", "bucket": {}},
        {"path": "gs://b/x.npz", "bucket": {"endpoint": "http://h"}},
        {"path": "/x.npz", "bucket": {}},
        *({"path": "az://b/x.npz", "bucket": {"cacheSize": size}} for size in ("1GiB", "0GiB", "1GB", "", 1)),
    ),
    "data.images": tuple(
        {"path": "/i", "size": size, "channels": channels, "fit": fit}
        for size in (0, 1, 8, 4097)
        for channels in (1, 2, 3)
        for fit in ("crop", "pad")
    ),
    "dataQuality": (
        {},
        {"badSamples": "skip", "maxBadFraction": 0},
        {"badSamples": "drop"},
        {"maxBadFraction": 1.1},
        {"scanSamples": 0},
        *({"reference": place} for place in ("", "/r.json", "s3://b/r.json", "s3://", "http://h/r.json")),
    ),
    "augmentation": (
        {},
        {"horizontalFlip": {}, "verticalFlip": {"probability": 1}},
        {"verticalFlip": {"probability": 0}},
        {"randomCrop": {"padding": 0}},
        {"randomCrop": {"padding": 2}},
        {"normalize": {"mean": [0.5], "std": [0.5]}},
        {"normalize": {"mean": [0.5], "std": [0]}},
        {"normalize": {"mean": [0.5, 1], "std": [0.5]}},
        {"normalize": {"mean": [], "std": []}},
        {"multiScale": {"sizes": [8]}},
        {"multiScale": {"sizes": [8, 0]}},
        {"multiScale": {"sizes": [8, 6]}},
        {"multiScale": {"sizes": [8, 6], "everySteps": 0}},
    ),
    "parallelism": (
        {},
        *({axis: degree} for axis in ("tensor", "sequence", "pipeline", "expert") for degree in (0, 1, 2, 3)),
        {"tensor": 2, "sequence": 2},
        {"tensor": 2, "expert": 2},
        {"tensor": "2"},
    ),
    "data.text.sequenceLength": SMALL,
    "optimizer": tuple({"sgd": {"learningRate": 0.1, "momentum": value}} for value in NUMBERS),
    "optimizer.adamw.learningRate": NUMBERS,
    "schedule": tuple({"cosine": {"warmupSteps": 1, "finalFraction": value}} for value in NUMBERS),
    "loss": (
        *({"crossEntropy": {"labelSmoothing": value}} for value in NUMBERS),
        {"focal": {}},
        {"focal": {"classWeights": [1.0]}},
        {"focal": {"classWeights": [1.0, 0.0]}},
    ),
    "regularization": (
        {},
        {"mixup": {}},
        {"cutmix": {"alpha": 0}},
        {"mixup": {}, "cutmix": {}},
        {"consistency": {"weight": 0}},
        {"adversarial": {}},
        {"adversarial": {"fgsm": {"epsilon": 0.1, "share": 1.5}}},
        {"adversarial": {"pgd": {"epsilon": 0.1, "stepSize": 0.2}}},
        {"adversarial": {"pgd": {"epsilon": 0.1, "stepSize": 0.1, "steps": 0}}},
    ),
    "training.steps": SMALL,
    "training.epochs": SMALL,
    "training.globalBatchSize": (0, 1, 2, 4, 6, 8, 12, "8", 8.5),
    "training.virtualRanks": SMALL,
    "training.precision": ("fp32", "bf16", "fp16", "fp8", 32),
    "training.gradientClip": NUMBERS,
    "training.seed": (-1, 0, 2**31 - 1, 2**31),
    "training.evaluation": ({}, {"everySteps": 0}, {"everySteps": 1}),
    "workers.max": SMALL,
    "workers.min": SMALL,
    "workers.gpus": (-1, 0, 2, 3, 16, 17),
    "workers.image": ("", "i"),
    "workers.resources": tuple({"cpu": value} for value in ("1", "500m", "1.5Gi", "", "-1", "1 Gi", 1)),
    "workers.tolerations": ([], [{}], [{"operator": "Exists", "tolerationSeconds": 3}], [{"seconds": 3}], {}),
    "workers.podPatch": ({}, {"spec": {"anything": [1]}}, []),
    "checkpoint.store": ({}, {"claim": {"name": ""}}, {"hostPath": {"path": "/p"}}, {"hostPath": {"path": "p"}}),
    "checkpoint.store.object": (
        {},
        {"url": "s3://b"},
        {"url": "s3://"},
        {"url": "http://b"},
        {"url": "gs://b/p", "region": "r"},
        {"url": "az://c", "secretName": ""},
        {"url": "s3://b/p", "endpoint": "http://localhost:9000", "secretName": "s"},
        {"url": "s3://b/p", "endpoint": "localhost:9000"},
    ),
    "checkpoint.sign": ({}, {"secretName": ""}, {"secretName": "key"}, {"secret": "key"}),
    "checkpoint.interval": ({}, {"steps": 0}, {"steps": 1}, {"seconds": 1}, {"steps": 1, "seconds": 1}),
    "checkpoint.verify": ("full", "manifest", "maybe"),
    "checkpoint.retention": ({"last": 1}, {"last": 2}, {}),
    "recovery.budgets": ({"lost": 0}, {"lost": -1}, {"lots": 1}),
    "recovery.numerical": (
        {"nonFinite": "rewind"},
        {"nonFinite": "ignore"},
        {"nonFinite": "stop"},
        {"skipSteps": 0},
        {"lossSpike": {}},
        {"lossSpike": {"factor": 1.0}},
        {"lossSpike": {"factor": 3}},
        {"lossSpike": {"factor": 3, "window": 4}},
    ),
    "recovery.memoryTier": (False, "no"),
    "recovery.warmSpare": (False, 1),
    "recovery.noProgressAttempts": SMALL,
    "chaos": (
        [],
        {},
        [{}],
        [{"name": "a", "fault": "Kill", "step": 1}],
        [{"name": "a", "fault": "Kill", "step": 1}, {"name": "b", "fault": "DeletePod", "seconds": 0, "rank": 0}],
        [{"name": "a", "fault": "Kill", "step": 1}, {"name": "a", "fault": "DeletePod", "seconds": 0}],
        [{"name": "a", "fault": "Kill", "step": 1, "seconds": 1}],
        [{"name": "a", "fault": "Kill"}],
        [{"name": "A", "fault": "Kill", "step": 1}],
        [{"name": "a", "fault": "Trip", "step": 1}],
        [{"name": "a", "fault": "NaN", "step": 0}],
        [{"name": "a", "fault": "NaN", "step": 1, "rank": -1}],
        [{"name": "a", "fault": "NaN", "step": 1, "seed": -1}],
        [{"name": "a", "fault": "SlowRank", "step": 1, "durationSeconds": 0}],
        [{"name": f"a{number}", "fault": "Kill", "step": 1} for number in range(101)],
        *([{"name": "a", "fault": "Hang", "step": 1, "rank": rank}] for rank in range(8)),
    ),
    "suspend": (False, True, "true", 0),
    "activeDeadlineSeconds": SMALL,
    "ttlSecondsAfterFinished": SMALL,
}


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """A valid spec in which up to two values were changed, to something at or around what is allowed."""
    spec = copy.deepcopy(draw(st.sampled_from(BASES)))
    for path in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=2)):
        *parents, last = path.split(".")
        section = spec
        for name in parents:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                break
        else:
            section[last] = draw(st.sampled_from(VALUES[path]))
    return spec


@given(specs())
@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
def test_models_and_schema_give_the_same_verdict(spec: dict[str, Any]) -> None:
    refusals = schema_refusals(spec)
    assert model_accepts(spec) == (refusals == []), refusals
