"""How many threads what is measured may use."""

import os
from collections.abc import Mapping

_JAX_THREADS = "PJRT_NPROC"
"""What JAX asks for the number of its threads on CPUs before it counts cores (`DefaultThreadPoolSize` in
xla/pjrt/utils.cc). It knows nothing of OMP_NUM_THREADS, which numpy's BLAS and torch obey."""


def limit_threads(environ: Mapping[str, str]) -> None:
    """JAX, if it is imported later in this process, computes on CPUs with OMP_NUM_THREADS threads, as all else does:
    otherwise one side of a comparison would have more cores than the other, and the environment that is recorded would
    be wrong."""
    threads = environ.get("OMP_NUM_THREADS")
    if threads and threads.isdigit():
        os.environ.setdefault(_JAX_THREADS, threads)
