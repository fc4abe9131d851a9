"""What one worker shows of a failure. `failure.py` weighs it."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from capstan_operator.decide.progress import has_stepped
from capstan_operator.decide.situation import Situation, Worker
from capstan_operator.decide.times import seconds_after
from capstan_operator.observe import ObservedPod
from capstan_runtime.contract.exit_codes import FailureClass, classify_exit
from capstan_runtime.contract.state import Exit, Phase, Section

OUT_OF_MEMORY = "OOMKilled"
OWN_REASONS = frozenset({None, "Error", "Completed", "ContainerCannotRun", "StartError", "DeadlineExceeded"})
"""Exit reasons that say no more than the exit code; every other one (Evicted, NodeLost, …) comes from outside."""
MESSAGE_LENGTH = 300
"""What status keeps of a message."""
STOPPED_STATES = frozenset({"T", "t"})
"""The kernel's letters for a process that somebody stopped."""
OWN_SECTIONS = frozenset({Section.HOST, Section.DATA, Section.FACTORS, Section.SAVE})
"""What a rank does without waiting for others."""

SUPERVISORS_SLACK_SECONDS = 60.0
"""Beyond its deadlines, for a supervisor to end its trainer and say so."""
_STARTING = frozenset({Phase.STARTING, Phase.RESTORING, Phase.COMPILING})
_HAS_STEPS = frozenset({Phase.TRAINING, Phase.SAVING, Phase.EVALUATING})


class Weight(IntEnum):
    """How near a piece of evidence is to the cause; the smallest wins."""

    POD = 0
    """The pod itself is gone: its peers failed because of it."""
    PROCESS = 1
    """The process ended by itself, or stood still where it waits for nobody."""
    WAITING = 2
    """The process stood still where it may have waited for a peer that did."""
    CASCADE = 3
    """The process ended because a peer did: a broken collective, NCCL's watchdog aborting, or a stop that all ranks
    agreed to because one was asked."""


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
    suspects_node: bool = False
    """The pod was lost, and not because somebody took it away."""

    @property
    def exit_code(self) -> int | None:
        """128 + N for signal N; None: not known."""
        return self.exit.code if self.exit else self.pod.exit_code if self.pod else None

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended the trainer or, without a report, the container; None: none did."""
        return self.exit.signal if self.exit else signal_name(self.exit_code)

    @property
    def nearness(self) -> tuple[int, int, float, float, int]:
        """Sorts the evidence of all workers: the nearest to the cause first. Of hung ranks the one that was stopped is
        nearest, then the one that is furthest behind; else the earliest report, then the lowest worker."""
        never = float("inf")
        exit_ = self.exit
        if exit_ is None or self.failure is not FailureClass.HANG:
            return self.weight, 0, 0.0, exit_.at if exit_ else never, self.worker
        is_stopped = exit_.process_state in STOPPED_STATES
        step = never if exit_.step is None else float(exit_.step)
        return self.weight, 0 if is_stopped else 1, step, exit_.at, self.worker


def find_evidence(worker: Worker, situation: Situation) -> Evidence | None:
    """What shows that `worker` no longer takes part in the current attempt; None: nothing does."""
    word, fence = worker.word, situation.status.fence
    is_in_place = word is not None and word.fence == fence and word.exit is None and worker.is_answering
    if is_in_place and not _is_overdue(worker, situation):
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


def has_stopped(exit_: Exit) -> bool:
    """It was asked to end, or a peer was: it has saved."""
    return exit_.failure is FailureClass.STOPPED


def has_left(worker: Worker, situation: Situation) -> bool:
    """It saved and stopped because the attempt was to end at a checkpoint, and not because its pod is taken away."""
    exit_ = _exit_of_attempt(worker, situation)
    return situation.status.next_world is not None and exit_ is not None and has_stopped(exit_) and worker.is_up


def is_saving(worker: Worker, situation: Situation) -> bool:
    """Its pod is being deleted, or was asked to stop by its node, and its trainer has steps to save with the others
    before it goes: neither a drained node nor a `kubectl delete pod` may cost any. The grace of the pod, and the
    supervisor's deadlines, bound how long that takes."""
    pod, answer = worker.pod, worker.answer
    if pod is None or pod.phase != "Running" or pod.final is not None:
        return False
    if answer is None or worker.silent_seconds is not None or answer.fence != situation.status.fence:
        return False
    if answer.exit is not None or situation.status.next_world is not None:
        return False
    return answer.phase is Phase.STOPPING or (pod.is_deleting and answer.phase in _HAS_STEPS)


