"""`python -m capstan_runtime.deepspeed_trainer`: one rank of a DeepSpeed run, started by the supervisor."""

import os
import sys

from capstan_runtime.deepspeed_trainer.engine import DeepSpeedEngine
from capstan_runtime.loop import main

code = main(DeepSpeedEngine)
sys.stdout.flush()
sys.stderr.flush()
# Not sys.exit: the framework's exit handlers wait for peers, who may be gone. What must be done is done.
os._exit(code)
