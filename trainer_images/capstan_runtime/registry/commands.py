"""What `capstan model` does once its arguments are read: each returns the exit code and prints a table or JSON."""

import json
import time
from dataclasses import dataclass
from typing import Any

from capstan_runtime.checkpoint.commands.check import BAD_BYTES
from capstan_runtime.checkpoint.commands.text import Progress, counted, moment, print_table, short, size, span
from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.registry import is_version
from capstan_runtime.errors import CorruptCheckpoint
from capstan_runtime.registry.entry import ModelEntry, Promotion
from capstan_runtime.registry.registering import Candidate, Wanted, register, this_user
from capstan_runtime.registry.registry import NotRegistered, Registry
from capstan_runtime.registry.verifying import verify_entry


@dataclass(frozen=True, slots=True)
class Reference:
    """What `NAME@WHICH` names."""

    name: str
    which: str | None
    """A version or a stage; None: the newest version."""


def register_one(registry: Registry, candidate: Candidate, wanted: Wanted, stage: str | None, output: str) -> int:
    """0. Raises as `register`."""
    progress = Progress(f"reading {candidate.checkpoint}", 0)
    try:
        entry = register(registry, candidate, wanted, progress.add)
    finally:
        progress.end()
    before = registry.newest_promotion(entry.name, stage) if stage is not None else None
    promotion = registry.promote(entry.name, entry.version, stage, wanted.by) if stage is not None else None
    if output == "json":
        _print({"entry": entry.document(), "promotion": promotion.document() if promotion else None})
        return ExitCode.OK
    print(f"{entry.name} {entry.version} is step {entry.step} of {entry.lineage.job}, {entry.root}")
    if promotion is not None:
        print(_moved(promotion, before))
    return ExitCode.OK


def list_models(registry: Registry, name: str | None, output: str) -> int:
    """0. Raises OSError, CorruptCheckpoint, LaterFormat, and NotRegistered for a name that nobody has registered."""
    return _list_all(registry, output) if name is None else _list_one(registry, name, output)


def _list_all(registry: Registry, output: str) -> int:
    found = {name: (registry.versions(name), registry.stages(name)) for name in registry.names()}
    if output == "json":
        models = [
            {"name": name, "versions": versions, "stages": {stage: one.version for stage, one in stages.items()}}
            for name, (versions, stages) in found.items()
        ]
        _print({"place": registry.store.place, "models": models})
        return ExitCode.OK
    rows = [
        (
            name,
            versions[0] if versions else "-",
            str(len(versions)),
            ", ".join(f"{stage} {one.version}" for stage, one in sorted(stages.items())) or "-",
        )
        for name, (versions, stages) in found.items()
    ]
    print_table(("MODEL", "NEWEST", "VERSIONS", "STAGES"), rows)
    return ExitCode.OK


def _list_one(registry: Registry, name: str, output: str) -> int:
    versions, stages = registry.versions(name), registry.stages(name)
    if not versions:
        raise NotRegistered(registry.what_there_is(name))
    entries = [registry.entry(name, version) for version in versions]
    if output == "json":
        shown = {stage: one.version for stage, one in stages.items()}
        _print({"name": name, "versions": [entry.document() for entry in entries], "stages": shown})
        return ExitCode.OK
    rows = [
        (
            entry.version,
            ", ".join(stage for stage, one in sorted(stages.items()) if one.version == entry.version) or "-",
            short(entry.root),
            entry.lineage.job,
            str(entry.step),
            _figures(entry),
            size(entry.size_bytes),
            span(time.time() - entry.registered_at),
        )
        for entry in entries
    ]
    print_table(("VERSION", "STAGES", "ROOT", "JOB", "STEP", "METRICS", "SIZE", "AGE"), rows)
    return ExitCode.OK


def _figures(entry: ModelEntry) -> str:
    shown = [name for name in ("accuracy", "validation_loss", "loss") if name in entry.metrics][:2]
    return ", ".join(f"{name} {entry.metrics[name]:.4g}" for name in shown) or "-"


def show(registry: Registry, reference: Reference, output: str) -> int:
    """0. Raises NotRegistered, CorruptCheckpoint, LaterFormat, OSError."""
    entry = _meant(registry, reference)
    _, content = registry.sealed_entry(entry.name, entry.version)
    stages = registry.stages(entry.name)
    moves = [each for stage in stages for each in registry.history(entry.name, stage)]
    moves.sort(key=lambda each: each.at)
    if output == "json":
        promotions = [each.document() for each in moves]
        _print({"entry": entry.document(), "signed": content.signature is not None, "promotions": promotions})
        return ExitCode.OK
    lineage, facts = entry.lineage, _facts(entry, content.signature is not None)
    width = max(map(len, facts))
    for label, value in facts.items():
        print(f"{label.ljust(width)}  {value}")
    if moves:
        print()
        print_table(
            ("STAGE", "VERSION", "BEFORE", "WHEN", "BY"),
            [(one.stage, one.version, one.previous or "-", moment(one.at), one.by) for one in moves],
        )
    if lineage.config is not None:
        print(f"\nconfiguration\n{json.dumps(lineage.config, indent=2)}")
    return ExitCode.OK


