"""What torchrun starts for benchmarks/torchrun.py: the recovery benchmark's job in plain torch, with a checkpoint file.

`<folder>/first-steps` gets a line from rank 0 when it has done the first step of a life: when, and which step that was.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from capstan_runtime.data.digits import open_digits

BATCH, HIDDEN, LEARNING_RATE, SAVE_EVERY = 64, 64, 0.003, 200


def join() -> tuple[int, int]:
    """(rank, world). Through the agent's store, with keys of this life's own.

    With `init_process_group("gloo")` alone, torch 2.13 lets half of the lives after the first meet at addresses that
    the life before left in the store; they fail, and torchrun needs two or three restarts for one kill, or hangs.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    agent = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=False)
    store = distributed.PrefixStore(f"life-{os.environ['TORCHELASTIC_RESTART_COUNT']}", agent)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    return rank, world


def main(folder: Path) -> None:
    rank, world = join()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    samples, _ = open_digits()
    inputs, targets = torch.from_numpy(samples.inputs), torch.from_numpy(samples.targets).long()
    torch.manual_seed(3)
    model = DistributedDataParallel(
        nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 10))
    )
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    saved, step = folder / "checkpoint.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    is_first = True
    while True:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(step))
        mine = order[:BATCH][rank::world]
        loss = nn.functional.cross_entropy(model(inputs[mine]), targets[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        step += 1
        if rank == 0 and is_first:
            with (folder / "first-steps").open("a") as lines:
                lines.write(f"{time.time()} {step}\n")
        is_first = False
        if rank == 0 and step % SAVE_EVERY == 0:
            part = saved.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
            part.replace(saved)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
