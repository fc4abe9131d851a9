"""Cases of tests/decide/serving/cases: `given` how a service came to where it is, `expected` all that is decided then.

given:
  born    merged into the spec that the service began with
  story   what happened, in order: `live` (the first revision has all traffic), `settle` (look until nothing changes),
          `look` (once), {ready: stable | candidate | all, count: n}, {wait: seconds}, {untrained: true},
          {train: step, verified: bool, done: bool}, {spec: merged into the spec},
          {pods: stable | candidate, of ObservedReplica: values},
          {lose: stable | candidate, count: n} (so many pods are ready no more),
          {quota: message} (no further pod is made, for that reason),
          {vanish: stable | candidate} (its Deployment was deleted by hand),
          {traffic: {stable | candidate: [requests, errors, compared, different]}}, the last two or none of them,
          {latency: {stable | candidate: [p50, p99] in seconds}},
          {ongoing: requests, seconds: n, turned_away: n, silent: pods} (a sample of the load now and every 5 s),
          {gateway: of GatewayWorld: values}, hear (the Gateway hears of the HTTPRoute),
          `another operator` (leads from now on, and begins to count)
expected:
  what the look after the story leads to: apply (kind and name, size or destination), scale, delete, events,
  requeue_after, and of status what changed: conditions as `status reason`, revisions by name
Revisions are called first, second, … in the order in which they came up: their names are digests.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.api.meta import LABEL_REVISION
from capstan_operator.decide.inference_service import decide_inference_service
from capstan_operator.decide.serving.types import ServingDecision
from capstan_operator.observe_serving import RevisionLatency, ServedTraffic
from tests.support.looks import make_job, merged
from tests.support.serving_world import BOUNDS, PROVEN, SERVICE, World, live, trained

SAMPLE_SECONDS = 5.0
ORDINALS = ("first", "second", "third", "fourth", "fifth")


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(given, expected) of one case."""
    case = yaml.safe_load(path.read_text())
    return case["given"] or {}, case.get("expected") or {}


def lived(given: dict[str, Any]) -> World:
    """The world after the story."""
    story = list(given.get("story", []))
    born = given.get("born", {})
    world = live(**born) if story[:1] == ["live"] else World(spec=born)
    for chapter in story[1 if story[:1] == ["live"] else 0 :]:
        _happen(world, chapter)
    return world


def decided(world: World) -> dict[str, Any]:
    """What is decided on the next look, as `expected` tells it."""
    return told(world, decide_inference_service(world.look(), world.now))


def told(world: World, decision: ServingDecision) -> dict[str, Any]:
    """All of a decision in plain words; what is empty is left out."""
    document: dict[str, Any] = {
        "apply": [_applied(manifest) for manifest in decision.apply],
        "scale": {scale.deployment: scale.replicas for scale in decision.scale},
        "delete": [f"{deletion.kind} {deletion.name}" for deletion in decision.delete],
        "status": _difference(world.status, decision.status),
        "events": [f"{note.type} {note.reason}: {note.message}" for note in decision.events],
        "requeue_after": None if decision.requeue_after is None else round(decision.requeue_after, 3),
    }
    text = yaml.safe_dump({key: value for key, value in document.items() if value not in (None, [], {})}, width=10_000)
    names = list(dict.fromkeys(re.findall(rf"{SERVICE}-[0-9a-f]{{8}}", _seen_names(world) + text)))
    for name, ordinal in zip(names, ORDINALS, strict=False):
        text = text.replace(name, ordinal)
    parsed: dict[str, Any] = yaml.safe_load(text) or {}
    return {key: parsed[key] for key in document if key in parsed}


def rewrite(path: Path) -> None:
    """Replaces `expected` by what is decided now. What a person should do next is read the difference."""
    given, _ = load(path)
    head = path.read_text().partition("\nexpected:")[0].rstrip()
    expected = yaml.safe_dump({"expected": decided(lived(given))}, sort_keys=False, width=118, allow_unicode=True)
    path.write_text(f"{head}\n{expected}")


