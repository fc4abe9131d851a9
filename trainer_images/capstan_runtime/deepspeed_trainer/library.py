"""Importing DeepSpeed the way this trainer needs it."""

import logging
import os
import warnings
from typing import Any

import torch


def load_deepspeed(device: torch.device) -> Any:
    """The `deepspeed` package, set to `device`, quiet, and without compiling anything."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # One process per pod; DeepSpeed insists on being told.
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # torch 2.13 renamed two collectives; DeepSpeed 0.19 calls them by the old names, several times a step.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # Its list of usable extensions, left to itself, is found by running compilers, and makes the first collective on a
    # CPU compile `deepspeed_shm_comm`: two minutes, and for ever if a killed compile left its lock behind. Only
    # tensor-parallel inference uses that one; nothing here uses any.
    deepspeed.ops.__compatible_ops__ = {}
    _import_muon_uncompiled()
    return deepspeed


def _import_muon_uncompiled() -> None:
    """DeepSpeed imports its Muon to ask whether the optimizer is one, and that compiles Muon's kernels: 1.4 s of every
    start for TorchInductor's import. Ours never is one, so its kernels may stay plain Python."""
    from deepspeed.runtime import compiler

    compile_kernel = compiler.compile
    compiler.compile = lambda *_args, **_kwargs: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compile_kernel
