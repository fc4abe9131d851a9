"""Environment of the Flax trainer."""

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.waits import longest_wait_seconds


def flax_env(spec: TrainingJobSpec) -> dict[str, str]:
    """Variables that JAX reads before any of our code runs; the rest comes with `run.json`."""
    wait = longest_wait_seconds(spec.recovery.deadlines)
    if spec.workers.gpus == 0:
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_cpu_collective_timeout_seconds={wait}"}
    return {
        # Named, so that a pod whose GPU is broken fails instead of training on its CPU.
        "JAX_PLATFORMS": "cuda,cpu",
        "XLA_FLAGS": f"--xla_gpu_first_collective_call_terminate_timeout_seconds={wait} "
        f"--xla_gpu_nccl_termination_timeout_seconds={wait}",
    }
