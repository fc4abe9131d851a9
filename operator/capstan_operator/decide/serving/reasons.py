"""Every word that can stand in `reason` of an InferenceService."""

from enum import StrEnum


class ServingReason(StrEnum):
    """Why something is as it is, in one word. `message` says the same in a sentence."""

    VALID = "Valid"
    """The spec was understood and is acted on."""
    INVALID_SPEC = "InvalidSpec"
    """The spec breaks a rule; the message has one line per field."""

    TRAINING_JOB_NOT_FOUND = "TrainingJobNotFound"
    """There is no TrainingJob of the name in modelRef."""
    TRAINING_JOB_INVALID = "TrainingJobInvalid"
    """The spec of that TrainingJob is invalid, so nobody knows where its checkpoints are."""
    NO_VERIFIED_CHECKPOINT = "NoVerifiedCheckpoint"
    """That TrainingJob has no checkpoint yet whose bytes were read back and matched."""

    STARTING = "Starting"
    """Pods of a new revision come up; it has no traffic yet."""
    CANARY = "Canary"
    """A new revision has a share of the traffic and is compared with the old one."""
    SHIFTING = "Shifting"
    """Traffic moves to the new revision."""
    HOLDING = "Holding"
    """The new revision has all traffic; the old one is still there to take over again."""
    RETREATING = "Retreating"
    """Traffic goes back to the revision that has proven itself."""
    LIVE = "Live"
    """What the spec asks for has all traffic."""
    NO_READY_PODS = "NoReadyPods"
    """No pod behind the stable address is ready."""

    GATE_FAILED = "GateFailed"
    """The canary is worse than its gates allow."""
    GATE_INCONCLUSIVE = "GateInconclusive"
    """In four times the hold time of a step the canary had too little traffic to be judged."""
    CORRUPT_CHECKPOINT = "CorruptCheckpoint"
    """The checkpoint does not match its digests, or is not there (exit code 65)."""
    CONFIG_ERROR = "ConfigError"
    """A replica found that it can never work as configured (exit code 78)."""
    DO_NOT_RESTART = "DoNotRestart"
    """A replica asked not to be started again (exit code 93)."""
    CRASHING = "Crashing"
    """A replica of the new revision ended three times."""
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    """Pods of the new revision were not ready within rollout.progressDeadlineSeconds."""

    NAME_TAKEN = "NameTaken"
    """An object that is not this service's has the name that one of its own must have."""
    CHILDREN_REFUSED = "ChildrenRefused"
    """The API server refuses a child: a quota is used up, an admission rule or a field of podPatch is wrong."""
