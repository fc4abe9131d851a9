"""Names for the contents of files."""

from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

WHOLE_FILE_BYTES = 64 << 20
"""Up to here a file is read in full: 64 MiB take about 0.1 s."""
_BLOCKS = 64
_BLOCK_BYTES = 64 << 10


def fingerprint_of(*facts: object) -> str:
    """`blake3:<hex>` of the facts' text: bytes as they are, anything else as `repr`."""
    digest = blake3()
    for fact in facts:
        encoded = fact if isinstance(fact, bytes) else repr(fact).encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return f"blake3:{digest.hexdigest()}"


def fingerprint_of_file(path: Path, *facts: object) -> str:
    """Names the contents of one file: all of them up to 64 MiB, size and 64 evenly spaced blocks beyond.

    Where the file lies does not matter, so a copy has the same name.
    """
    size = path.stat().st_size
    if size <= WHOLE_FILE_BYTES:
        return fingerprint_of(*facts, path.read_bytes())
    digest = blake3()
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return fingerprint_of(*facts, size, digest.digest())


def fingerprint_of_folder(folder: Path, *facts: object, alive: Callable[[], None] = lambda: None) -> str:
    """Names the contents of a folder: name and size of every file, and the beginning of at most 64, evenly spaced.
    `alive` is called for each."""
    files = []
    for file in folder.rglob("*"):
        alive()
        if file.is_file():
            files.append((file, file.stat().st_size))
    listing = [(file.relative_to(folder).as_posix(), size) for file, size in sorted(files)]
    return fingerprint_of_files(folder, listing, *facts)


def fingerprint_of_files(folder: Path, listing: Sequence[tuple[str, int]], *facts: object) -> str:
    """The same of some files of a folder: (path in it, size) of each, in order."""
    digest = blake3()
    for number in range(min(_BLOCKS, len(listing))):
        path, _ = listing[number * len(listing) // min(_BLOCKS, len(listing))]
        with (folder / path).open("rb") as file:
            digest.update(file.read(_BLOCK_BYTES))
    return fingerprint_of(*facts, list(listing), digest.digest())
