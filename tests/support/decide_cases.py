"""Cases of tests/decide/cases: `given` a stage of life and what differs from it, `expected` all that follows.

given:
  stage     see `lived_until`; default running
  now       seconds; default 100
  born      merged into the spec that the life began with; the stage is lived with it
  began_with_host_path   true: the operator allowed folders of the nodes then; it never does when it decides
  spec      merged into the spec since
  job       fields of ObservedJob, such as generation or is_deleting
  status    merged into the status
  pods      by pod name, fields of ObservedPod merged into the stage's pod; null: gone; a new name: one more pod.
            `final` is a State
  says      by pod name, what its supervisor says, merged into the stage's State; null: it never answered
  attempt   {fence, workers}: the newest pods of these workers are in that attempt, whatever the stage says
  silent    by pod name, for how many seconds it has not answered
  unheard   by pod name, how many seconds ago its newest answer came; the others answered just now
  refusing  names of those silent pods that are there but do not know the token
  in_use    roots of checkpoints that are served, sorted; left out: nobody knows yet
  gangs     schedulers whose PodGroups are served; left out: none is
expected:
  secret, gang (both applied), create (pod names, the queue and the size of the group they wait in, and the nodes they
  keep away from), end_groups (the pods that say it), delete, delete_secrets, pushes, events,
  requeue_after, is_repair: left out, none
  status    what changed: top-level fields with their new value, null for what went; conditions as `status reason`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from capstan_operator.api.queueing import ANNOTATION_GROUP_SIZE, LABEL_GROUP, LABEL_QUEUE
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.membership import members_digest
from capstan_operator.decide.ranks import write_ranks
from capstan_operator.decide.training_job import decide_training_job
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed, ObservedPod, OperatorSettings
from capstan_runtime.contract.state import State
from tests.support.looks import JOB_UID, lived_until, look, make_pod, merged

DEFAULT_NOW = 100.0
KEYS = {
    *("born", "stage", "now", "spec", "job", "status", "pods", "attempt", "says", "silent", "unheard", "refusing"),
    *("in_use", "gangs", "began_with_host_path"),
}
TOLD_APART = ("goodput", "recoveries", "firstStepAt")
"""What moves along with everything else, and has tests of its own: test_goodput.py, test_provenance.py."""


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(given, expected) of one case."""
    case = yaml.safe_load(path.read_text())
    return case["given"] or {}, case.get("expected") or {}


def observe(given: dict[str, Any]) -> Observed:
    """The look that `given` describes."""
    unknown = given.keys() - KEYS
    assert not unknown, f"given has unknown keys {sorted(unknown)}"
    settings = OperatorSettings(allow_host_path=given.get("began_with_host_path", False))
    base = lived_until(given.get("stage", "running"), given.get("born"), settings)
    now = given.get("now", DEFAULT_NOW)
    status = merged(base.job.status.document(), given.get("status", {}))
    job = replace(
        base.job,
        spec=merged(base.job.spec, given.get("spec", {})),
        status=TrainingJobStatus.parse(status),
        **given.get("job", {}),
    )
    pods = {pod.name: pod for pod in base.pods}
    states = {pod.name: base.supervisors[pod.uid].state for pod in base.pods if pod.uid in base.supervisors}
    for name, change in given.get("pods", {}).items():
        if change is None:
            del pods[name]
            states.pop(name, None)
        else:
            pods[name] = _changed_pod(pods.get(name) or _new_pod(name), change)
    if "attempt" in given:
        status, places = _attempt(pods, **given["attempt"])
        job = replace(job, status=job.status.model_copy(update=status))
        for name, place in places.items():
            states[name] = State.parse(merged(states[name].document(), place))
    for name, change in given.get("says", {}).items():
        if change is None:
            states.pop(name, None)
        else:
            before = states[name].document() if name in states else {"pod": name, "uid": JOB_UID}
            states[name] = State.parse(merged(before, change))
    silent = {pods[name].uid: now - seconds for name, seconds in given.get("silent", {}).items()}
    refusing = frozenset(pods[name].uid for name in given.get("refusing", []))
    heard_at = {name: now - seconds for name, seconds in given.get("unheard", {}).items()}
    in_use = tuple(given["in_use"]) if "in_use" in given else None
    facts = {"refusing": refusing, "roots_in_use": in_use, "gang_schedulers": frozenset(given.get("gangs", []))}
    return look(job, list(pods.values()), states, silent, heard_at, **facts)


def decided(given: dict[str, Any]) -> dict[str, Any]:
    """What is decided on the look that `given` describes, as `expected` tells it."""
    observed = observe(given)
    decision = decide_training_job(observed, given.get("now", DEFAULT_NOW))
    return told(observed.job.status, decision)


