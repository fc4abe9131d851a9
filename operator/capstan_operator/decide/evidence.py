"""What one worker shows of a failure. `failure.py` weighs it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from capstan_operator.decide.situation import Situation, Worker
from capstan_operator.decide.times import seconds_after
from capstan_operator.observe import ObservedPod
from capstan_runtime.contract.exit_codes import FailureClass, classify_exit
from capstan_runtime.contract.state import Exit

OUT_OF_MEMORY = "OOMKilled"
OWN_REASONS = frozenset({None, "Error", "Completed", "ContainerCannotRun", "StartError", "DeadlineExceeded"})
"""Exit reasons that say no more than the exit code; every other one (Evicted, NodeLost, …) comes from outside."""


class Weight(IntEnum):
    """How near a piece of evidence is to the cause; the smallest wins."""

    POD = 0
    """The pod itself is gone: its peers failed because of it."""
    PROCESS = 1
    """The process ended by itself."""
    CASCADE = 2
    """The process ended because a peer did: a broken collective, or NCCL's watchdog aborting."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One worker's failure."""

    worker: int
    pod: ObservedPod | None
    """None: it is gone."""
    failure: FailureClass
    message: str
    weight: Weight
    exit: Exit | None = None
    """The supervisor's report; None: it could not make one."""

    @property
    def exit_code(self) -> int | None:
        """128 + N for signal N; None: not known."""
        return self.exit.code if self.exit else self.pod.exit_code if self.pod else None


def find_evidence(worker: Worker, situation: Situation) -> Evidence | None:
    """What shows that `worker` no longer takes part in the current attempt; None: nothing does."""
    word, fence = worker.word, situation.status.fence
    if word is not None and word.fence == fence and word.exit is None and worker.is_answering:
        return None  # in its place and well: by far the most frequent case, so it is asked first
    if worker.has_finished(fence):
        return None
    found = (check(worker, situation) for check in _CHECKS)
    return next((evidence for evidence in found if evidence), None)


def find_broken_pod(worker: Worker, situation: Situation) -> Evidence | None:
    """What shows that `worker`'s pod can join no attempt; None: it can, or it is on its way."""
    if worker.pod is None or worker.pod.is_deleting or worker.has_finished(situation.status.fence):
        return None
    found = (check(worker, situation) for check in (_out_of_memory, _lost, _failed_at_start, _failed, _silent))
    return next((evidence for evidence in found if evidence), None)


def _gone(worker: Worker, situation: Situation) -> Evidence | None:
    if worker.pod is None:
        return Evidence(worker.index, None, FailureClass.LOST, "its pod is gone", Weight.POD)
    return None


def _out_of_memory(worker: Worker, situation: Situation) -> Evidence | None:
    if worker.pod is None or worker.pod.exit_reason != OUT_OF_MEMORY:
        return None
    message = "the container ran out of memory; raise workers.resources.memory"
    return Evidence(worker.index, worker.pod, FailureClass.HOST_OUT_OF_MEMORY, message, Weight.POD, _exit(worker))


def _exited(worker: Worker, situation: Situation) -> Evidence | None:
    exit_ = _exit(worker)
    # The budget belongs to this attempt: what ended an older one was counted then.
    if exit_ is None or exit_.fence != situation.status.fence or exit_.failure is FailureClass.STOPPED:
        return None
    is_cascade = exit_.failure is FailureClass.RETRYABLE or exit_.signal == "SIGABRT"
    weight = Weight.CASCADE if is_cascade else Weight.PROCESS
    return Evidence(worker.index, worker.pod, exit_.failure, exit_.message, weight, exit_)


def _deleted(worker: Worker, situation: Situation) -> Evidence | None:
    if worker.pod is None or not worker.pod.is_deleting:
        return None
    why = f" ({worker.pod.exit_reason})" if worker.pod.exit_reason not in OWN_REASONS else ""
    message = f"its pod was deleted{why}"
    return Evidence(worker.index, worker.pod, FailureClass.LOST, message, Weight.POD)


def _lost(worker: Worker, situation: Situation) -> Evidence | None:
    pod = worker.pod
    if pod is None or pod.phase != "Failed":
        return None
    if pod.exit_reason in OWN_REASONS and pod.exit_code:
        return None
    message = f"its pod was taken away: {pod.exit_reason or 'no reason given'}"
    return Evidence(worker.index, pod, FailureClass.LOST, message, Weight.POD)


def _stopped(worker: Worker, situation: Situation) -> Evidence | None:
    exit_ = _exit(worker)
    if exit_ is None or exit_.fence != situation.status.fence:
        return None
    return Evidence(worker.index, worker.pod, FailureClass.LOST, "it was stopped from outside", Weight.PROCESS, exit_)


def _failed(worker: Worker, situation: Situation) -> Evidence | None:
    pod = worker.pod
    if pod is None or pod.phase != "Failed" or not pod.exit_code:
        return None
    failure = classify_exit(pod.exit_code)
    if failure is FailureClass.STOPPED:
        failure = FailureClass.LOST
    # Of a traceback, and of a supervisor that gives up, the last line is the one that says why.
    message = pod.last_lines[-1] if pod.last_lines else "its container ended"
    return Evidence(worker.index, pod, failure, message, Weight.POD)


def _failed_at_start(worker: Worker, situation: Situation) -> Evidence | None:
    exit_ = _exit(worker)
    if worker.pod is None or worker.pod.phase != "Failed" or exit_ is None or exit_.fence != 0:
        return None
    return Evidence(worker.index, worker.pod, exit_.failure, exit_.message, Weight.POD, exit_)


def _finished_too_early(worker: Worker, situation: Situation) -> Evidence | None:
    if worker.pod is None or worker.pod.phase != "Succeeded":
        return None
    message = "it had finished before this attempt reached it"
    return Evidence(worker.index, worker.pod, FailureClass.RETRYABLE, message, Weight.POD)


def _silent(worker: Worker, situation: Situation) -> Evidence | None:
    if not situation.is_lost(worker):
        return None
    message = f"its supervisor did not answer for {situation.silence_limit(worker):.0f} s"
    if worker.refuses_token:
        message = "its supervisor does not know the operator's token: Secret capstan-operator-key was replaced"
    return Evidence(worker.index, worker.pod, FailureClass.LOST, message, Weight.POD)


def _refusing(worker: Worker, situation: Situation) -> Evidence | None:
    limit = situation.blueprint.spec.recovery.deadlines.form
    is_waiting = worker.is_answering and worker.answer is not None and worker.answer.fence < situation.status.fence
    if not is_waiting or seconds_after(situation.status.attempt_started_at, situation.now) < limit:
        return None
    message = f"its supervisor did not take its place within {limit} s"
    return Evidence(worker.index, worker.pod, FailureClass.LOST, message, Weight.POD)


# Nearest to the cause first.
_CHECKS: tuple[Callable[[Worker, Situation], Evidence | None], ...] = (
    _gone,
    _out_of_memory,
    _exited,
    _deleted,
    _lost,
    _stopped,
    _failed,
    _finished_too_early,
    _silent,
    _refusing,
)


def _exit(worker: Worker) -> Exit | None:
    return worker.word.exit if worker.word else None
