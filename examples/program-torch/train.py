"""A training program of your own: plain torch, data parallel, with five calls to Capstan.

As a TrainingJob it is a rank among others: `kubectl apply -f examples/program-torch/`. By hand it is alone, and keeps
its checkpoints in ./capstan-checkpoints: `python examples/program-torch/train.py`.
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import capstan_runtime


def main() -> None:
    # First of all: what is imported is imported, and a warm spare waits here for its turn.
    job = capstan_runtime.attach(capstan_runtime.ByHand(steps=200, global_batch_size=64, seed=1))
    dist.init_process_group("gloo")  # attach() has set what torch reads: rank, world, where to meet

    torch.manual_seed(job.seed)  # every rank begins with the same weights
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    first, state = job.restore()
    if state is not None:
        model.load_state_dict(state["params"])
        optimizer.load_state_dict(state["optimizer"])

    for step in range(first, job.steps):
        rows = job.data_slice(step, len(images))  # the same samples for this step, however many workers there are
        loss = train(model, optimizer, [(images[ids], labels[ids]) for ids in torch.from_numpy(rows)], job.world)
        job.report(step, loss=loss)
        job.save(step, lambda: {"params": model.state_dict(), "optimizer": optimizer.state_dict()})
        if job.should_stop():
            break

    if job.rank == 0:
        with torch.no_grad():
            accuracy = (model(images).argmax(dim=1) == labels).float().mean()
        print(f"accuracy on what it was trained on: {float(accuracy):.3f}", flush=True)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[tuple[torch.Tensor, torch.Tensor]],
    world: int,
) -> torch.Tensor:
    """One step over the micro-batches of this rank and of all others; the loss of the global batch."""
    optimizer.zero_grad()
    total = torch.zeros(())
    for images, labels in micro_batches:
        loss = functional.cross_entropy(model(images), labels) / len(micro_batches) / world
        loss.backward()
        total += loss.detach()
    gradients = [parameter.grad for parameter in model.parameters()]
    for tensor in (*gradients, total):
        dist.all_reduce(tensor)
    optimizer.step()
    return total


if __name__ == "__main__":
    main()
