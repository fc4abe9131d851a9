"""A newer operator finds in the same spec the same run, the same pods and the same plan as the one before it.

They are on status as digests: another one would say of every job that its spec was changed, and of every Benchmark that
its plan was.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.releases import EARLIER, REPOSITORY, THIS, Release

EXAMPLES = sorted((REPOSITORY / "examples").glob("*/*.yaml"))


def told(release: Release) -> dict[str, object]:
    program = Path(__file__).with_name("told.py")
    found: dict[str, object] = json.loads(release.run_python(str(program), *map(str, EXAMPLES)))
    return found


def test_every_example_is_the_same_to_this_tree_as_to_the_release_before_it() -> None:
    before = told(EARLIER)
    kinds = {name.split()[1] for name in before}
    assert kinds == {"TrainingJob", "InferenceService", "Benchmark"}
    assert {name: value for name, value in told(THIS).items() if name in before} == before
