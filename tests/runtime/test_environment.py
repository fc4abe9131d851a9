"""What a trial runs on: the GPUs that the process sees, by what a program of nvidia-smi's name says."""

from pathlib import Path

import pytest

from capstan_runtime.contract.benchmark import UNKNOWN_GPU
from capstan_runtime.metrics import environment
from capstan_runtime.metrics.environment import observe_environment

WHOLE = """GPU 0: NVIDIA H200 (UUID: GPU-a1b2c3d4-0000-0000-0000-000000000000)
GPU 1: NVIDIA L4 (UUID: GPU-b1b2c3d4-0000-0000-0000-000000000001)
"""
DIVIDED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-a1b2c3d4-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-11112222-0000-0000-0000-000000000000)
  MIG 1g.5gb      Device  1: (UUID: MIG-33334444-0000-0000-0000-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-b1b2c3d4-0000-0000-0000-000000000001)
  MIG 7g.40gb     Device  0: (UUID: MIG-55556666-0000-0000-0000-000000000000)
"""
LARGE, SMALL, ALL = (f"NVIDIA A100-SXM4-40GB MIG {part}" for part in ("3g.20gb", "1g.5gb", "7g.40gb"))
UNKNOWN = (UNKNOWN_GPU,)


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /dev, without a GPU."""
    folder = tmp_path / "dev"
    folder.mkdir()
    monkeypatch.setattr(environment, "_DEVICES", folder)
    return folder


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str | None, driver: str = "580.65.06") -> None:
    """A program that answers as nvidia-smi does; None: it fails, as without a driver."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "listed").write_text(listed or "")
    answer = f'[ "$1" = -L ] && exec /bin/cat {tmp_path}/listed; echo {driver}; echo {driver}'
    (programs / "nvidia-smi").write_text("#!/bin/sh\n" + ("exit 9\n" if listed is None else answer))
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))


@pytest.mark.parametrize(
    ("listed", "visible", "gpus"),
    [
        (WHOLE, None, ("NVIDIA H200", "NVIDIA L4")),
        (WHOLE, "1", ("NVIDIA L4",)),
        (WHOLE, "1, 0", ("NVIDIA L4", "NVIDIA H200")),
        (WHOLE, "GPU-b1b2", ("NVIDIA L4",)),
        (WHOLE, "7", UNKNOWN),
        (WHOLE, "", ()),
        (WHOLE, "-1", ()),
        (DIVIDED, None, (LARGE, SMALL, ALL)),
        (DIVIDED, "MIG-33334444-0000-0000-0000-000000000000", (SMALL,)),
        (DIVIDED, "1", (ALL,)),
        (DIVIDED, "0", UNKNOWN),
        (DIVIDED, "MIG-GPU-a1b2c3d4-0000-0000-0000-000000000000/1/0", UNKNOWN),
        (None, "0", UNKNOWN),
        (None, None, ()),
    ],
)
def test_gpus_are_those_that_the_process_sees_parts_of_one_included(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    devices: Path,
    listed: str | None,
    visible: str | None,
    gpus: tuple[str, ...],
) -> None:
    install(tmp_path, monkeypatch, listed)
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    observed = observe_environment(environ)
    assert observed.gpus == gpus
    assert observed.driver == ("580.65.06" if gpus not in ((), UNKNOWN) else None)


@pytest.mark.parametrize("has_program", [True, False])
def test_gpus_of_which_nobody_tells_are_unknown_and_not_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: Path, has_program: bool
) -> None:
    if has_program:
        install(tmp_path, monkeypatch, None)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert observe_environment({}).gpus == ()
    (devices / "nvidiactl").touch()
    assert observe_environment({}).gpus == ()
    (devices / "nvidia0").touch()
    assert (observe_environment({}).gpus, observe_environment({}).driver) == (UNKNOWN, None)