def _facts(entry: ModelEntry, is_signed: bool) -> dict[str, str]:
    lineage, code = entry.lineage, entry.lineage.code
    model = {} if entry.model is None else {"model": entry.model.architecture, "task": entry.model.task}
    return {
        "name": f"{entry.name} {entry.version}",
        "root": entry.root,
        "logical": entry.logical,
        **model,
        "checkpoint": f"{entry.run}/{entry.checkpoint}, step {entry.step}",
        "size": f"{size(entry.size_bytes)}, {counted(entry.parameters, 'parameter')}",
        "job": f"{lineage.job} (uid {lineage.uid})",
        "parent": lineage.parent or "none, the first of its run",
        "data": f"{lineage.data_fingerprint}, seed {lineage.seed}",
        "framework": entry.framework,
        "code": "not recorded: registered by hand" if code is None else f"capstan {code.package}, {code.image or '-'}",
        "signed": "yes (checked by: capstan model verify --public-key)" if is_signed else "no",
        "registered": f"{moment(entry.registered_at)} by {entry.registered_by}",
        **{label: f"{value:.6g}" for label, value in sorted(entry.metrics.items())},
    }


def promote(registry: Registry, reference: Reference, stage: str, expected: str | None, output: str) -> int:
    """0. Raises as `Registry.promote`."""
    entry = _meant(registry, reference)
    before = registry.newest_promotion(entry.name, stage)
    promotion = registry.promote(entry.name, entry.version, stage, this_user(), expected)
    if output == "json":
        _print(promotion.document())
    else:
        print(_moved(promotion, before))
    return ExitCode.OK


def verify(registry: Registry, reference: Reference | None, public_key: str | None, output: str) -> int:
    """0, or BAD_BYTES. Raises OSError, StoreUnavailable, ConfigError."""
    if reference is not None:
        wanted = [(reference.name, _meant_version(registry, reference))]
    else:
        wanted = [(name, version) for name in registry.names() for version in registry.versions(name)]
    verdicts = [_verdict(registry, name, version, public_key, output) for name, version in wanted]
    bad = sum(verdict["problem"] is not None for verdict in verdicts)
    if output == "json":
        _print({"versions": verdicts, "good": len(verdicts) - bad, "bad": bad})
    elif len(verdicts) != 1:
        print(f"{len(verdicts) - bad} of {counted(len(verdicts), 'version')} are good")
    return BAD_BYTES if bad else ExitCode.OK


def _verdict(registry: Registry, name: str, version: str, public_key: str | None, output: str) -> dict[str, Any]:
    progress, problem, root, read = Progress(f"{name} {version}", 0), None, None, 0

    def begin(checkpoint: OpenCheckpoint) -> None:
        nonlocal progress
        progress = Progress(f"{name} {version}", checkpoint.size)

    def count(read_bytes: int) -> None:
        nonlocal read
        read += read_bytes
        progress.add(read_bytes)

    try:
        entry = registry.entry(name, version)
        root = entry.root
        verify_entry(registry, entry, public_key, begin, count)
    except CorruptCheckpoint as error:
        problem = str(error)
    finally:
        progress.end()
    if output == "table":
        good = f"good  {name} {version}  {root}  {size(read)}"
        print(good if problem is None else f"BAD   {name} {version}: {problem}", flush=True)
    return {"name": name, "version": version, "root": root, "bytesRead": read, "problem": problem}


def _meant(registry: Registry, reference: Reference) -> ModelEntry:
    return registry.entry(reference.name, _meant_version(registry, reference))


def _meant_version(registry: Registry, reference: Reference) -> str:
    """The version that is meant. Raises NotRegistered, and as `Registry.newest_promotion`."""
    name, which = reference.name, reference.which
    if which is not None:
        return which if is_version(which) else registry.promoted(name, which).version
    versions = registry.versions(name)
    if not versions:
        raise NotRegistered(registry.what_there_is(name))
    return versions[0]


def _moved(promotion: Promotion, before: Promotion | None) -> str:
    """`before`: the stage's newest promotion until then."""
    if promotion == before:
        return f"{promotion.name} {promotion.stage} is {promotion.version} already"
    return f"{promotion.name} {promotion.stage} is {promotion.version} (was {promotion.previous or 'nothing'})"


def _print(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))
