"""What each workload measures that can be judged: the names `gate.metrics` may hold, known before the first run."""

_TRAINING = ("samples_per_second", "tokens_per_second", "step_seconds")

JUDGED: dict[str, tuple[str, ...]] = {
    "training": _TRAINING,
    "scaling": (*_TRAINING, "speedup", "efficiency"),
    "scalingLaw": (*_TRAINING, "loss", "validation_loss"),
    "inference": (
        "samples_per_second",
        "tokens_per_second",
        "latency_p50_seconds",
        "latency_p99_seconds",
        "time_to_first_token_seconds",
        "time_per_output_token_seconds",
    ),
    "serving": (
        "sustained_requests_per_second",
        "goodput_requests_per_second",
        "requests_per_second",
        "latency_p50_seconds",
        "latency_p90_seconds",
        "latency_p99_seconds",
        "latency_p999_seconds",
        "error_ratio",
    ),
    "collectives": (
        "seconds",
        "algorithm_bandwidth_bytes_per_second",
        "bus_bandwidth_bytes_per_second",
        "fitted_latency_seconds",
        "fitted_bandwidth_bytes_per_second",
    ),
    "roofline": (
        "peak_flops_per_second",
        "bandwidth_bytes_per_second",
        "matmul_flops_per_second",
        "stream_bytes_per_second",
        "model_flops_per_second",
        "numpy_peak_flops_per_second",
        "matmul_over_numpy_ratio",
    ),
    "checkpoint": (
        "save_bytes_per_second",
        "save_seconds",
        "save_blocked_seconds",
        "restore_bytes_per_second",
        "restore_seconds",
        "verify_bytes_per_second",
        "verify_seconds",
    ),
    "controlPlane": (
        "jobs_per_second",
        "job_p50_seconds",
        "job_p99_seconds",
        "first_pod_p50_seconds",
        "first_pod_p99_seconds",
        "pods_per_second",
        "api_calls_per_job",
        "reconciles_per_job",
        "reconcile_mean_seconds",
        "reconcile_p99_seconds",
    ),
}
"""By workload. Some need more: tokens a model of text, p99 a hundred samples, sustained_ and goodput_ an objective."""
OF_AN_OBJECTIVE = ("sustained_requests_per_second", "goodput_requests_per_second")
"""Of serving, where the load has an objective."""
