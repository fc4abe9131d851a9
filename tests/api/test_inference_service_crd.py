"""The CRD of InferenceService: legal, complete, and of one mind with the models it comes from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from capstan_local.schema.structural import check_structural, compile_schema
from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.crd_size import MAX_CRD_BYTES, applied_bytes
from capstan_operator.crdgen import inference_service_crd
from capstan_operator.decide.serving.blueprint import name_problems

CRD = inference_service_crd()
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
COMPILED = compile_schema(SCHEMA)
DIGEST = "blake3:" + "0" * 64


def a_spec(**changes: Any) -> dict[str, Any]:
    return {"modelRef": {"trainingJob": {"name": "digits"}}, **changes}


def registered(**changes: Any) -> dict[str, Any]:
    """A modelRef of a registry; None takes a field away."""
    reference = {"store": {"claim": {"name": "c"}}, "name": "digits", "stage": "production", **changes}
    return {"registry": {key: value for key, value in reference.items() if value is not None}}


def stored(**changes: Any) -> dict[str, Any]:
    """A modelRef by place."""
    return {"uri": {"store": {"claim": {"name": "c"}}, "run": "default/digits/7f3a", "digest": DIGEST, **changes}}


def canary(*weights: int) -> dict[str, Any]:
    return {"strategy": {"canary": {"steps": [{"weight": weight} for weight in weights]}}}


def behind(*parents: dict[str, Any], hostnames: list[str] | None = None) -> dict[str, Any]:
    """A gateway."""
    return {"parentRefs": list(parents), **({"hostnames": hostnames} if hostnames else {})}


def schema_refusals(spec: dict[str, Any], name: str = "digits") -> list[str]:
    """What the API server says to creating this; unknown fields included."""
    document = {"apiVersion": "capstan.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name}}
    service = COMPILED.default(copy.deepcopy(document | {"spec": spec}))
    pruned, unknown = COMPILED.prune(copy.deepcopy(service))
    return unknown + [str(error) for error in COMPILED.validate(pruned, None)]


def model_refusal(spec: dict[str, Any]) -> str | None:
    try:
        InferenceServiceSpec.parse(spec)
    except ValidationError as error:
        return str(error)
    return None


def agreeing(least: float) -> dict[str, Any]:
    """A rollout whose canaries are compared."""
    return {"strategy": {"canary": {"gates": {"minAgreement": least}}}}


def by_kuberay(**changes: Any) -> dict[str, Any]:
    return a_spec(backend="RayService", **{"rollout": {"strategy": {"blueGreen": {}}}, **changes})


def undescribed(schema: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for name, child in schema.get("properties", {}).items():
        where = f"{path}.{name}"
        found += [] if child.get("description") or where == ".metadata" else [where]
        found += undescribed(child, where)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found += undescribed(schema[key], f"{path}[]")
    return found


def test_the_schema_is_structural_described_and_small() -> None:
    assert check_structural(SCHEMA) == []
    assert undescribed(SCHEMA) == []
    assert applied_bytes(CRD) < MAX_CRD_BYTES


def test_the_columns_answer_what_is_served_and_why() -> None:
    columns = CRD["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = [column["name"] for column in columns if "priority" not in column]
    assert shown == ["Ready", "URL", "Model", "Digest", "Traffic", "Reason", "Age"]


def test_the_api_server_fills_in_what_the_models_fill_in() -> None:
    for spec in (
        a_spec(rollout={"strategy": {"canary": {}}}, rateLimit={"requests": 10}),
        a_spec(autoscaling={"maxReplicas": 3}),
    ):
        defaulted = COMPILED.default({"metadata": {"name": "x"}, "spec": copy.deepcopy(spec)})["spec"]
        assert defaulted == InferenceServiceSpec.parse(spec).document()


ACCEPTED = {
    "a stage of a registry": a_spec(modelRef=registered()),
    "a version of a registry": a_spec(modelRef=registered(stage=None, version="2.0.0-rc.1", publicKey="PEM")),
    "the least": a_spec(),
    "a place and a runtime": a_spec(modelRef=stored(), runtime="torch"),
    "a bucket": a_spec(modelRef=stored(store={"object": {"url": "s3://b/p"}}), runtime="flax"),
    "a digest": a_spec(modelRef={"trainingJob": {"name": "digits", "digest": DIGEST}}),
    "all strategies' fields": a_spec(
        rollout={
            "strategy": {"canary": {"steps": [{"weight": 1}, {"weight": 50, "holdSeconds": 5}], "gates": {}}},
            "autoRollback": False,
            "progressDeadlineSeconds": 60,
        }
    ),
    "autoscaling": a_spec(autoscaling={"maxReplicas": 3}),
    "autoscaling to the last place": a_spec(
        autoscaling={"minReplicas": 3, "maxReplicas": 3, "targetOngoingRequests": 320, "upscaleDelaySeconds": 0}
    ),
    "a comparison": a_spec(rollout=agreeing(0.9)),
    "a language model that is not compared": a_spec(protocols=["OpenAI"], rollout={"strategy": {"canary": {}}}),
    "weights above half with a gateway": a_spec(gateway=behind({"name": "public"}), rollout=canary(1, 51, 99)),
    "just enough grace": a_spec(drainSeconds=45, timeoutSeconds=5, terminationGracePeriodSeconds=60),
    "two gateways, one by its listeners": a_spec(
        gateway=behind(
            {"name": "a", "sectionName": "http"},
            {"name": "a", "sectionName": "https"},
            {"name": "a", "namespace": "edge"},
            hostnames=["digits.example.com", "*.example.com"],
        )
    ),
    "KubeRay": by_kuberay(replicas=3, auth={"apiKeysSecretRef": {"name": "keys"}}, gpus=1),
    "pods of its own": a_spec(backend="Standalone", autoscaling={"maxReplicas": 3}),
    "guards": a_spec(
        timeoutSeconds=5,
        auth={"apiKeysSecretRef": {"name": "keys"}},
        tls={"secretRef": {"name": "digits-tls"}},
        adaptiveLimit={},
        cache={"maxMebibytes": 1},
        audit={},
        anomaly={"action": "Reject", "energyAbove": -2.5},
        validation={"range": {"min": 0, "max": 1}},
    ),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_both_accept(what: str) -> None:
    assert schema_refusals(ACCEPTED[what]) == []
    assert model_refusal(ACCEPTED[what]) is None


REFUSED = {
    "an unknown field": (a_spec(registry={}), "registry"),
    "tls without a Secret": (a_spec(tls={}), "tls.secretRef"),
    "a Secret without a name": (a_spec(tls={"secretRef": {"name": ""}}), "tls.secretRef.name"),
    "a Secret of another namespace": (a_spec(tls={"secretRef": {"name": "a", "namespace": "b"}}), "namespace"),
    "no model": (a_spec(modelRef={}), "got none: set exactly one of trainingJob, uri, registry"),
    "two models": (
        a_spec(modelRef={"trainingJob": {"name": "a"}, **stored()}, runtime="flax"),
        "got trainingJob, uri: set exactly one of",
    ),
    "a registered model without a version": (
        a_spec(modelRef=registered(stage=None)),
        "registry: give version, which never changes, or stage, whose promotions are followed; exactly one",
    ),
    "a registered model of a version and a stage": (
        a_spec(modelRef=registered(version="1.0.0")),
        "registry: give version, which never changes, or stage, whose promotions are followed; exactly one",
    ),
    "a version that is none": (a_spec(modelRef=registered(stage=None, version="v1")), "modelRef.registry.version"),
    "a version with build metadata": (
        a_spec(modelRef=registered(stage=None, version="1.0.0+gpu")),
        "modelRef.registry.version",
    ),
    "a stage that looks like a version": (a_spec(modelRef=registered(stage="1.0.0")), "modelRef.registry.stage"),
    "a place without a runtime": (a_spec(modelRef=stored()), "runtime: is needed with modelRef.uri"),
    "a step, which nobody can look up": (a_spec(modelRef={"trainingJob": {"name": "a", "step": 3}}), "step"),
    "a digest that is followed": (
        a_spec(modelRef={"trainingJob": {"name": "a", "track": True, "digest": DIGEST}}),
        "track follows new checkpoints and digest names one; remove one of the two",
    ),
    "a digest of another kind": (a_spec(modelRef={"trainingJob": {"name": "a", "digest": "sha256:00"}}), "digest"),
    "two strategies": (
        a_spec(rollout={"strategy": {"rolling": {}, "canary": {}}}),
        "got rolling, canary: set exactly one of rolling, canary, blueGreen",
    ),
    "weights that fall": (
        a_spec(rollout={"strategy": {"canary": {"steps": [{"weight": 20}, {"weight": 10}]}}}),
        "steps: weights must grow from step to step; sort them",
    ),
    "the same weight twice": (
        a_spec(rollout={"strategy": {"canary": {"steps": [{"weight": 20}, {"weight": 20}]}}}),
        "steps: weights must grow from step to step; sort them",
    ),
    "a weight that pods cannot have": (
        a_spec(rollout=canary(10, 51)),
        "rollout.strategy.canary.steps: a weight above 50 needs a Gateway; lower it or set spec.gateway",
    ),
    "a weight that nobody can have": (a_spec(gateway=behind({"name": "a"}), rollout=canary(100)), "weight"),
    "a gateway without a name": (a_spec(gateway=behind()), "parentRefs"),
    "a gateway twice": (
        a_spec(gateway=behind({"name": "a"}, {"name": "b"}, {"name": "a", "sectionName": "https"})),
        "parentRefs: the same Gateway stands there twice; name another listener in sectionName of each",
    ),
    "TLS behind a gateway": (
        a_spec(gateway=behind({"name": "a"}), tls={"secretRef": {"name": "certificate"}}),
        "gateway: Gateways speak plain HTTP to pods, and with tls pods speak TLS alone; remove tls and let the "
        "Gateway's listener end TLS, or remove gateway",
    ),
    "a host name with a port": (a_spec(gateway=behind({"name": "a"}, hostnames=["digits:80"])), "hostnames"),
    "no certainty": (a_spec(rollout={"strategy": {"canary": {"gates": {"confidence": 1.0}}}}), "confidence"),
    "perfect agreement, which nothing can prove": (a_spec(rollout=agreeing(1.0)), "minAgreement"),
    "classes of a language model": (
        a_spec(rollout=agreeing(0.9), protocols=["OpenAI"]),
        "rollout.strategy.canary.gates.minAgreement: compares predicted classes, and protocols has OpenAI, which is "
        "for language models; remove one of the two",
    ),
    "a rule of the guards": (
        a_spec(adaptiveLimit={"minOngoing": 100}, queue={"maxOngoingRequests": 8}),
        "adaptiveLimit.minOngoing 100 is above queue.maxOngoingRequests 8; lower minOngoing",
    ),
    "no replicas": (a_spec(replicas=0), "replicas"),
    "less grace than requests may take": (
        a_spec(drainSeconds=45, timeoutSeconds=5.5, terminationGracePeriodSeconds=60),
        "terminationGracePeriodSeconds: 60 is below drainSeconds 45 + timeoutSeconds 5.5 + 10 to end; raise it",
    ),
    "two who decide the size": (
        a_spec(replicas=1, autoscaling={"maxReplicas": 3}),
        "decides how many pods there are, and replicas 1 does too; remove one of the two",
    ),
    "a least size above the most": (
        a_spec(autoscaling={"minReplicas": 4, "maxReplicas": 3}),
        "minReplicas 4 is above maxReplicas 3; lower minReplicas",
    ),
    "a size of none": (a_spec(autoscaling={"minReplicas": 0, "maxReplicas": 3}), "minReplicas"),
    "a target that a pod's queue does not let in": (
        a_spec(
            autoscaling={"maxReplicas": 3, "targetOngoingRequests": 11},
            queue={"maxOngoingRequests": 8, "maxQueuedRequests": 2},
        ),
        "targetOngoingRequests 11 is above the 10 that queue lets into a pod (maxOngoingRequests + maxQueuedRequests); "
        "lower it",
    ),
    "another backend": (a_spec(backend="Knative"), "backend"),
    "KubeRay behind a gateway": (
        by_kuberay(gateway=behind({"name": "a"})),
        "gateway: backend RayService has no HTTPRoute; remove gateway, or set backend Standalone",
    ),
    "KubeRay with TLS": (
        by_kuberay(tls={"secretRef": {"name": "certificate"}}),
        "tls: backend RayService speaks plain HTTP; remove tls, or set backend Standalone",
    ),
    "KubeRay that scales": (
        by_kuberay(autoscaling={"maxReplicas": 3}),
        "autoscaling: backend RayService has as many replicas as it is told; set replicas instead, or set backend "
        "Standalone",
    ),
    "KubeRay that rolls pod by pod": (
        a_spec(backend="RayService"),
        "rollout.strategy: backend RayService moves all traffic at once, to a whole new cluster; set blueGreen, or set "
        "backend Standalone",
    ),
    "KubeRay with a canary": (by_kuberay(rollout=canary(10)), "rollout.strategy: backend RayService moves all traffic"),
    "KubeRay with a deadline": (
        by_kuberay(rollout={"strategy": {"blueGreen": {}}, "progressDeadlineSeconds": 60}),
        "rollout.progressDeadlineSeconds: backend RayService waits for a new cluster without end, while the old one "
        "serves; leave it out, or set backend Standalone",
    ),
    "KubeRay with a drain": (
        by_kuberay(drainSeconds=30),
        "drainSeconds: backend RayService leaves to Ray when a pod that goes takes no new request; leave it out, or "
        "set backend Standalone",
    ),
    "an unknown protocol": (a_spec(protocols=["gRPC"]), "protocols"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_both_refuse_and_say_why(what: str) -> None:
    spec, text = REFUSED[what]
    assert any(text in line for line in schema_refusals(spec)), schema_refusals(spec)
    assert text in (model_refusal(spec) or "")


@pytest.mark.parametrize("name", ["digits", "a", "a" * 54, "a-1", "1digits", "a" * 55, "digits.v2", "-a", "a-"])
def test_both_judge_a_name_alike(name: str) -> None:
    assert (schema_refusals(a_spec(), name) == []) == (name_problems(name) == [])


def test_services_are_named_after_it() -> None:
    assert name_problems("a" * 54) == []
    assert len(name_problems("a" * 55)) == len(name_problems("1digits")) == 1
