"""What the trainers learn: accuracy on the digits, and loss per byte beside a bare loop of plain PyTorch.

The bare loop is written here without a line of the product: a decoder of the same shape in torch's own modules, batches
cut at random places as nanoGPT does, AdamW and a cosine. It sees as many bytes of the same files, held out alike.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Figure
from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership, RunConfig

FRAMEWORKS: dict[str, dict[str, Any]] = {"flax": {"flax": {}}, "deepspeed": {"deepspeed": {"zeroStage": 1}}}
SEEDS = (1, 2, 3)
LAYERS, DIM, HEADS, LENGTH, BATCH = 4, 128, 4, 128, 32
PEAK, WARM_UP_STEPS, DECAY = 4e-3, 40, 0.1
PATIENCE_SECONDS = 3600.0
DEFAULTS = {"JAX_PLATFORMS": "cpu", "DS_ACCELERATOR": "cpu"}

DIGITS: dict[str, Any] = {
    "model": {"cnn": {"channels": [32, 64], "groups": 8}},
    "data": {"digits": {}},
    "optimizer": {"adamw": {"learningRate": 0.003, "weightDecay": 0.05}},
    "schedule": {"cosine": {"warmupSteps": 20}},
    "training": {"epochs": 40, "globalBatchSize": 64, "virtualRanks": 1},
    "regularization": {"mixup": {"alpha": 0.2}},
}


def measure(decoder_steps: int) -> Iterator[Figure]:
    """The digits once for each of three seeds, the decoder for `decoder_steps`."""
    command = "python -m benchmarks convergence"
    for framework in FRAMEWORKS:
        reached = [_trained(framework, {**DIGITS, "training": {**DIGITS["training"], "seed": s}}) for s in SEEDS]
        accuracies = [100 * metrics["accuracy"] for metrics in reached]
        spread = ", ".join(f"{each:.2f}" for each in sorted(accuracies))
        yield Figure(f"{framework}: digits held out, median of {spread}", float(np.median(accuracies)), "%", command)
    bare = _in_process("bare", {"steps": decoder_steps})["validation_loss"]
    tokens = decoder_steps * BATCH * LENGTH
    yield Figure(f"bare loop: loss per byte after {tokens:,} bytes", bare, "nats", command)
    for framework in FRAMEWORKS:
        loss = _trained(framework, _decoder(decoder_steps))["validation_loss"]
        name = f"{framework}: the same, {100 * (loss / bare - 1):+.2f} % of the bare loop's"
        yield Figure(name, loss, "nats", command)


def _decoder(steps: int) -> dict[str, Any]:
    return {
        "model": {"transformer": {"layers": LAYERS, "dim": DIM, "heads": HEADS}},
        "data": {"text": {"path": "$(PYTHON_STDLIB)", "pattern": "*.py", "sequenceLength": LENGTH}},
        "optimizer": {"adamw": {"learningRate": PEAK, "beta2": 0.95, "weightDecay": DECAY}},
        "schedule": {"cosine": {"warmupSteps": WARM_UP_STEPS, "finalFraction": 0.1}},
        "training": {"steps": steps, "globalBatchSize": BATCH, "virtualRanks": 1, "gradientClip": 1.0, "seed": 1},
    }


def _trained(framework: str, run: dict[str, Any]) -> dict[str, float]:
    """The last evaluation of a run of the product's trainer."""
    return _in_process("ours", {"framework": framework, **run})


