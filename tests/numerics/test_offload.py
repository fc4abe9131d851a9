"""What is kept in the host's memory, or on its disk, makes the same losses, weights and checkpoints to the last bit."""

import errno
import importlib
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from capstan_runtime.contract import env
from capstan_runtime.contract.framework import DeepSpeedOffload
from capstan_runtime.deepspeed_trainer import disk
from capstan_runtime.errors import ConfigError
from tests.numerics.test_state import bits, gather
from tests.support.engines import (
    ADAMW,
    CNN,
    FLAX,
    MLP,
    SGD,
    TRANSFORMER,
    Saved,
    batch_of,
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.ranks import run_ranks

Document = dict[str, Any]
CPU: Document = {"cpu": {}}
NVME: Document = {"nvme": {}}


def offloaded(stage: int, *parts: str, to: Document = CPU) -> Document:
    return {"deepspeed": {"zeroStage": stage, "offload": dict.fromkeys(parts, to)}}


def lives(
    rank: int,
    world: int,
    coordinator: str,
    frameworks: list[Document],
    options: Document,
    model: Document = TRANSFORMER,
) -> Any:
    """For each framework: a curve, all state after it and an evaluation, then the same again from the state in its
    middle."""
    answers = []
    disk.SMALLEST_BYTES = 1
    for framework in frameworks:
        context = context_of(framework, model, rank, world, coordinator, **options)
        engine: Any = make_engine(context)
        curve = train(engine, context, 0, 3)
        middle = gather(engine)
        curve += train(engine, context, 3, 6)
        end = gather(engine)
        engine.import_state(Saved(middle))
        again = curve[:3] + train(engine, context, 3, 6)
        evaluated = engine.evaluate([batch_of(context, 0)])
        answers += [(curve, bits(middle), bits(end), evaluated), (again, bits(middle), bits(gather(engine)), evaluated)]
        # A process joins one world only, so the engines share it.
        of_engines: Any = importlib.import_module(type(engine).__module__)
        of_engines.World = lambda *_, joined=engine._world: joined
    engine.close()
    return answers


CASES: dict[str, tuple[list[Document], Document]] = {
    "zero1": (
        [deepspeed(1), offloaded(1, "optimizer"), offloaded(1, "optimizer", to=NVME)],
        {"optimizer": ADAMW, "training": {"ema": {"decay": 0.9}}},
    ),
    "zero2": ([deepspeed(2), offloaded(2, "optimizer")], {"optimizer": SGD, "gradient_clip": None}),
    "zero3": (
        [
            deepspeed(3),
            *(offloaded(3, *parts) for parts in (["optimizer"], ["parameters"], ["optimizer", "parameters"])),
            *(offloaded(3, *parts, to=NVME) for parts in (["optimizer"], ["optimizer", "parameters"])),
        ],
        {"optimizer": ADAMW},
    ),
    "zero3, fp16": ([deepspeed(3), offloaded(3, "optimizer", "parameters")], {"precision": "fp16"}),
}


@pytest.mark.parametrize(("frameworks", "options"), CASES.values(), ids=CASES)
def test_an_offloaded_run_is_the_same_to_the_last_bit_and_resumes_as_itself(
    frameworks: list[Document], options: Document
) -> None:
    for (curve, *states), *others in run_ranks(lives, 2, frameworks, options):
        assert len(set(curve)) == 6
        for found_curve, *found_states in others:
            assert found_states == states
            assert [loss for loss, _ in found_curve] == [loss for loss, _ in curve]
            # Their squares are summed in another order.
            np.testing.assert_allclose(found_curve, curve, rtol=1e-6)


WIDE: Document = {"mlp": {"hidden": [4096, 4096]}}


def bytes_kept(rank: int, world: int, coordinator: str, framework: Document, folder: str) -> tuple[int, int, int, Any]:
    """Bytes of the weights that this rank keeps, of the files in `folder` that are its memory, of its other memory, and
    what lies there."""
    context = context_of(framework, WIDE, rank, world, coordinator)
    engine: Any = make_engine(replace(context, environ={env.SCRATCH: folder}))
    train(engine, context, 0, 1)
    weights = sum(4 * fragment.size for fragment in engine._fragments)
    maps = re.findall(rf"^(\w+)-(\w+) rw-s .* {folder}/", Path("/proc/self/maps").read_text(), re.MULTILINE)
    anonymous = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert anonymous is not None
    engine.close()
    in_files = sum(int(end, 16) - int(start, 16) for start, end in maps)
    return weights, in_files, 1024 * int(anonymous[1]), list(Path(folder).iterdir())


@pytest.mark.parametrize(
    ("stage", "parts", "times"), [(1, ["optimizer"], 3), (3, ["optimizer"], 3), (3, ["optimizer", "parameters"], 4)]
)
def test_masters_and_both_moments_and_parameters_are_files_that_nobody_has_to_remove(
    stage: int, parts: list[str], times: int, tmp_path: Path
) -> None:
    ((weights, none, in_memory, _),) = run_ranks(bytes_kept, 1, offloaded(stage, *parts), str(tmp_path))
    ((_, in_files, beside, left),) = run_ranks(bytes_kept, 1, offloaded(stage, *parts, to=NVME), str(tmp_path))
    assert (none, left) == (0, [])
    # What is small stays in memory; pages and the parts of a parameter group are rounded up.
    assert in_files == pytest.approx(times * weights, rel=0.05)
    assert in_memory - beside == pytest.approx(in_files, rel=0.1), "nothing of it is in memory as well"


def test_a_disk_without_room_says_so_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, *_: int) -> None:
        os.ftruncate(file, 1 << 20)  # some file systems keep what there was
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    offload = DeepSpeedOffload.parse({"optimizer": NVME})
    engine = SimpleNamespace(module=torch.nn.Linear(1, 1))
    keep = disk.move_to_disk(engine, offload, {env.SCRATCH: str(tmp_path)})
    with pytest.raises(
        ConfigError,
        match=r"^spec.framework.deepspeed.offload: nvme has no room for state: No space left on device: 4,000,000 "
        rf"bytes, and {tmp_path} has [\d,]+ left; give the pod's volume `scratch` more by workers.podPatch, or choose"
        " cpu$",
    ):
        keep(torch.zeros(1_000_000))
    assert list(tmp_path.iterdir()) == []


