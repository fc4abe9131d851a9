"""The dashboard of an InferenceService."""

from dashboard_panels import Dashboard, Panel, Variable, quantiles, rate

_CHOSEN = 'namespace="$namespace", capstan_dev_service="$service"'
_SERVICE = f'{_CHOSEN}, capstan_dev_revision=~"$revision"'
_BATCH = "capstan_serving_batch_size"
_STEP = f"{{{_SERVICE}}}[$__rate_interval]"
_SHOWN = "capstan_dev_revision, model, version, digest"

SERVING = Dashboard(
    uid="capstan-serving",
    title="Capstan / Serving",
    description="One InferenceService, and its revisions beside each other.",
    variables=[
        Variable("namespace", "Namespace", "label_values(capstan_serving_model_info, namespace)"),
        Variable(
            "service",
            "Service",
            'label_values(capstan_serving_model_info{namespace="$namespace"}, capstan_dev_service)',
        ),
        Variable(
            "revision",
            "Revision",
            f"label_values(capstan_serving_model_info{{{_CHOSEN}}}, capstan_dev_revision)",
            is_multiple=True,
        ),
    ],
    rows={
        "Requests": [
            Panel(
                "Requests",
                "By how they ended. Mirrored ones are not among them.",
                rate("capstan_serving_requests_total", _SERVICE, "outcome"),
                unit="reqps",
                is_stacked=True,
            ),
            Panel(
                "Latency",
                "From a request's first byte to its answer, of those that were answered.",
                quantiles("capstan_serving_latency_seconds", _SERVICE, 0.5, 0.95, 0.99),
                unit="s",
            ),
            Panel(
                "Latency by revision",
                "The slowest hundredth. A canary must not be slower than the revision it is to replace.",
                quantiles("capstan_serving_latency_seconds", _SERVICE, 0.99, by="capstan_dev_revision"),
                unit="s",
            ),
            Panel(
                "Being answered",
                "Requests that are worked on or wait for it, and of those the ones that wait.",
                {
                    "ongoing": f"sum(capstan_serving_ongoing_requests{{{_SERVICE}}})",
                    "waiting": f"sum(capstan_serving_queue_depth{{{_SERVICE}}})",
                },
            ),
            Panel(
                "Turned away",
                "For lack of room, by reason: the service needs more replicas, or its clients a lower rate.",
                rate("capstan_serving_shed_total", _SERVICE, "reason"),
                unit="reqps",
            ),
            Panel(
                "Circuit breakers",
                "Replicas whose breaker is not closed: the model failed too often.",
                {"": f"count(capstan_serving_circuit_state{{{_SERVICE}}} > 0) or vector(0)"},
                colours=((None, "green"), (1, "red")),
            ),
        ],
        "Model": [
            Panel(
                "Served",
                "Which checkpoint each revision serves, and with how many pods.",
                {"": f"count by ({_SHOWN}) (capstan_serving_model_info{{{_SERVICE}}})"},
                kind="table",
                width=24,
            ),
            Panel(
                "Computed together",
                "Samples, or sequences, in a batch: mean.",
                {
                    "{{capstan_dev_revision}}": f"sum by (capstan_dev_revision) (rate({_BATCH}_sum{_STEP}))"
                    f" / sum by (capstan_dev_revision) (rate({_BATCH}_count{_STEP}))"
                },
            ),
            Panel(
                "Confidence",
                "Probability of the likeliest class: median, and the least certain tenth.",
                quantiles("capstan_serving_confidence", _SERVICE, 0.5, 0.1),
                unit="percentunit",
            ),
            Panel(
                "Unlike the training data",
                "Anomalous samples per second, where spec.anomaly looks for them.",
                {"": f"sum(rate(capstan_serving_anomalous_samples_total{{{_SERVICE}}}[$__rate_interval]))"},
                unit="ops",
            ),
            Panel(
                "Compared with the proven revision",
                "Answers whose class was the same, was different, or could not be compared.",
                rate("capstan_serving_compared_total", _SERVICE, "result"),
                unit="ops",
            ),
            Panel(
                "Cache",
                "Share of looks into the cache that found an answer.",
                {
                    "": f'sum(rate(capstan_serving_cache_lookups_total{{{_SERVICE}, result="hit"}}[$__rate_interval]))'
                    f" / sum(rate(capstan_serving_cache_lookups_total{{{_SERVICE}}}[$__rate_interval]))"
                },
                unit="percentunit",
            ),
            Panel(
                "Tokens",
                "Generated per second.",
                {"": f"sum(rate(capstan_serving_generated_tokens_total{{{_SERVICE}}}[$__rate_interval]))"},
                unit="ops",
            ),
        ],
    },
)
