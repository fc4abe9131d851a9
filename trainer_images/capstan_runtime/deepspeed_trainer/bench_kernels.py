"""What torch computes with, as kernels for the roofline (`bench.kernels`)."""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from capstan_runtime.bench.kernels import DTYPE_BYTES, Dtype, Kernel, ModelKernel
from capstan_runtime.contract.signature import Signature
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.models import bare_model
from capstan_runtime.deepspeed_trainer.world import translated_errors
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError
from capstan_runtime.low_rank import table_of
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import read_tensor, served_kind

_DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_kernels(environ: Mapping[str, str]) -> "TorchKernels":
    # Both are off by default for matrix products, but a default is not a promise; convolutions have TF32 on.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return TorchKernels(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))


class TorchKernels:
    """`bench.kernels.Kernels` on the first GPU or the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.device: Literal["cpu", "gpu"] = "gpu" if device.type == "cuda" else "cpu"
        self.cache_bytes: int | None = (
            torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else None
        )

    def matrix_products(self, dtype: Dtype, side: int) -> Sequence[Kernel]:
        """`matmul` is torch.mm, on CPUs MKL's in fp32; `oneDNN` is the product that compiled models use there."""
        self._require_arithmetic(dtype)
        with translated_errors():
            a, b = (self._random((side, side), dtype, seed) for seed in (0, 1))
            out = torch.empty_like(a)
        flops, traffic = 2.0 * side**3, 3 * side * side * DTYPE_BYTES[dtype]
        kernels = [Kernel("matmul", self._finished(lambda: torch.mm(a, b, out=out)), flops, traffic)]
        if self.device == "cpu" and torch.backends.mkldnn.is_available():
            product = torch.ops.mkldnn._linear_pointwise
            kernels.append(
                Kernel("oneDNN", self._finished(lambda: product(a, b, None, "none", [], "")), flops, traffic)
            )
        return kernels

    def streams(self, elements: int) -> Sequence[Kernel]:
        with translated_errors():
            array, other = (torch.ones(elements, device=self._device) for _ in range(2))
        size = 4.0 * elements
        return [
            Kernel("scale", self._finished(lambda: array.mul_(1.0)), elements, 2 * size),
            Kernel("axpy", self._finished(lambda: array.add_(other, alpha=0.5)), 2 * elements, 3 * size),
            Kernel("sum", self._finished(other.sum), elements, size),
        ]

    def forward(self, signature: Signature, source: TensorSource, batch: int, dtype: Dtype) -> ModelKernel:
        """Operations are torch's count, of matrix products and convolutions alone; traffic is weights, inputs and
        outputs, each once: torch has no counter of it."""
        self._require_arithmetic(dtype)
        data, kind = data_spec_of(signature), _DTYPES[dtype]
        served = served_kind(source)
        with translated_errors():
            with torch.device("meta"):
                module = bare_model(signature.model, data, signature.low_rank)
            tensors = {
                # Matrices and kernels are not cast in every call; gains and biases stay what layers expect.
                spec.name: torch.tensor(
                    read_tensor(source, spec.tensor_name(served), spec.shape),
                    dtype=kind if spec.decays else torch.float32,
                )
                for spec in table_of(signature)
            }
            module.load_state_dict(tensors, assign=True)
            module = module.to(self._device).eval().requires_grad_(False)
            inputs = self._inputs(signature, batch)
            flops = _count_flops(module, inputs, kind)
            with torch.inference_mode():
                outputs = module(inputs, Pass(kind))
        held = [*module.parameters(), inputs, outputs]
        traffic = float(sum(tensor.numel() * tensor.element_size() for tensor in held))
        return ModelKernel(
            Kernel("forward", self._finished(lambda: module(inputs, Pass(kind))), flops, traffic), "least", traffic
        )

    def _finished(self, work: Callable[[], object]) -> Callable[[], object]:
        """`work` as a call that returns when the device is done."""
        if self.device == "cpu":

            def compute() -> None:
                with torch.inference_mode():
                    work()

            return compute

        def compute_and_wait() -> None:
            with torch.inference_mode():
                work()
            torch.cuda.synchronize(self._device)

        return compute_and_wait

    def _random(self, shape: tuple[int, ...], dtype: Dtype, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self._device, _DTYPES[dtype])

    def _inputs(self, signature: Signature, batch: int) -> Tensor:
        shape = (batch, *signature.input_shape)
        if signature.kind == "tokens":
            generator = torch.Generator().manual_seed(2)
            return torch.randint(0, signature.outputs, shape, generator=generator, dtype=torch.int32).to(self._device)
        return self._random(shape, "fp32", 2)

    def _require_arithmetic(self, dtype: Dtype) -> None:
        if dtype == "fp32":
            return
        if self.device == "gpu":
            if dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
                raise ConfigError(
                    f"workload.roofline.dtypes: {dtype} has no arithmetic on "
                    f"{torch.cuda.get_device_name(self._device)}; choose fp16 or fp32"
                )
            return
        operations: Any = torch.ops.mkldnn
        is_supported = operations._is_mkldnn_bf16_supported if dtype == "bf16" else operations._is_mkldnn_fp16_supported
        if not is_supported():
            # Without it one product of 1024 x 1024 takes seconds, and says nothing about the machine.
            raise ConfigError(
                f"workload.roofline.dtypes: {dtype} has no matrix product in torch on this CPU (oneDNN has none for "
                "its instructions); leave it out, or measure a GPU"
            )


def _count_flops(module: torch.nn.Module, inputs: Tensor, dtype: torch.dtype) -> float:
    """Attention is taken apart while it is counted: torch has no count for its fused form on CPUs. So all places of a
    causal mask count, as they do in JAX."""
    counter = FlopCounterMode(display=False)
    # Not inference_mode: under it operations pass the counter by.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(inputs, Pass(dtype))
    return float(counter.get_total_flops())
