"""What JAX computes with, as kernels for the roofline (`bench.kernels`)."""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from capstan_runtime.bench.kernels import DTYPE_BYTES, Dtype, Kernel, ModelKernel
from capstan_runtime.contract.signature import Signature
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError
from capstan_runtime.flax_trainer.decoder import TransformerModel
from capstan_runtime.flax_trainer.engine import configure_jax
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.flax_trainer.world import translated_errors
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import served_kind

_DTYPES: dict[Dtype, Any] = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}
_BF16_SINCE = 8.0
"""Compute capability of NVIDIA GPUs from which on they multiply bf16 (Ampere)."""


def make_kernels(environ: Mapping[str, str]) -> "FlaxKernels":
    configure_jax("fp32", environ)
    return FlaxKernels()


class FlaxKernels:
    """`bench.kernels.Kernels` on JAX's first device. Every kernel is a program that was compiled ahead."""

    def __init__(self) -> None:
        with translated_errors():
            self._device = jax.devices()[0]
        self.device: Literal["cpu", "gpu"] = "cpu" if self._device.platform == "cpu" else "gpu"
        self.cache_bytes: int | None = None

    def matrix_products(self, dtype: Dtype, side: int) -> Sequence[Kernel]:
        _require_arithmetic(self._device, dtype)
        with translated_errors():
            a, b = (self._random((side, side), dtype, seed) for seed in (0, 1))
            product = jax.jit(jnp.matmul).lower(a, b).compile()
        traffic = 3 * side * side * DTYPE_BYTES[dtype]
        return [Kernel("matmul", lambda: product(a, b).block_until_ready(), 2.0 * side**3, traffic)]

    def streams(self, elements: int) -> Sequence[Kernel]:
        array = jnp.zeros(elements, jnp.float32)
        other = jnp.ones(elements, jnp.float32)
        held = [array]  # a donated array is gone: what came of it takes its place
        factor = jnp.float32(1.0)  # an argument: the compiler would leave out what it knows to change nothing
        scale = jax.jit(lambda x, s: s * x, donate_argnums=0).lower(array, factor).compile()
        axpy = jax.jit(lambda y, x, s: y + s * x, donate_argnums=0).lower(array, other, factor).compile()
        total = jax.jit(jnp.sum).lower(other).compile()

        def scale_in_place() -> None:
            held[0] = scale(held[0], factor)
            held[0].block_until_ready()

        def add_in_place() -> None:
            held[0] = axpy(held[0], other, factor)
            held[0].block_until_ready()

        size = 4.0 * elements
        return [
            Kernel("scale", scale_in_place, elements, 2 * size),
            Kernel("axpy", add_in_place, 2 * elements, 3 * size),
            Kernel("sum", lambda: total(other).block_until_ready(), elements, size),
        ]

    def forward(self, signature: Signature, source: TensorSource, batch: int, dtype: Dtype) -> ModelKernel:
        """Operations are XLA's count for the program as it was written, traffic its count for the compiled one: every
        operation that is left after fusing reads and writes memory."""
        _require_arithmetic(self._device, dtype)
        structure = Structure(signature.model, data_spec_of(signature), signature.low_rank)
        kind, served = _DTYPES[dtype], served_kind(source)
        with translated_errors():
            parameters = [
                # Matrices and kernels are not cast in every call; gains and biases stay what layers expect.
                jnp.asarray(leaf.read(source, served), kind if leaf.decays else jnp.float32)
                for leaf in structure.everything
            ]
            inputs = self._inputs(signature, batch)
            program = (
                jax.jit(lambda parameters, inputs: structure.assemble(parameters)(inputs, Pass(jnp.dtype(kind))))
                .lower(parameters, inputs)
                .compile()
            )
            flops, traffic = _costs(structure, parameters, inputs, kind)
        memory = program.memory_analysis()
        assert memory is not None
        touched = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        call = Kernel("forward", lambda: program(parameters, inputs).block_until_ready(), flops, traffic)
        return ModelKernel(call, "counted", float(touched))

    def _random(self, shape: tuple[int, ...], dtype: Dtype, seed: int) -> jax.Array:
        values = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return jax.device_put(values.astype(_DTYPES[dtype]), self._device)

    def _inputs(self, signature: Signature, batch: int) -> jax.Array:
        shape = (batch, *signature.input_shape)
        if signature.kind == "tokens":
            tokens = np.random.default_rng(2).integers(0, signature.outputs, shape, np.int32)
            return jax.device_put(tokens, self._device)
        return self._random(shape, "fp32", 2)


def _require_arithmetic(device: Any, dtype: Dtype) -> None:
    capability = getattr(device, "compute_capability", None)
    if dtype == "bf16" and capability is not None and float(capability) < _BF16_SINCE:
        raise ConfigError(
            f"workload.roofline.dtypes: {dtype} has no arithmetic on {device.device_kind}, of compute capability "
            f"{capability} (Ampere's is {_BF16_SINCE}); choose fp16 or fp32"
        )


def _costs(structure: Structure, parameters: list[jax.Array], inputs: jax.Array, kind: Any) -> tuple[float, float]:
    """(operations, bytes) by XLA's own counters. They count the body of a loop once, so layers that run in a loop are
    counted in a program without one, where each layer has parameters of its own."""

    def plain(parameters: list[jax.Array], inputs: jax.Array) -> jax.Array:
        return structure.assemble(parameters)(inputs, Pass(jnp.dtype(kind)))

    model = nnx.eval_shape(lambda: structure.assemble(parameters))
    if not isinstance(model, TransformerModel):
        lowered = jax.jit(plain).lower(parameters, inputs)
    else:
        lowered = _lower_without_loop(structure, parameters, inputs, kind)
    written, compiled = lowered.cost_analysis(), lowered.compile().cost_analysis()
    assert written is not None
    assert compiled is not None
    return float(written["flops"]), float(compiled["bytes accessed"])


def _lower_without_loop(structure: Structure, parameters: list[jax.Array], inputs: jax.Array, kind: Any) -> Any:
    is_stacked = [len(leaf.parameters) > 1 or leaf.shape != leaf.parameters[0].shape for leaf in structure.everything]
    layers = next(leaf.shape[0] for leaf, stacked in zip(structure.everything, is_stacked, strict=True) if stacked)
    rest = [
        jax.ShapeDtypeStruct((1, *value.shape[1:]) if stacked else value.shape, value.dtype)
        for value, stacked in zip(parameters, is_stacked, strict=True)
    ]
    each = [[one for one, stacked in zip(rest, is_stacked, strict=True) if stacked] for _ in range(layers)]

    def unrolled(shared: list[jax.Array], each: list[list[jax.Array]], inputs: jax.Array) -> jax.Array:
        def with_layer(own: list[jax.Array]) -> TransformerModel:
            left = iter(own)
            values = [next(left) if stacked else one for one, stacked in zip(shared, is_stacked, strict=True)]
            model = structure.assemble(values)
            assert isinstance(model, TransformerModel)
            return model

        here = Pass(jnp.dtype(kind))
        first = with_layer(each[0])
        where = first.positions(jnp.arange(inputs.shape[1]), here.dtype)
        state = first.enter(first.embed(inputs, here.dtype))
        for own in each:
            graph, stacked = nnx.split(with_layer(own).layers)
            layer = nnx.merge(graph, jax.tree_util.tree_map(lambda value: value.reshape(value.shape[1:]), stacked))
            state = layer(state, where, here)
        return first.logits(first.leave(state, here.dtype))

    return jax.jit(unrolled).lower(rest, each, inputs)
