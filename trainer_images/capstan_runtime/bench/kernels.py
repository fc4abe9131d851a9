"""The seam between the roofline and the frameworks: pieces of work whose arithmetic and traffic are known.

The frameworks are imported by name, one of them and only here.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from capstan_runtime.bench.threads import limit_threads
from capstan_runtime.contract.signature import Signature
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPE_BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

_MODULES = {
    "flax": "capstan_runtime.flax_trainer.bench_kernels",
    "torch": "capstan_runtime.deepspeed_trainer.bench_kernels",
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One piece of work, ready to be done again and again."""

    name: str
    call: Callable[[], object]
    """Does it once, and returns when it is done, on a device too."""
    flops: float
    """Floating-point operations of a call."""
    bytes: float
    """That a call reads and writes."""


@dataclass(frozen=True, slots=True)
class ModelKernel:
    """A forward pass."""

    kernel: Kernel
    traffic: Literal["counted", "least"]
    """What `kernel.bytes` are: what every operation of the compiled program reads and writes, or only weights, inputs
    and outputs, each once, so that the true intensity is at most the one that follows from them."""
    touched_bytes: float
    """Distinct memory that a call touches, at the least: decides whether a cache can hold it."""


class Kernels(Protocol):
    """What a framework computes with here, on its first device."""

    device: Literal["cpu", "gpu"]
    cache_bytes: int | None
    """Last-level cache of the device; None: it does not say, or it is the host's."""

    def matrix_products(self, dtype: Dtype, side: int) -> Sequence[Kernel]:
        """C = A B of square matrices by each way the framework has, 2 side^3 operations; fp32 is fp32 (no TF32).
        Raises ConfigError where the hardware has no such arithmetic."""
        ...

    def streams(self, elements: int) -> Sequence[Kernel]:
        """Passes over fp32 arrays of `elements` that write in place, so that a cache fetches nothing that is not
        counted: `scale` x <- s x (2 arrays of traffic), `axpy` y <- y + s x (3), `sum` (1)."""
        ...

    def forward(self, signature: Signature, source: TensorSource, batch: int, dtype: Dtype) -> ModelKernel:
        """The model's forward pass over `batch` samples that are on the device already, all places of a sequence."""
        ...


def load_kernels(runtime: str, environ: Mapping[str, str]) -> Kernels:
    """Those of `runtime`, flax or torch. Raises ConfigError where that is not installed."""
    limit_threads(environ)
    try:
        make: Callable[[Mapping[str, str]], Kernels] = importlib.import_module(_MODULES[runtime]).make_kernels
    except ImportError as error:
        raise ConfigError(
            f"workload.roofline.runtime: {runtime} is not installed here ({error}); use the image that has it, or the "
            "other runtime"
        ) from error
    return make(environ)
