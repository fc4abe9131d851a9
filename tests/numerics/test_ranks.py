"""What the ranks of a test leave behind: nothing."""

import os
import tempfile
from pathlib import Path

from tests.support.ranks import run_ranks


def folders(rank: int, world: int, coordinator: str) -> tuple[str, list[Path]]:
    """Where this rank's JAX keeps what it compiles, and the folders for that which the rank itself has made."""
    made = Path(tempfile.gettempdir()).glob(f"capstan-compiled-{os.getpid()}-*")
    return os.environ["JAX_COMPILATION_CACHE_DIR"], list(made)


def test_the_ranks_share_one_folder_and_make_none_of_their_own() -> None:
    (first, by_first), (second, by_second) = run_ranks(folders, 2)
    assert (by_first, by_second) == ([], [])
    assert first == second
    assert Path(first).name.startswith(f"capstan-compiled-{os.getpid()}-")
