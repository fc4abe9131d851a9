"""The dashboard of Benchmarks."""

from dashboard_panels import Dashboard, Panel, Variable

_CHOSEN = 'benchmark=~"$benchmark"'

BENCHMARKS = Dashboard(
    uid="capstan-benchmarks",
    title="Capstan / Benchmarks",
    description=(
        "Benchmarks by phase, from the operator; verdicts and differences, from the metrics.prom of reports where"
        " node_exporter's textfile collector reads them."
    ),
    variables=[Variable("benchmark", "Benchmark", "label_values(capstan_benchmark_info, benchmark)", is_multiple=True)],
    rows={
        "All": [
            Panel(
                "Regressed",
                "Benchmarks whose newest report says that something became slower.",
                {"": 'count(capstan_benchmark_verdict{verdict="Regressed"} == 1) or vector(0)'},
                kind="stat",
                width=12,
                colours=((None, "green"), (1, "red")),
            ),
            Panel(
                "Repeated runs",
                "Trials that failed and were run again.",
                {"": "sum(capstan_benchmark_repeated_trials)"},
                kind="stat",
                width=12,
            ),
            Panel(
                "Benchmarks",
                "By phase.",
                {"{{phase}}": "max by (phase) (capstan_benchmarks)"},
                is_stacked=True,
                width=24,
            ),
        ],
        "One": [
            Panel(
                "Verdict",
                "Of the newest report; none where it was compared with nothing.",
                {"": f"max by (workload, verdict) (capstan_benchmark_verdict{{{_CHOSEN}}} == 1)"},
                kind="table",
                width=12,
            ),
            Panel(
                "Difference from the baseline",
                "As a part of it, by metric; positive is more, which for seconds is slower.",
                {"{{metric}}": f'max by (metric) (capstan_benchmark_effect_ratio{{{_CHOSEN}, statistic="median"}})'},
                unit="percentunit",
                width=12,
            ),
        ],
    },
)