def _happen(world: World, chapter: Any) -> None:
    named = {"stable": world.stable, "candidate": world.candidate, "all": None}
    match chapter:
        case "settle":
            world.settle()
        case "look":
            world.decide()
        case "another operator":
            world.replace_operator()
        case {"ready": str(who)}:
            world.get_ready(named[who], chapter.get("count"))
        case {"wait": seconds}:
            world.now += seconds
        case {"train": step}:
            world.job = trained(step, is_verified=chapter.get("verified", True), is_done=chapter.get("done", True))
        case {"untrained": True}:
            world.job = make_job()
        case {"job": None}:
            world.job = None
        case {"spec": change}:
            world.spec = merged(world.spec, change)
        case {"pods": who}:
            world.change_pods(named[who], **{key: value for key, value in chapter.items() if key != "pods"})
        case {"traffic": counts}:
            world.traffic = {str(named[who]): _served(*count) for who, count in counts.items()}
        case {"ongoing": requests}:
            _load(world, requests, chapter)
        case {"latency": seconds}:
            world.latencies = {str(named[who]): RevisionLatency(*both, requests=1000) for who, both in seconds.items()}
        case {"gateway": values}:
            for name, value in values.items():
                setattr(world.gateway, name, value)
        case "hear":
            world.gateway.hear()
        case {"quota": message}:
            world.quota = message
        case {"lose": who, "count": count}:
            world.lose_pods(named[who], count)
        case {"vanish": who}:
            world.deployments.pop(str(named[who]))
            world.match_pods()
        case _:
            raise ValueError(f"the story has no {chapter!r}")


def _load(world: World, ongoing: int, chapter: dict[str, Any]) -> None:
    ends = world.now + chapter.get("seconds", 0)
    told = {key: chapter[key] for key in ("turned_away", "silent") if key in chapter}
    world.note_load(ongoing, **told)
    while world.now < ends:
        world.now = min(ends, world.now + SAMPLE_SECONDS)
        world.note_load(ongoing, **told)


def _served(requests: int, errors: int, compared: int = 0, different: int = 0) -> ServedTraffic:
    within = tuple(requests if bound >= 0.01 else 0 for bound in BOUNDS)
    return ServedTraffic(requests, errors, within, requests, compared, different)


def _applied(manifest: dict[str, Any]) -> str:
    name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
    if manifest["kind"] == "Deployment":
        return f"Deployment {name} of {spec['replicas']}"
    if manifest["kind"] == "HTTPRoute":
        refs = spec["rules"][0]["backendRefs"]
        return f"HTTPRoute {name} to " + ", ".join(f"{ref['name']} {ref['weight']}" for ref in refs)
    if name in (SERVICE, PROVEN):
        return f"Service {name} to {spec['selector'].get(LABEL_REVISION, 'all revisions')}"
    return f"{manifest['kind']} {name}"


def _seen_names(world: World) -> str:
    """Revisions in the order in which they came up."""
    return " ".join([one.name for one in world.status.revisions] + list(world.deployments))


def _difference(old: InferenceServiceStatus, new: InferenceServiceStatus) -> dict[str, Any]:
    before, after = _flat(old), _flat(new)
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return changed | {key: None for key in before if key not in after}


def _flat(status: InferenceServiceStatus) -> dict[str, Any]:
    document = status.document()
    conditions = document.pop("conditions", [])
    revisions = document.pop("revisions", [])
    document.pop("model", None)
    if "rollout" in document:
        rollout = document["rollout"]
        step = f" step {rollout['step']}" if "step" in rollout else ""
        document["rollout"] = f"{rollout['candidate']} {rollout['phase']}{step}" + (
            ", counts" if "since" in rollout else ""
        )
    return (
        document
        | {entry["type"]: f"{entry['status']} {entry['reason']}" for entry in conditions}
        | {one["name"]: _revision(one) for one in revisions}
    )


def _revision(one: dict[str, Any]) -> str:
    gates = "".join(f", {gate['name']} {gate['verdict']}" for gate in one.get("gates", []))
    failure = f", {one['failure']['reason']}" if "failure" in one else ""
    return f"{one['phase']} {one['ready']}/{one['total']} {one['weight']}%{_latency(one)}{gates}{failure}"


def _latency(one: dict[str, Any]) -> str:
    latency = one.get("latency", {})
    names = {"p50Milliseconds": "p50", "p99Milliseconds": "p99"}
    return "".join(f", {name} {latency[key]:g} ms" for key, name in names.items() if key in latency)