def _in_process(which: str, request: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.convergence", which]
    with tempfile.TemporaryDirectory(prefix="capstan-convergence-") as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [*command, json.dumps(request), folder, str(result)],
            env={**DEFAULTS, **os.environ},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
        found: dict[str, float] = json.loads(result.read_text())
        return found


def ours(request: dict[str, Any], folder: Path) -> dict[str, float]:
    """The metrics of the last evaluation of one attempt, which is the whole run."""
    from capstan_runtime.contract.state import Progress
    from capstan_runtime.loop import run_attempt
    from capstan_runtime.preparing import prepare
    from capstan_runtime.report import Reporter
    from capstan_runtime.stop_signal import StopSignal

    framework = request.pop("framework")
    if framework == "flax":
        from capstan_runtime.flax_trainer.engine import FlaxEngine as Made
    else:
        from capstan_runtime.deepspeed_trainer.engine import DeepSpeedEngine as Made

    document = {
        "job": "default/convergence",
        "uid": "convergence",
        "framework": FRAMEWORKS[framework],
        "checkpoint": {"interval": {"seconds": 86400}},
        **request,
    }
    (folder / "run.json").write_text(RunConfig.parse(document).model_dump_json(by_alias=True))
    member = Membership(fence=1, rank=0, world=1, coordinator=f"127.0.0.1:{29000 + os.getpid() % 1000}")
    environ = {
        **os.environ,
        env.RUN_CONFIG: str(folder / "run.json"),
        env.MEMBERSHIP: member.model_dump_json(by_alias=True),
        env.STORE: str(folder / "store"),
    }
    with tempfile.TemporaryFile() as reports:
        run_attempt(lambda context: Made(context), environ, Reporter(reports.fileno()), StopSignal(), prepare(environ))
        reports.seek(0)
        told = [Progress.model_validate_json(line).metrics or {} for line in reports]
    return {name: value for metrics in told for name, value in metrics.items()}


def bare(request: dict[str, Any], folder: Path) -> dict[str, float]:
    """Loss per byte of a decoder in plain PyTorch, on bytes that it has not seen."""
    import torch
    import torch.nn.functional as F

    from capstan_runtime.contract.data import Data
    from capstan_runtime.data.open import open_dataset

    dataset = open_dataset(Data.parse(_decoder(1)["data"]), 1, os.environ)
    training, validation = (
        torch.from_numpy(np.stack(part.fetch(np.arange(len(part))), axis=1)).long()
        for part in (dataset.train, dataset.validation)
    )
    torch.manual_seed(1)
    model = BareDecoder.make()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": gains, "weight_decay": 0.0}],
        lr=PEAK,
        betas=(0.9, 0.95),
    )
    steps = request["steps"]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * _cosine(step, steps)
        chosen = training[torch.randint(len(training), (BATCH,))]
        loss = F.cross_entropy(model(chosen[:, 0]).flatten(0, 1), chosen[:, 1].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(part[:, 0]).flatten(0, 1), part[:, 1].flatten(), reduction="sum")
            for part in validation.split(BATCH)
        ]
    return {"validation_loss": float(sum(losses)) / validation[:, 1].numel()}


def _cosine(step: int, steps: int) -> float:
    if step < WARM_UP_STEPS:
        return (step + 1) / (WARM_UP_STEPS + 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARM_UP_STEPS) / (steps - WARM_UP_STEPS)))


class BareDecoder:
    """A Llama in forty lines."""

    @staticmethod
    def make() -> Any:
        import torch
        import torch.nn.functional as F
        from torch import Tensor, nn

        hidden = math.ceil(8 * DIM / 3 / 32) * 32
        angles = torch.arange(LENGTH)[:, None] * 10000.0 ** (-torch.arange(0, DIM // HEADS, 2) / (DIM // HEADS))
        cos, sin = angles.cos(), angles.sin()

        def turned(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.before, self.between = nn.RMSNorm(DIM, eps=1e-5), nn.RMSNorm(DIM, eps=1e-5)
                self.qkv, self.out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
                self.up, self.down = nn.Linear(DIM, 2 * hidden, bias=False), nn.Linear(hidden, DIM, bias=False)

            def forward(self, x: Tensor) -> Tensor:
                heads = self.qkv(self.before(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
                mixed = F.scaled_dot_product_attention(turned(heads[0]), turned(heads[1]), heads[2], is_causal=True)
                x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
                gate, up = self.up(self.between(x)).chunk(2, dim=-1)
                return x + self.down(F.silu(gate) * up)

        layers = [Layer() for _ in range(LAYERS)]
        model = nn.Sequential(
            nn.Embedding(256, DIM), *layers, nn.RMSNorm(DIM, eps=1e-5), nn.Linear(DIM, 256, bias=False)
        )
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                is_residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if is_residual else 0.02)
        return model


def main(which: str, request: str, folder: str, result: str) -> None:
    found = {"ours": ours, "bare": bare}[which](json.loads(request), Path(folder))
    Path(result).write_text(json.dumps(found))
    os._exit(0)  # exit handlers of frameworks have nothing more to say


if __name__ == "__main__":
    main(*sys.argv[1:])
