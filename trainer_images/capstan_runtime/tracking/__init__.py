"""Who is told of a run's metrics, besides status and Prometheus: each a sink behind a thread of its own, on rank 0."""
