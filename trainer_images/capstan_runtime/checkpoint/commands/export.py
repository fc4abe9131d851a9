"""`convert` and `adopt`: the weights for others, the whole state for another job."""

import json
from pathlib import Path

from capstan_runtime.checkpoint.adopt import adopt, run_of
from capstan_runtime.checkpoint.commands.text import Progress, counted, size
from capstan_runtime.checkpoint.convert import convert
from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.exit_codes import ExitCode


def export(opened: OpenCheckpoint, target: Path, with_optimizer: bool, output: str) -> int:
    """0. Raises as `convert.convert`, and StoreUnavailable."""
    progress = Progress(str(opened.name), opened.size)
    try:
        converted = convert(
            opened.root,
            opened.manifest,
            opened.tensors(),
            target,
            with_optimizer=with_optimizer,
            done=progress.add,
        )
    finally:
        progress.end()
    if output == "json":
        document = {
            "folder": str(converted.folder),
            "root": opened.root,
            "tensors": converted.tensors,
            "bytes": converted.size,
            "files": [{"name": file.name, "bytes": file.size, "digest": file.digest} for file in converted.files],
        }
        print(json.dumps(document, indent=2))
        return ExitCode.OK
    print(f"{converted.folder}: {counted(converted.tensors, 'tensor')}, {size(converted.size)}, every byte verified")
    return ExitCode.OK


def give(opened: OpenCheckpoint, target: Store, signing_key: Path | None, output: str) -> int:
    """0. Raises as `adopt.adopt`."""
    job, run = run_of(target.place)
    progress = Progress(str(opened.name), opened.size)
    try:
        adopted = adopt(opened, target, job, run, signing_key, progress.add)
    finally:
        progress.end()
    if output == "json":
        document = {"place": target.place, "job": job, "run": run, "step": adopted.step, "root": adopted.root}
        print(json.dumps({**document, "logical": adopted.logical, "parent": opened.root}, indent=2))
        return ExitCode.OK
    print(f"{target.place}: step {adopted.step}, {adopted.root}, {size(opened.size)}, every byte verified")
    return ExitCode.OK
