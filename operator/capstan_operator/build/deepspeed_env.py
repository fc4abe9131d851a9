"""Environment of the DeepSpeed trainer."""

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.waits import longest_wait_seconds


def deepspeed_env(spec: TrainingJobSpec) -> dict[str, str]:
    """Variables that DeepSpeed and torch read before any of our code runs; the rest comes with `run.json`."""
    wait = longest_wait_seconds(spec.recovery.deadlines)
    # DeepSpeed counts in whole minutes (deepspeed/constants.py).
    env = {"DEEPSPEED_TIMEOUT": str(-(-wait // 60))}
    if spec.workers.gpus == 0:
        return env | {"DS_ACCELERATOR": "cpu"}
    return env | {
        "DS_ACCELERATOR": "cuda",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(wait),
    }
