"""`python -m capstan_runtime.flax_trainer`: one rank of a Flax run, started by the supervisor."""

import os
import sys

from capstan_runtime.flax_trainer.engine import FlaxEngine
from capstan_runtime.loop import main

code = main(FlaxEngine)
sys.stdout.flush()
sys.stderr.flush()
# Not sys.exit: JAX's exit handlers wait for peers, who may be gone. What must be done is done.
os._exit(code)
