"""A result as people and machines read it: Markdown, one HTML file, a file for Prometheus. Nothing is computed here."""

from capstan_runtime.bench.reports.html import page
from capstan_runtime.bench.reports.markdown import comparison, markdown
from capstan_runtime.bench.reports.prometheus import exposition
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.checkpoint.store import Store

__all__ = ["comparison", "markdown", "write_reports"]


def write_reports(result: BenchmarkResult, store: Store, prefix: str) -> None:
    """report.md, report.html and metrics.prom are below `prefix`, beside result.json. Raises OSError."""
    files = {"report.md": markdown(result), "report.html": page(result), "metrics.prom": exposition(result)}
    for name, text in files.items():
        store.put(f"{prefix}/{name}", [text.encode()])
    store.settle(prefix)