def in_host_memory(**more: Document) -> Document:
    return {"flax": {**more, "offload": {"optimizer": CPU}}}


FSDP: Document = {"flax": {"fsdp": {}}}
AVERAGED: Document = {"training": {"ema": {"decay": 0.9}}}


@pytest.mark.parametrize(
    ("model", "frameworks", "options"),
    [
        pytest.param(MLP, [FLAX, in_host_memory()], AVERAGED, id="an average of the weights"),
        pytest.param(TRANSFORMER, [FSDP, in_host_memory(fsdp={})], AVERAGED, id="fsdp", marks=pytest.mark.full),
        pytest.param(TRANSFORMER, [FLAX, in_host_memory()], {"precision": "fp16"}, id="fp16", marks=pytest.mark.full),
        pytest.param(CNN, [FLAX, in_host_memory()], {"optimizer": SGD}, id="cnn", marks=pytest.mark.full),
    ],
)
def test_a_flax_run_with_its_state_in_the_hosts_memory_is_the_same_to_the_last_bit(
    model: Document, frameworks: list[Document], options: Document
) -> None:
    for first, *others in run_ranks(lives, 2, frameworks, options, model):
        assert len(set(first[0])) == 6
        assert others == [first] * 3


def kinds_of_memory(rank: int, world: int, coordinator: str, framework: Document) -> Any:
    """Where weights and state are: when they are new, after a step, and after a restore."""
    context = context_of(framework, MLP, rank, world, coordinator)
    engine: Any = make_engine(context)
    found = []
    for change in (
        lambda: None,
        lambda: train(engine, context, 0, 1),
        lambda: engine.import_state(Saved(gather(engine))),
    ):
        change()
        arrays = {False: engine._parameters, True: [each for arrays in engine._state for each in arrays]}
        found.append({where: {each.sharding.memory_kind for each in arrays[where]} for where in arrays})
    engine.close()
    return found


@pytest.mark.parametrize("framework", [in_host_memory(), in_host_memory(fsdp={})], ids=["whole", "fsdp"])
def test_state_stays_in_the_hosts_memory_and_weights_on_the_device(framework: Document) -> None:
    assert run_ranks(kinds_of_memory, 1, framework) == [[{False: {"device"}, True: {"pinned_host"}}] * 3]
