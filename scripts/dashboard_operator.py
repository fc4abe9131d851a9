"""The dashboard of the operator."""

from dashboard_panels import Dashboard, Panel, Variable, quantiles, rate

_OP = 'namespace="$namespace"'

OPERATOR = Dashboard(
    uid="capstan-operator",
    title="Capstan / Operator",
    description="Whether the operator acts, how fast, and what the jobs' time goes into.",
    variables=[Variable("namespace", "Namespace", "label_values(capstan_operator_leader, namespace)")],
    rows={
        "At a glance": [
            Panel(
                "Acting replicas",
                "One acts, the others stand by. With none, nobody repairs what breaks; jobs go on training.",
                {"": f"sum(capstan_operator_leader{{{_OP}}})"},
                kind="stat",
                width=4,
                colours=((None, "red"), (1, "green")),
            ),
            Panel(
                "Goodput",
                "Share of training in all time of the jobs at work, suspension aside.",
                {"": f"max(capstan_goodput_ratio{{{_OP}}} >= 0)"},
                unit="percentunit",
                kind="stat",
                width=4,
                colours=((None, "red"), (0.8, "orange"), (0.9, "green")),
            ),
            Panel(
                "TrainingJobs",
                "Known to the acting replica.",
                {"": f"max(capstan_operator_jobs{{{_OP}}})"},
                kind="stat",
                width=4,
            ),
            Panel(
                "Worker pods",
                "Known to the acting replica.",
                {"": f"max(capstan_operator_pods{{{_OP}}})"},
                kind="stat",
                width=4,
            ),
            Panel(
                "InferenceServices",
                "Known to the acting replica.",
                {"": f"max(capstan_operator_services{{{_OP}}})"},
                kind="stat",
                width=4,
            ),
            Panel(
                "Replicas",
                "Pods of InferenceServices.",
                {"": f"max(capstan_operator_replicas{{{_OP}}})"},
                kind="stat",
                width=4,
            ),
        ],
        "Jobs": [
            Panel(
                "Where the time goes",
                "Seconds of jobs per second, by what they were spent on.",
                rate("capstan_goodput_seconds_total", _OP, "class"),
                is_stacked=True,
            ),
            Panel(
                "Seconds of a recovery",
                "From the end of an attempt to the first step of the next, by part; the slowest tenth.",
                quantiles("capstan_recovery_seconds", _OP, 0.9, by="phase"),
                unit="s",
            ),
            Panel(
                "Steps done again",
                "Lost by failures in five minutes, by cause.",
                {"{{cause}}": f"sum by (cause) (increase(capstan_lost_steps_total{{{_OP}}}[5m]))"},
            ),
        ],
        "Passes": [
            Panel(
                "Passes",
                "Looks at one object, by how they ended. Errors are in the log, with the object's name.",
                rate("capstan_operator_reconciles_total", _OP, "result"),
                unit="ops",
            ),
            Panel(
                "Seconds of a pass",
                "From look to last write.",
                quantiles("capstan_operator_reconcile_seconds", _OP, 0.5, 0.99),
                unit="s",
            ),
            Panel(
                "Waiting",
                "Objects that wait for a pass, by priority; repairs go first.",
                {"{{priority}}": f"sum by (priority) (capstan_operator_queue_depth{{{_OP}}})"},
            ),
            Panel(
                "Seconds until a pass begins",
                "What an object waited for its pass.",
                quantiles("capstan_operator_queue_seconds", _OP, 0.5, 0.99),
                unit="s",
            ),
            Panel(
                "Status writes",
                "Written, suppressed since nothing changed, or postponed to be written together.",
                rate("capstan_operator_status_writes_total", _OP, "result"),
                unit="ops",
            ),
            Panel(
                "Unreadable documents",
                "Objects, states and answers that could not be read, by what they were. Should be none.",
                {"{{what}}": f"sum by (what) (increase(capstan_operator_bad_documents_total{{{_OP}}}[5m]))"},
            ),
        ],
        "API server and pods": [
            Panel(
                "Requests",
                "To the API server, by verb.",
                rate("capstan_operator_api_requests_total", _OP, "verb"),
                unit="reqps",
            ),
            Panel(
                "Refused or unanswered",
                "Answers from 400 on, and none: 409 is a write that came second, 429 an overloaded server.",
                rate("capstan_operator_api_requests_total", f'{_OP}, code!~"[123].."', "code"),
                unit="reqps",
            ),
            Panel(
                "Seconds of a request",
                "What the API server takes, the slowest hundredth by verb.",
                quantiles("capstan_operator_api_seconds", _OP, 0.99, by="verb"),
                unit="s",
            ),
            Panel(
                "Silence of watches",
                "Since the API server last said anything, by kind. It says something every minute.",
                {"{{resource}}": f"max by (resource) (capstan_operator_watch_last_event_age_seconds{{{_OP}}})"},
                unit="s",
                colours=((None, "green"), (120, "orange"), (300, "red")),
            ),
            Panel(
                "Supervisors",
                "Questions to the supervisors of workers, by result.",
                rate("capstan_operator_supervisor_polls_total", _OP, "result"),
                unit="reqps",
            ),
            Panel(
                "Replicas",
                "Questions to replicas of services for their numbers, by result.",
                rate("capstan_operator_replica_scrapes_total", _OP, "result"),
                unit="reqps",
            ),
        ],
    },
)
