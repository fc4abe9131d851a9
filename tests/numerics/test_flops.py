"""What a model needs to compute, by formula: as the frameworks count it, and what components do to it."""

from typing import Any

import pytest

from benchmarks.flops import FRAMEWORKS, MODELS, count
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.engine import Hardware
from capstan_runtime.flops import Work, peak_flops, sample_flops, step_flops, work_of
from tests.support.engines import FLAX, IMAGES, MLP, context_of

TOKENS = DataSpec("tokens", (64,), 256, fingerprint="")
DECODER = {"layers": 4, "dim": 64, "heads": 4, "hiddenDim": 128}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_formula_gives_what_the_framework_counts_in_a_step(framework: str, model: str) -> None:
    ours, counted = count(framework, model)
    assert ours == pytest.approx(counted, rel=0.03 if framework == "flax" else 0)


def test_a_large_decoder_needs_six_operations_a_parameter_and_token_and_those_of_attention() -> None:
    """The shape of Llama 3.2 1B, whose embedding is its head too."""
    shape = {"layers": 16, "dim": 2048, "heads": 32, "kvHeads": 8, "hiddenDim": 8192, "tied": True}
    length, vocabulary = 2048, 128_256
    data = DataSpec("tokens", (length,), vocabulary, fingerprint="")
    matrices = 16 * (2048 * (2048 + 2 * 512) + 2048 * 2048 + 3 * 2048 * 8192) + vocabulary * 2048
    assert sample_flops(Model.parse({"transformer": shape}), data) == length * (6 * matrices + 12 * 16 * 2048 * length)


def decoder_flops(**components: Any) -> float:
    return sample_flops(Model.parse({"transformer": DECODER | components}), TOKENS)


def test_a_token_costs_what_the_experts_that_it_chooses_do() -> None:
    routers = 3 * 2 * 64 * 4 * (8 * 64)
    chosen = decoder_flops(experts={"count": 8, "topK": 2})
    assert chosen == decoder_flops(hiddenDim=2 * 128) + routers
    # An expert with room for one of the two tokens that choose it on average.
    full = decoder_flops(experts={"count": 64, "topK": 2, "capacityFactor": 0.5})
    assert full == decoder_flops(hiddenDim=128) + 8 * routers


def test_tokens_that_layers_leave_out_cost_nothing_there() -> None:
    whole, half = decoder_flops(), decoder_flops(tokenDropout={"keep": 0.5})
    layer = 3 * (2 * 64 * (64 * 3 * 64 + 64 * 64 + 3 * 64 * 128) + 4 * 64 * 64 * 64)
    halved = 3 * (2 * 32 * (64 * 3 * 64 + 64 * 64 + 3 * 64 * 128) + 4 * 32 * 32 * 64)
    assert whole - half == 2 * (layer - halved)


def test_two_smaller_matrices_cost_less_than_the_one() -> None:
    model = Model.parse({"mlp": {"hidden": [128, 128]}})
    assert sample_flops(model, IMAGES, rank=4) == 2 * (
        2 * (4 * 64) + 3 * (128 * 4) + 3 * (4 * 128 + 128 * 4) + 3 * (10 * 128)
    )


def run_of(precision: str = "bf16", **more: Any) -> RunConfig:
    return context_of(FLAX, MLP, batch=8, precision=precision, **more).run


def test_what_is_not_known_is_not_told() -> None:
    sizes = {"multiScale": {"sizes": [8, 16]}}
    assert step_flops(run_of(augmentation=sizes), IMAGES) is None
    assert work_of(run_of(augmentation=sizes), IMAGES, Hardware(1)) is None
    flops = step_flops(run_of(), IMAGES)
    assert work_of(run_of(), IMAGES, Hardware(2)) == Work(flops, None)
    assert work_of(run_of(), IMAGES, Hardware(2, "NVIDIA GeForce 256")) == Work(flops, None)
    assert work_of(run_of("fp32"), IMAGES, Hardware(2, "NVIDIA H200")) == Work(flops, None)


def test_utilisation_is_the_share_of_what_all_devices_together_could_do() -> None:
    work = work_of(run_of(), IMAGES, Hardware(2, "NVIDIA H200"))
    assert work is not None
    assert work.rates(0.5) == {
        "model_flops_per_second": work.flops / 0.5,
        "mfu": pytest.approx(work.flops / 0.5 / (2 * 989.4e12)),
    }


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", None),
        (None, None),
    ],
)
def test_the_peak_of_a_gpu_follows_from_its_name(name: str | None, teraflops: float | None) -> None:
    assert peak_flops(name, "bf16") == (None if teraflops is None else pytest.approx(teraflops * 1e12))
