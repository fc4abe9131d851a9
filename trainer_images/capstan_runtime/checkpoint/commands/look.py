"""`ls` and `show`: what is there."""

import json
import time

from capstan_runtime.checkpoint.commands.places import Place
from capstan_runtime.checkpoint.commands.survey import Condition, Row, Survey, survey
from capstan_runtime.checkpoint.commands.text import counted, moment, print_table, short, size, span
from capstan_runtime.checkpoint.layout import SIGNATURE, SaveName
from capstan_runtime.checkpoint.manifest import Manifest
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.exit_codes import ExitCode

HEAD = ("STEP", "FENCE", "ROOT", "LOGICAL", "RANKS", "LOSS", "SIZE", "AGE", "CONDITION", "NOTES")


def ls(places: list[Place], output: str) -> int:
    """0, whatever is found: a list of what is bad is still a good list. Raises OSError, StoreUnavailable."""
    found = [survey(place.store) for place in places]
    if places[0].only is not None:
        only = places[0].only
        found = [Survey(each.place, tuple(row for row in each.rows if row.name == only), ()) for each in found]
    if output == "json":
        print(json.dumps({"stores": [each.document() for each in found]}, indent=2))
        return ExitCode.OK
    for number, each in enumerate(found):
        print(f"{chr(10) if number else ''}{each.place}")
        print_table(HEAD, map(_cells, each.rows))
        if each.foreign:
            print(f"not ours, left alone: {', '.join(each.foreign)}")
    return ExitCode.OK


def _cells(row: Row) -> tuple[str, ...]:
    manifest = row.manifest
    notes = [f"verified {span(time.time() - row.verified_at)} ago"] if row.verified_at is not None else []
    notes += ["pinned"] if row.is_pinned else []
    notes += [row.problem] if row.problem is not None else []
    return (
        str(row.name.step),
        str(row.name.fence),
        short(row.root),
        short(manifest.logical if manifest else None),
        str(manifest.world) if manifest else "-",
        f"{manifest.trainer.loss:.4f}" if manifest and manifest.trainer.loss is not None else "-",
        size(row.size),
        span(time.time() - manifest.created_at) if manifest else "-",
        row.condition,
        "; ".join(notes) or "-",
    )


def show(store: Store, name: SaveName, output: str) -> int:
    """Raises CorruptCheckpoint, LaterFormat, OSError, StoreUnavailable."""
    opened = open_checkpoint(store, name)
    manifest, trainer = opened.manifest, opened.manifest.trainer
    told = trainer.model_dump(exclude={"skips"}, exclude_none=True)
    row = next((row for row in survey(store).rows if row.name == name), None)
    is_signed = store.size(f"{name}/{SIGNATURE}") is not None
    if output == "json":
        document = {
            **(row.document() if row else {}),
            "fileBytes": opened.size,
            "signed": is_signed,
            "manifest": manifest.document(),
        }
        print(json.dumps(document, indent=2))
        return ExitCode.OK
    facts = {
        "folder": f"{store.place}/{name}",
        "condition": _condition(row),
        "root": opened.root,
        "logical": manifest.logical,
        "parent": manifest.parent or "none, the first of its run",
        "job": f"{manifest.job} (uid {manifest.run})",
        **_model(manifest),
        "saved by": (
            f"{manifest.framework}, {counted(manifest.world, 'rank')}, fence {manifest.fence}, "
            f"attempt {manifest.attempt}"
        ),
        "saved at": moment(manifest.created_at),
        "signed": f"yes, {SIGNATURE} (checked by: capstan checkpoint verify --public-key)" if is_signed else "no",
        "size": f"{size(opened.size)} in {counted(len(opened.files), 'file')}",
        **{label.replace("_", " "): value for label, value in told.items()},
        "left out": ", ".join(
            f"{counted(skip.count, 'batch', 'batches')} from {skip.first} on" for skip in trainer.skips
        )
        or "no batches",
        **{label: f"{value:.6g}" for label, value in sorted(manifest.metrics.items()) if label != "loss"},
    }
    width = max(map(len, facts))
    for label, value in facts.items():
        print(f"{label.ljust(width)}  {value}")
    print(f"\n{counted(len(manifest.tensors), 'tensor')}")
    for tensor in manifest.tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        print(f"  {tensor.dtype.ljust(4)}  {shape:16}  {tensor.name}")
    return ExitCode.OK


def _model(manifest: Manifest) -> dict[str, str]:
    signature = manifest.signature
    if signature is None:
        return {"model": "not recorded, so it cannot be served (of the user's own code, or saved by an older version)"}
    return {"model": signature.architecture, "task": signature.task}


def _condition(row: Row | None) -> str:
    if row is None:
        return "removed just now"
    proven = "" if row.verified_at is None else f", verified at {moment(row.verified_at)}"
    pinned = ", pinned" if row.is_pinned else ""
    problem = "" if row.problem is None or row.condition == Condition.COMMITTED else f": {row.problem}"
    return f"{row.condition}{proven}{pinned}{problem}"
