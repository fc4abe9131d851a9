"""Folders of token files: what is in them, and how they are written so that a killed writer can go on.

<folder>/
  PLAN.json            what is being made, written first: only who makes the same goes on
  tokens-00000.bin     token ids, little-endian, no header; under another name until all of it is there
  tokenizer.json       what made them of text, where that is not its bytes
  TOKENS.json          written last: what is in the folder, with the digest of each file
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from blake3 import blake3
from pydantic import Field, ValidationError

from capstan_runtime.contract.base import Record
from capstan_runtime.data.spec import Array

MANIFEST = "TOKENS.json"
PLAN = "PLAN.json"
TOKENIZER = "tokenizer.json"


class Unusable(Exception):
    """What was given cannot be worked with. One line naming it, the rule and the fix."""


class TokenFile(Record):
    """One file of a folder."""

    name: str
    tokens: Annotated[int, Field(ge=0)]
    digest: str
    """`blake3:<hex>` of its bytes."""


class TokenFolder(Record):
    """What TOKENS.json says."""

    version: Literal[1] = 1
    dtype: Literal["uint16", "uint32"]
    vocabulary: Annotated[int, Field(ge=2)]
    end_of_text: Annotated[int, Field(ge=0)]
    """The token after each document."""
    documents: Annotated[int, Field(ge=0)]
    sequence_length: Annotated[int, Field(ge=2)] | None = None
    """Every file holds a whole number of samples of so many tokens, and one token. None: it is not packed."""
    files: list[TokenFile]


def dtype_for(vocabulary: int) -> Literal["uint16", "uint32"]:
    """The smaller type that has a number for each token."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def read_folder(folder: Path) -> TokenFolder | None:
    """None: there is no TOKENS.json. Raises Unusable for one that is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return TokenFolder.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Unusable(f"{path}: {where}: {first['msg']}; write the folder anew") from error


def begin(folder: Path, plan: dict[str, object]) -> None:
    """From now on `folder` is for what `plan` says. Raises Unusable if it is for something else, or cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"--to: {folder} cannot be made a folder: {error.strerror}; choose another") from error
    text = json.dumps(plan, sort_keys=True, indent=1)
    path = folder / PLAN
    if path.is_file():
        if path.read_text() != text:
            raise Unusable(f"{folder}: holds what was made of other text, or in another way; choose another folder")
        return
    if any(file.name != f"{PLAN}.part" for file in folder.iterdir()):
        raise Unusable(f"{folder}: is not empty, and nothing in it says what it is; choose another folder")
    write_whole(path, [text.encode()])


def write_files(
    folder: Path, parts: Iterable[Callable[[], Iterator[Array]]], dtype: str, tell: Callable[[str], None]
) -> list[TokenFile]:
    """One file for each of `parts`, which yields its tokens piece by piece. A file that is there is whole, and is kept:
    the same plan gives the same bytes."""
    files = []
    for number, part in enumerate(parts):
        path = folder / f"tokens-{number:05d}.bin"
        if not path.is_file():
            write_whole(
                path, (np.ascontiguousarray(piece, f"<{dtype[0]}{int(dtype[4:]) // 8}").data for piece in part())
            )
            tell(f"{path.name} written")
        files.append(_described(path, dtype))
    return files


def finish(folder: Path, made: TokenFolder) -> None:
    """Says what is in the folder."""
    write_whole(folder / MANIFEST, [json.dumps(made.document(), indent=1).encode()])


def write_whole(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """The file has its name only once all its bytes are on disk."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def mapped(path: Path, dtype: str) -> Array:
    """The tokens of a file, read as they are used. Raises Unusable for a file that ends inside one."""
    kind = np.dtype(dtype).newbyteorder("<")
    size = path.stat().st_size
    if size % kind.itemsize:
        raise Unusable(f"{path}: has {size} bytes, no multiple of the {kind.itemsize} of a {dtype}; write it again")
    return np.memmap(path, kind, "r") if size else np.zeros(0, kind)


def _described(path: Path, dtype: str) -> TokenFile:
    digest = blake3(max_threads=blake3.AUTO)
    digest.update_mmap(path)
    size = path.stat().st_size
    return TokenFile(name=path.name, tokens=size // np.dtype(dtype).itemsize, digest=f"blake3:{digest.hexdigest()}")
