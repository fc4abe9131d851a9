"""Packs an earlier release for the tests of upgrades: `python scripts/archive_release.py COMMIT FILE.zip`.

The file holds the operator and the runtime as they were, and the small engine and replica that tests run in pods, all
importable with PYTHONPATH=FILE.zip. Packed again from the same commit, it is the same to the last byte (of its content
and its order; how well it is compressed is zlib's).
"""

import argparse
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOTS = ("operator/", "trainer_images/")
"""Cut off: below them are packages."""
PACKED = (
    "operator/capstan_operator",
    "trainer_images/capstan_runtime",
    "tests/support/faulty_engine.py",
    "tests/support/numpy_engine.py",
    "tests/support/numpy_replica.py",
    "tests/support/numpy_supervisor.py",
    "tests/support/numpy_trainer.py",
    "tests/support/socket_world.py",
    "tests/serving/models.py",
)
LEFT_OUT = (
    "trainer_images/capstan_runtime/bench/",
    "trainer_images/capstan_runtime/deepspeed_trainer/",
    "trainer_images/capstan_runtime/flax_trainer/",
)
"""What the pods of those tests never import."""


def pack(commit: str, target: Path) -> int:
    """The number of files written to `target`. Raises CalledProcessError for what git does not know."""
    command = ["git", "archive", "--format=tar", commit, *PACKED]
    archived = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archived)) as source:
        files = {
            _below_roots(member.name): source.extractfile(member).read()  # type: ignore[union-attr]
            for member in source.getmembers()
            if member.isfile() and member.name.endswith(".py") and not member.name.startswith(LEFT_OUT)
        }
    # A package without an __init__.py is found in a zip only if its folder has an entry.
    folders = {f"{parent}/": b"" for name in files for parent in PurePosixPath(name).parents if parent.name}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for name, content in sorted((files | folders).items()):
            packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, compresslevel=9)
    return len(files)


def _below_roots(path: str) -> str:
    for root in ROOTS:
        path = path.removeprefix(root)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("commit", help="of the release")
    parser.add_argument("file", type=Path, help="the zip to write")
    options = parser.parse_args()
    count = pack(options.commit, options.file)
    print(f"{options.file}: {count} files, {options.file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
