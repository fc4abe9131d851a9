"""What the operator tells Prometheus about itself. No label ever holds a name: the number of series is bounded."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from capstan_operator.job_metrics import JobMetrics

_PASS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """All series of one operator. Each operator has its own registry, so that two can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        prefix = "capstan_operator_"
        self.reconciles = Counter(
            f"{prefix}reconciles", "Passes over one object, by how they ended.", ["result"], registry=registry
        )
        self.reconcile_seconds = Histogram(
            f"{prefix}reconcile_seconds", "Seconds a pass took.", buckets=_PASS_BUCKETS, registry=registry
        )
        self.queue_depth = Gauge(
            f"{prefix}queue_depth", "Objects that wait for a pass, by priority.", ["priority"], registry=registry
        )
        self.queue_seconds = Histogram(
            f"{prefix}queue_seconds", "Seconds an object waited for its pass.", buckets=_PASS_BUCKETS, registry=registry
        )
        self.api_requests = Counter(
            f"{prefix}api_requests",
            "Requests to the API server; code none: no answer.",
            ["verb", "code", "lane"],
            registry=registry,
        )
        self.api_seconds = Histogram(
            f"{prefix}api_seconds", "Seconds the API server took.", ["verb"], buckets=_PASS_BUCKETS, registry=registry
        )
        self.api_rate = Gauge(f"{prefix}api_rate", "Requests per second we allow ourselves now.", registry=registry)
        self.watch_age = Gauge(
            f"{prefix}watch_last_event_age_seconds",
            "Seconds since the API server last said anything on this watch.",
            ["resource"],
            registry=registry,
        )
        self.relists = Counter(
            f"{prefix}relists", "Times everything was listed again.", ["resource"], registry=registry
        )
        self.leader = Gauge(f"{prefix}leader", "1 while this replica acts, 0 while it stands by.", registry=registry)
        self.supervisor_polls = Counter(
            f"{prefix}supervisor_polls", "Questions to supervisors, by result.", ["result"], registry=registry
        )
        self.replica_scrapes = Counter(
            f"{prefix}replica_scrapes",
            "Questions to serving replicas for their numbers: counted, silent or unreadable.",
            ["result"],
            registry=registry,
        )
        self.hints = Counter(f"{prefix}hints", "Wake-up hints, by what became of them.", ["result"], registry=registry)
        self.status_writes = Counter(
            f"{prefix}status_writes", "Status writes: written, suppressed or postponed.", ["result"], registry=registry
        )
        self.events = Counter(
            f"{prefix}events", "Events on our objects, by what became of them.", ["result"], registry=registry
        )
        self.bad_documents = Counter(
            f"{prefix}bad_documents",
            "Documents that could not be read, by what they were.",
            ["what"],
            registry=registry,
        )
        self.of_jobs = JobMetrics(registry)
        self.jobs = Gauge(f"{prefix}jobs", "TrainingJobs known.", registry=registry)
        self.pods = Gauge(f"{prefix}pods", "Worker pods known.", registry=registry)
        self.services = Gauge(f"{prefix}services", "InferenceServices known.", registry=registry)
        self.replicas = Gauge(f"{prefix}replicas", "Pods of InferenceServices known.", registry=registry)
        self.benchmarks = Gauge("capstan_benchmarks", "Benchmarks known, by phase.", ["phase"], registry=registry)

    def render(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)