def told(old: TrainingJobStatus, decision: Decision) -> dict[str, Any]:
    """All of a decision in plain words; what is empty is left out."""
    document: dict[str, Any] = {
        "secret": [one["metadata"]["name"] for one in decision.apply if one["kind"] == "Secret"],
        "gang": [_gang(one) for one in decision.apply if one["kind"] == "PodGroup"],
        "create": [_created(manifest) for manifest in decision.create],
        "end_groups": [end.name for end in decision.end_groups],
        "delete": [deletion.name for deletion in decision.delete],
        "delete_secrets": list(decision.delete_secrets),
        "status": _difference(old, decision.status),
        "pushes": {push.pod_name: _push(push.membership.document()) for push in decision.pushes},
        "events": [f"{note.type} {note.reason}: {note.message}" for note in decision.events],
        "requeue_after": None if decision.requeue_after is None else round(decision.requeue_after, 3),
        "is_repair": decision.is_repair,
    }
    return {
        key: value
        for key, value in document.items()
        if value is not None and value is not False and value not in ([], {})
    }


def rewrite(path: Path) -> None:
    """Replaces `expected` by what is decided now. What a person should do next is read the difference."""
    given, _ = load(path)
    head = path.read_text().partition("\nexpected:")[0].rstrip()
    expected = yaml.safe_dump({"expected": decided(given)}, sort_keys=False, width=118, allow_unicode=True)
    path.write_text(f"{head}\n{expected}")


def _attempt(
    pods: Mapping[str, ObservedPod], fence: int, workers: list[int]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(what status says of the attempt of `workers`, by pod name what its member says of its place)."""
    newest = {pod.worker: pod for pod in sorted(pods.values(), key=lambda pod: pod.incarnation)}
    members = [newest[worker] for worker in workers]
    status = {
        "fence": fence,
        "world": len(workers),
        "ranks": write_ranks(workers),
        "members": members_digest(pod.uid for pod in members),
    }
    places = {pod.name: {"fence": fence, "rank": rank, "world": len(workers)} for rank, pod in enumerate(members)}
    return status, places


def _gang(manifest: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in manifest["spec"].items())
    return f"{manifest['apiVersion']} {manifest['metadata']['name']}: {facts}"


def _created(manifest: dict[str, Any]) -> str:
    """The pod's name, where it waits, and the nodes it keeps away from."""
    of_nodes = manifest["spec"].get("affinity", {}).get("nodeAffinity", {})
    required = of_nodes.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    preferred = [term["preference"] for term in of_nodes.get("preferredDuringSchedulingIgnoredDuringExecution", [])]
    words = [
        f"{word} {', '.join(_kept_off(terms))}" for word, terms in (("never", required), ("rather not", preferred))
    ]
    told = [text for text, terms in zip(words, (required, preferred), strict=True) if terms]
    labels = manifest["metadata"]["labels"]
    if LABEL_QUEUE in labels:
        size = manifest["metadata"]["annotations"][ANNOTATION_GROUP_SIZE]
        told.append(f"queue {labels[LABEL_QUEUE]}, group {labels[LABEL_GROUP]} of {size}")
    return manifest["metadata"]["name"] + (f" ({'; '.join(told)})" if told else "")


def _kept_off(terms: list[dict[str, Any]]) -> list[str]:
    return [field["values"][0] for term in terms for field in term["matchFields"] if field["operator"] == "NotIn"]


def _push(membership: dict[str, Any]) -> str:
    """Without peers and faults: they have tests of their own. Of one that ends a pod nothing counts but the fence."""
    if membership["isOver"]:
        return f"fence {membership['fence']}, the job is over"
    skips = " and ".join(f"{skip['first']}+{skip['count']}" for skip in membership["skips"])
    keep = membership.get("keepRoots")
    more = {
        f"keep {', '.join(keep or ['nothing'])}": keep is not None,
        f"{membership['microSplits']} micro-steps": membership["microSplits"] > 1,
        f"without batches {skips}": bool(skips),
        "leave at the next checkpoint": membership["leaveAtCheckpoint"],
        f"trace for {membership.get('profileRequest')}": membership.get("profileRequest") is not None,
    }
    return (
        f"fence {membership['fence']}, rank {membership['rank']} of {membership['world']}, "
        f"meet at {membership['coordinator']}, floor step {membership['floorStep']}"
    ) + "".join(f", {words}" for words, is_said in more.items() if is_said)


def _difference(old: TrainingJobStatus, new: TrainingJobStatus) -> dict[str, Any]:
    before, after = _flat(old), _flat(new)
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return changed | {key: None for key in before if key not in after}


def _flat(status: TrainingJobStatus) -> dict[str, Any]:
    document = status.document()
    conditions = document.pop("conditions", [])
    for apart in TOLD_APART:
        document.pop(apart, None)
    return document | {entry["type"]: f"{entry['status']} {entry['reason']}" for entry in conditions}


def _new_pod(name: str) -> ObservedPod:
    worker, _, incarnation = name.rpartition("worker-")[2].partition("-")
    return make_pod(int(worker), int(incarnation or 0))


def _changed_pod(pod: ObservedPod, change: dict[str, Any]) -> ObservedPod:
    change = dict(change)
    if "final" in change:
        change["final"] = State.parse({"pod": pod.name, "uid": JOB_UID, **change["final"]})
    if "last_lines" in change:
        change["last_lines"] = tuple(change["last_lines"])
    return replace(pod, **change)
