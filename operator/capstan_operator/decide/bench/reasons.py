"""Every word that can stand in `reason` of a Benchmark."""

from enum import StrEnum


class BenchReason(StrEnum):
    """Why something is as it is, in one word. `message` says the same in a sentence."""

    VALID = "Valid"
    """The spec was understood and is acted on."""
    INVALID_SPEC = "InvalidSpec"
    """The spec breaks a rule; the message has one line per field."""
    PLAN_CHANGED = "PlanChanged"
    """Runs were made of another plan: the workload, job, pods or store are others, spec.baseline asks for a rerun that
    was not planned, or its Benchmark is another one by now."""

    BASELINE_NOT_FOUND = "BaselineNotFound"
    """There is no Benchmark, or ConfigMap, of the name in spec.baseline."""
    BASELINE_NOT_READY = "BaselineNotReady"
    """That Benchmark has not succeeded yet; of one that is run again: it still measures."""
    BASELINE_UNFIT = "BaselineUnfit"
    """That Benchmark measures something else, keeps its results elsewhere, or its spec is invalid; or the ConfigMap
    holds no result, or one of another workload."""

    MEASURING = "Measuring"
    """Runs are made, one after the other."""
    UNSCHEDULABLE = "Unschedulable"
    """No node can take a pod of the run, or of the report, at present."""
    IMAGE_NOT_PULLED = "ImageNotPulled"
    """A node cannot get its image."""
    CONTAINER_NOT_CREATED = "ContainerNotCreated"
    """A node cannot create its container: a volume, Secret or security setting is in the way."""
    REPORTING = "Reporting"
    """All runs are finished; the results are put together and judged."""
    SUSPENDED = "Suspended"
    """spec.suspend is true."""
    REPORTED = "Reported"
    """All was measured and reported."""

    CONFIG_ERROR = "ConfigError"
    """A run, or the report, can never work as it is configured; it was not repeated."""
    ATTEMPTS_USED_UP = "AttemptsUsedUp"
    """A run failed three times."""
    REPORT_FAILED = "ReportFailed"
    """The report could not be made three times. Raw results are kept."""

    PASSED = "Passed"
    """No judged metric is worse than the baseline by more than the gate allows."""
    IMPROVED = "Improved"
    """The same, and at least one is better."""
    REGRESSED = "Regressed"
    """At least one judged metric is worse by more than the gate allows, and not by chance."""
    INCONCLUSIVE = "Inconclusive"
    """The figures bear no verdict: they are too few, scatter too much, or come from different hardware."""

    NAME_TAKEN = "NameTaken"
    """An object that is not this Benchmark's has the name that one of its own must have."""
    PREDECESSOR_LEAVING = "PredecessorLeaving"
    """An object of a deleted Benchmark of the same name is still there; this one goes on when it is gone."""
    CHILDREN_REFUSED = "ChildrenRefused"
    """The API server refuses a child: a quota is used up, an admission rule or a field of podPatch is wrong."""
