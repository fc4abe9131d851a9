"""What follows from the trials of a Benchmark: series, figures, comparisons, and what each workload derives."""
