"""Nodes on which things broke: what is remembered of them, and which new pods are kept away from."""

from typing import Any

from capstan_operator.api.training_job_status import NodeFault, TrainingJobStatus
from capstan_operator.build.node_affinity import keep_away
from capstan_operator.decide.evidence import Evidence
from capstan_operator.decide.situation import Situation
from capstan_operator.decide.times import rfc3339, seconds_after, seconds_since_1970
from capstan_operator.observe import ObservedPod
from capstan_runtime.contract.exit_codes import FailureClass

AVOID_SECONDS = 3600.0
"""How long a fault is remembered, and its node avoided."""
STRICT_SECONDS = 600.0
"""How long a node with a broken GPU is avoided at any price. After that, a pod that no other node takes may go there:
its repair, or a third failure, is better than waiting for ever."""
FAULTS_KEPT = 10
OF_THE_NODE = frozenset(
    {FailureClass.CRASH, FailureClass.GPU_FAULT, FailureClass.HANG, FailureClass.HOST_OUT_OF_MEMORY}
)
"""Failures that a node may be the cause of. A pod that is lost may be so too, if nobody deleted it."""


def note_fault(situation: Situation, culprit: Evidence, avoid: bool) -> list[NodeFault]:
    """The faults to remember after one more, oldest first. `avoid`: new pods are kept away from its node."""
    now = situation.now
    recent = _recent_faults(situation)
    if culprit.pod is None or culprit.pod.node is None or not _suspects_node(culprit):
        return recent
    node, failure = culprit.pod.node, culprit.failure.value
    before = next((fault for fault in recent if (fault.node, fault.failure_class) == (node, failure)), None)
    is_avoided = avoid or (before is not None and before.avoided_until is not None)
    fault = NodeFault.model_validate(
        {
            "node": node,
            "failure_class": failure,
            "count": (before.count if before else 0) + 1,
            "at": rfc3339(now),
            "avoided_until": rfc3339(now + AVOID_SECONDS) if is_avoided else None,
        }
    )
    return [*(other for other in recent if other is not before), fault][-FAULTS_KEPT:]


def is_repeated(situation: Situation, culprit: Evidence) -> bool:
    """The same has happened on its node within the hour, and the node may be the cause of it."""
    node = culprit.pod.node if culprit.pod else None
    known = {(fault.node, fault.failure_class) for fault in _recent_faults(situation)}
    return (node, culprit.failure.value) in known and _suspects_node(culprit)


def has_other_nodes(situation: Situation, node: str | None) -> bool:
    """A pod of the job is, or was until it ended, on a node that is neither `node` nor avoided."""
    avoided = {*avoided_nodes(situation.status, situation.now), node, None}
    return any(pod.node not in avoided for pod in situation.observed.pods)


def avoided_nodes(status: TrainingJobStatus, now: float) -> tuple[str, ...]:
    """Nodes that new pods are kept away from, sorted."""
    return tuple(
        sorted(
            {
                fault.node
                for fault in status.node_faults
                if fault.avoided_until and seconds_since_1970(fault.avoided_until) > now
            }
        )
    )


def steer(template: dict[str, Any], situation: Situation) -> dict[str, Any]:
    """The pod template that keeps away from the avoided nodes; `template` itself when there are none."""
    avoided = avoided_nodes(situation.status, situation.now)
    if not avoided:
        return template
    strict = _strictly_avoided(situation) if has_other_nodes(situation, None) else ()
    return keep_away(template, never=strict, rather_not=[node for node in avoided if node not in strict])


def is_kept_waiting(pod: ObservedPod, situation: Situation) -> bool:
    """No node takes the pod, and since it was created a node has become good enough for it again: another pod, with
    fewer conditions, might be taken."""
    if pod.phase != "Pending" or pod.is_deleting or not (pod.waiting or "").startswith("Unschedulable"):
        return False
    ends = [
        seconds_since_1970(fault.at) + STRICT_SECONDS for fault in situation.status.node_faults if _is_strict(fault)
    ]
    return any(pod.created_at < end <= situation.now for end in ends)


def seconds_until_relaxed(situation: Situation) -> float | None:
    """Seconds until a node that is avoided at any price is only rather not used; None: there is none."""
    waits = [
        seconds_since_1970(fault.at) + STRICT_SECONDS - situation.now
        for fault in situation.status.node_faults
        if _is_strict(fault)
    ]
    return min((wait for wait in waits if wait > 0), default=None)


def _suspects_node(culprit: Evidence) -> bool:
    return culprit.failure in OF_THE_NODE or culprit.suspects_node


def _recent_faults(situation: Situation) -> list[NodeFault]:
    faults = situation.status.node_faults
    return [fault for fault in faults if seconds_after(fault.at, situation.now) < AVOID_SECONDS]


def _strictly_avoided(situation: Situation) -> tuple[str, ...]:
    return tuple(
        sorted(
            fault.node
            for fault in situation.status.node_faults
            if _is_strict(fault) and seconds_after(fault.at, situation.now) < STRICT_SECONDS
        )
    )


def _is_strict(fault: NodeFault) -> bool:
    return fault.failure_class == FailureClass.GPU_FAULT and fault.avoided_until is not None
