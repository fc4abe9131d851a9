"""`capstan checkpoint ls|show|verify URI`: what a store holds, and whether it is intact."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from capstan_runtime.checkpoint.layout import COMMIT, QUARANTINED, SaveName
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint, read_manifest
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable

_DEEPEST = 8
"""Folders below the URI that `ls` looks into; a store is at most <mount>/<namespace>/<job>/<uid> deep."""
_PROGRESS_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the three commands. `run` takes what the parser then makes."""
    commands = parser.add_subparsers(dest="checkpoint_command", required=True, metavar="ls|show|verify")
    texts = {
        "ls": "list the checkpoints in a folder and all folders below it",
        "show": "show one checkpoint: who saved it, its state and its tensors",
        "verify": "read every byte of one checkpoint, or of all below a folder, and compare digests",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("uri", metavar="URI", help="a path, or file:///path")
        command.add_argument("--output", choices=["text", "json"], default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    """0; 65 when something does not verify; 1 when there is nothing to look at."""
    try:
        folder = _folder_of(args.uri)
        if args.checkpoint_command == "show":
            return _show(folder, args.output)
        found = list(_find(folder, _DEEPEST))
        if not found:
            print(f"no checkpoint in {folder} or the {_DEEPEST} levels of folders below it", file=sys.stderr)
            return ExitCode.APPLICATION
        return _list(found, args.output) if args.checkpoint_command == "ls" else _verify(found, args.output)
    except (ConfigError, CorruptCheckpoint, StoreUnavailable) as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _folder_of(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or (parts.scheme == "file" and parts.netloc not in ("", "localhost")):
        raise ConfigError(f"URI: {uri} is not supported; give a path or file:///path")
    folder = Path(unquote(parts.path) if parts.scheme else uri)
    if not folder.is_dir():
        raise ConfigError(f"URI: {folder} is not a folder; give a store, a checkpoint or a folder above them")
    return folder


def _find(folder: Path, depth: int) -> Iterator[Path]:
    """Folders of saves at or below `folder`, committed or not."""
    if SaveName.parse(folder.name) is not None:
        yield folder
        return
    for each in sorted(folder.iterdir()) if depth else []:
        if each.is_dir() and not each.is_symlink():
            yield from _find(each, depth - 1)


@dataclass(frozen=True, slots=True)
class _Row:
    """One checkpoint in a list; None where the manifest could not be read."""

    state: str
    """Committed, Torn, Quarantined or Corrupt."""
    step: int
    fence: int
    created_at: float | None
    world: int | None
    size: int
    loss: float | None
    root: str | None
    path: str
    problem: str | None

    def document(self) -> dict[str, Any]:
        names = {"created_at": "createdAt", "size": "bytes"}
        return {names.get(name, name): getattr(self, name) for name in self.__slots__}


def _row(folder: Path) -> _Row | None:
    """None when the checkpoint is being removed at this moment."""
    name = SaveName.parse(folder.name)
    assert name is not None, "only folders of saves are listed"
    was_committed = (folder / COMMIT).exists()
    try:
        row = _inspected(folder, name)
    except FileNotFoundError:
        return None
    return None if was_committed and not (folder / COMMIT).exists() else row


def _inspected(folder: Path, name: SaveName) -> _Row:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if not (folder / COMMIT).exists():
        return _Row("Torn", name.step, name.fence, None, None, size, None, None, str(folder), "was never committed")
    try:
        root, manifest = read_manifest(folder)
    except CorruptCheckpoint as error:
        return _Row("Corrupt", name.step, name.fence, None, None, size, None, None, str(folder), str(error))
    state = "Quarantined" if (folder / QUARANTINED).exists() else "Committed"
    loss, world = manifest.trainer.loss, manifest.world
    return _Row(state, name.step, name.fence, manifest.created_at, world, size, loss, root, str(folder), None)


def _list(folders: list[Path], output: str) -> int:
    rows = [row for row in map(_row, folders) if row is not None]
    if output == "json":
        print(json.dumps([row.document() for row in rows], indent=2))
        return ExitCode.OK
    cells = [("STEP", "FENCE", "RANKS", "LOSS", "SIZE", "SAVED", "STATE", "ROOT", "PATH")]
    for row in rows:
        cells.append(
            (
                str(row.step),
                str(row.fence),
                "-" if row.world is None else str(row.world),
                "-" if row.loss is None else f"{row.loss:.4f}",
                _size(row.size),
                "-" if row.created_at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.created_at)),
                row.state,
                "-" if row.root is None else row.root[:19],
                row.path,
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    return ExitCode.OK


def _size(count: int) -> str:
    """
    >>> [_size(count) for count in (17, 2_340, 14_200_000, 1_120_000_000_000)]
    ['17 B', '2.34 KB', '14.2 MB', '1,120 GB']
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.3g} {unit}" if count < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count} B"


def _show(folder: Path, output: str) -> int:
    opened = open_checkpoint(folder)
    manifest = opened.manifest
    if output == "json":
        print(json.dumps({"root": opened.root, "bytes": opened.size, "manifest": manifest.document()}, indent=2))
        return ExitCode.OK
    facts = {
        "root": opened.root,
        "parent": manifest.parent or "none, the first of its run",
        "job": f"{manifest.job} (uid {manifest.run})",
        "saved by": f"{manifest.framework}, {manifest.world} ranks, fence {manifest.fence}, attempt {manifest.attempt}",
        "saved at": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.created_at)),
        "size": f"{_size(opened.size)} in {len(opened.files)} files",
        **{name.replace("_", " "): value for name, value in manifest.trainer.model_dump().items()},
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {value}")
    print(f"\n{len(manifest.tensors)} tensors")
    for tensor in manifest.tensors:
        print(f"  {tensor.dtype.ljust(4)}  {' x '.join(map(str, tensor.shape)) or 'scalar':16}  {tensor.name}")
    return ExitCode.OK


def _verify(folders: list[Path], output: str) -> int:
    """Every committed checkpoint, all bytes. What was never committed is nothing to verify."""
    results = []
    for folder in folders:
        if (folder / COMMIT).exists() and (result := _verified(folder, show=output == "text")) is not None:
            results.append(result)
    if output == "json":
        print(json.dumps(results, indent=2))
    bad = [each for each in results if each["problem"]]
    if output == "text":
        print(f"{len(results) - len(bad)} of {len(results)} checkpoints verified")
    return ExitCode.CORRUPT_CHECKPOINT if bad or not results else ExitCode.OK


def _verified(folder: Path, show: bool) -> dict[str, Any] | None:
    """None when the checkpoint was removed meanwhile: its run keeps only the newest."""
    result: dict[str, Any] = {"path": str(folder), "root": None, "bytes": None, "problem": None}
    started = time.monotonic()
    try:
        opened = open_checkpoint(folder)
        result |= {"root": opened.root, "bytes": opened.size}
        _verify_files(opened, show)
    except CorruptCheckpoint as error:
        if not (folder / COMMIT).exists():
            return None
        result["problem"] = str(error)
    if show and result["problem"]:
        print(f"BAD  {folder}: {result['problem']}")
    elif show:
        seconds = time.monotonic() - started
        print(f"ok   {folder}  {result['root']}  {_size(result['bytes'])} in {seconds:.1f} s")
    return result


def _verify_files(opened: OpenCheckpoint, show: bool) -> None:
    spoke_at, done = time.monotonic(), 0
    for file in opened.files:
        file.verify()
        done += file.size
        if show and time.monotonic() - spoke_at > _PROGRESS_SECONDS:
            print(f"     {opened.folder.name}: {_size(done)} of {_size(opened.size)}", file=sys.stderr, flush=True)
            spoke_at = time.monotonic()