def still_saving(situation: Situation) -> str | None:
    """Name of a pod that saves what the last attempt has done, because the job was suspended or its quota was taken
    back, and both are over: an attempt that began before it is done would take the store from it. None: there is none.
    As in `is_saving`, the grace of the pod bounds how long that takes."""
    if situation.status.members is not None or situation.is_recovering:
        return None
    observed, phases = situation.observed, _HAS_STEPS | {Phase.STOPPING}
    for pod in observed.pods:
        answer = observed.supervisors.get(pod.uid)
        is_ending = pod.is_deleting and pod.phase == "Running" and pod.final is None
        if not is_ending or answer is None or pod.uid in observed.silent_since:
            continue
        if answer.state.fence == situation.status.fence and answer.state.exit is None and answer.state.phase in phases:
            return pod.name
    return None


def is_cascade(exit_: Exit) -> bool:
    """It ended because a peer did."""
    return exit_.failure is FailureClass.RETRYABLE or exit_.signal == "SIGABRT"


def has_ended_with_a_peer(worker: Worker, situation: Situation) -> bool:
    """Its trainer ended in this attempt because a peer's did."""
    exit_ = _exit_of_attempt(worker, situation)
    return exit_ is not None and is_cascade(exit_)


def signal_name(exit_code: int | None) -> str | None:
    """The signal in an exit status of 128 + N; None: there is none.

    >>> signal_name(137), signal_name(1), signal_name(None), signal_name(255)
    ('SIGKILL', None, None, 'signal 127')
    """
    if exit_code is None or exit_code <= 128:
        return None
    try:
        return signal.Signals(exit_code - 128).name
    except ValueError:
        return f"signal {exit_code - 128}"


def _gone(worker: Worker, situation: Situation) -> Evidence | None:
    if worker.pod is None:
        return Evidence(worker.index, None, FailureClass.LOST, "its pod is gone", Weight.POD)
    return None


def _out_of_memory(worker: Worker, situation: Situation) -> Evidence | None:
    if worker.pod is None or worker.pod.exit_reason != OUT_OF_MEMORY:
        return None
    message = "the container ran out of memory; raise workers.resources.memory"
    exit_ = worker.word.exit if worker.word else None
    return Evidence(worker.index, worker.pod, FailureClass.HOST_OUT_OF_MEMORY, message, Weight.POD, exit_)


def _exited(worker: Worker, situation: Situation) -> Evidence | None:
    exit_ = _exit_of_attempt(worker, situation)
    if exit_ is None or has_stopped(exit_):
        return None
    message = _hang_message(exit_) if exit_.failure is FailureClass.HANG else exit_.message
    return Evidence(worker.index, worker.pod, exit_.failure, message, _weight(exit_), exit_)


def _weight(exit_: Exit) -> Weight:
    if is_cascade(exit_):
        return Weight.CASCADE
    if exit_.failure is not FailureClass.HANG:
        return Weight.PROCESS
    is_its_own = exit_.process_state in STOPPED_STATES or exit_.section in OWN_SECTIONS
    return Weight.PROCESS if is_its_own else Weight.WAITING


def _hang_message(exit_: Exit) -> str:
    """What the supervisor saw, and where the main thread was."""
    return f"{exit_.message}, in {exit_.stack[0]}" if exit_.stack else exit_.message


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
    return Evidence(worker.index, pod, FailureClass.LOST, message, Weight.POD, suspects_node=True)


