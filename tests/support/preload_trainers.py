"""Imported once by the server that test ranks are forked from. Starts no thread and looks at no device."""

import torch

import capstan_runtime.deepspeed_trainer.engine
import capstan_runtime.flax_trainer.engine  # noqa: F401
from capstan_runtime.deepspeed_trainer.library import load_deepspeed

load_deepspeed(torch.device("cpu"))
