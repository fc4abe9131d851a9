"""A run that registers what it ends with: once, however it comes to its end."""

from pathlib import Path

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.registry import REGISTRY, Registered
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.registry.at_end import IMAGE
from capstan_runtime.registry.registering import this_code
from capstan_runtime.registry.registry import Registry
from capstan_runtime.registry.verifying import verify_entry
from tests.runtime.test_registry import add, entry_of
from tests.support.training_runs import Ended, Run, run_trainers

UID = "3f1c-uid"


def run_of(folder: Path, **wish: str) -> Run:
    return Run(folder, steps=20, overrides={"registerAs": {"name": "small", **wish}})


def train(run: Run, fence: int = 1, **faults: str) -> list[Ended]:
    return run_trainers(run, 2, fence, AWAIT_SAVES="1", **{REGISTRY: str(run.folder), IMAGE: "trainer:1"}, **faults)


def registry_of(run: Run) -> Registry:
    return Registry(FolderStore(run.folder), {})


def registered(ended: Ended) -> list[Registered]:
    return [each.registered for each in ended.progress if each.registered is not None]


def test_a_run_registers_what_it_ends_with_and_what_it_was_made_of(tmp_path: Path) -> None:
    run = run_of(tmp_path, bump="minor", stage="staging")
    first, second = train(run)
    assert (first.code, second.code) == (0, 0), first.output
    registry = registry_of(run)
    entry = registry.entry("small", "0.1.0")
    verify_entry(registry, entry, None)
    assert registered(first) == [Registered(name="small", version="0.1.0", root=entry.root)]
    assert registered(second) == []
    assert "registered as small 0.1.0, blake3:" in first.output
    assert (entry.run, entry.step, entry.framework) == ("store", 20, "flax")
    assert {"loss", "accuracy", "validation_loss"} <= entry.metrics.keys()
    config = RunConfig.model_validate_json((tmp_path / "run.json").read_bytes()).document()
    assert entry.lineage.config == config
    assert entry.lineage.code == this_code("trainer:1")
    assert (entry.lineage.job, entry.lineage.uid, entry.registered_by) == (
        "default/small",
        UID,
        "TrainingJob default/small",
    )
    assert registry.promoted("small", "staging").version == "0.1.0"


def test_a_run_that_was_killed_on_its_way_or_starts_again_at_its_end_registers_once(tmp_path: Path) -> None:
    run = run_of(tmp_path, bump="patch", stage="staging")
    killed, _ = train(run, FAULT_KIND="kill", FAULT_RANK="0", FAULT_STEP="13")
    assert killed.code == -9
    assert registry_of(run).names() == []
    finished, _ = train(run, fence=2)
    registry = registry_of(run)
    entry = registry.entry("small", "0.0.1")
    add(registry, entry_of("0.2.0", uid="another", root="blake3:another", name="small"))
    registry.promote("small", "0.2.0", "staging", "a person")
    again, _ = train(run, fence=3)
    assert (finished.code, again.code) == (0, 0), again.output
    assert registry.versions("small") == ["0.2.0", "0.0.1"]
    assert registered(again) == registered(finished) == [Registered(name="small", version="0.0.1", root=entry.root)]
    assert registry.promoted("small", "staging").version == "0.2.0", "what a person promoted meanwhile stays"


def test_a_version_that_is_taken_ends_the_run_before_it_trains(tmp_path: Path) -> None:
    run = run_of(tmp_path, version="1.0.0")
    add(registry_of(run), entry_of("1.0.0", uid="another", name="small"))
    first, second = train(run)
    assert first.code == ExitCode.CONFIG
    assert second.code != 0
    (failure,) = [each for each in first.progress if each.failure is not None]
    assert failure.failure is FailureClass.CONFIG
    assert failure.message == (
        "spec.registerAs.version: small 1.0.0 is registered already, from default/digits step 10 as blake3:00, and "
        "versions never change; choose another, such as 1.0.1"
    )
    assert not any(each.step for each in first.progress)