def _stopped(worker: Worker, situation: Situation) -> Evidence | None:
    exit_ = _exit_of_attempt(worker, situation)
    if exit_ is None or has_left(worker, situation):
        return None
    weight = Weight.PROCESS if exit_.asked else Weight.CASCADE
    return Evidence(worker.index, worker.pod, FailureClass.LOST, "it was stopped from outside", weight, exit_)


def _failed(worker: Worker, situation: Situation) -> Evidence | None:
    pod = worker.pod
    if pod is None or pod.phase != "Failed" or not pod.exit_code:
        return None
    failure = classify_exit(pod.exit_code)
    killed_by = signal_name(pod.exit_code)
    # A supervisor gets SIGKILL from nobody but its node: what its trainer dies of, it lives to tell.
    if failure is FailureClass.STOPPED or killed_by == "SIGKILL":
        failure = FailureClass.LOST
    if killed_by is not None:
        # What it had printed before has nothing to do with it.
        message = f"its container was killed by {killed_by}"
    else:
        # Of a traceback, and of a supervisor that gives up, the last line is the one that says why.
        message = pod.last_lines[-1] if pod.last_lines else "its container ended"
    return Evidence(worker.index, pod, failure, message, Weight.POD, suspects_node=killed_by == "SIGKILL")


def _failed_at_start(worker: Worker, situation: Situation) -> Evidence | None:
    exit_ = worker.word.exit if worker.word else None
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
    suspects_node = not worker.refuses_token
    return Evidence(worker.index, worker.pod, FailureClass.LOST, message, Weight.POD, suspects_node=suspects_node)


def _refusing(worker: Worker, situation: Situation) -> Evidence | None:
    limit = situation.blueprint.spec.recovery.deadlines.form
    is_waiting = worker.is_answering and worker.answer is not None and worker.answer.fence < situation.status.fence
    if not is_waiting or seconds_after(situation.status.attempt_started_at, situation.now) < limit:
        return None
    said = f": {worker.answer.refused}" if worker.answer and worker.answer.refused else ""
    message = f"its supervisor did not take its place within {limit} s{said}"
    return Evidence(worker.index, worker.pod, FailureClass.LOST, message, Weight.POD)


def _is_overdue(worker: Worker, situation: Situation) -> bool:
    """It has been at its start for longer than its supervisor may let it: that one does not do its work."""
    if worker.word is None or worker.word.phase not in _STARTING:
        return False
    return seconds_of_start(situation) >= start_limit(situation)


def seconds_of_start(situation: Situation) -> float:
    """Since the attempt began or, later, since any of its ranks showed that its data comes nearer, that it waits for a
    peer's, or that it compiles smaller micro-steps: supervisors end what does not go on. What is measured before the
    first step, which they bound as well, does not count."""
    answers = [member.word for member in situation.members if member.is_answering]
    words = [word for word in answers if word and word.fence == situation.status.fence]
    began = seconds_after(situation.status.attempt_started_at, situation.now)
    measured = max((word.seconds.get(Phase.EVALUATING, 0.0) for word in words if not has_stepped(word)), default=0.0)
    signs = [at for word in words for at in (word.data_at, word.split_at) if at]
    return min([max(0.0, began - measured), *(situation.now - at for at in signs)])


def start_limit(situation: Situation) -> float:
    """Seconds of a start in which every rank has made a step, or its supervisor has ended it."""
    deadlines = situation.blueprint.spec.recovery.deadlines
    return float(deadlines.form + deadlines.first_step) + SUPERVISORS_SLACK_SECONDS


def _overdue(worker: Worker, situation: Situation) -> Evidence | None:
    if not _is_overdue(worker, situation):
        return None
    message = f"it made no step within {start_limit(situation):.0f} s, and its supervisor did not end it"
    return Evidence(worker.index, worker.pod, FailureClass.LOST, message, Weight.POD, suspects_node=True)


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
    _overdue,
)


def _exit_of_attempt(worker: Worker, situation: Situation) -> Exit | None:
    """How its trainer ended in this attempt; None: it did not. What ended an older one was counted then."""
    exit_ = worker.word.exit if worker.word else None
    return exit_ if exit_ is not None and exit_.fence == situation.status.fence else None
