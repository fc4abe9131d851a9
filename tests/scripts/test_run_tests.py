"""`make test` runs folders of tests side by side, leaves none out, and is red when any of them is."""

import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path("scripts/run_tests.py").absolute()
MEETS = """
import time
from pathlib import Path

def test_that_it_is_not_alone():
    Path("{here}").touch()
    give_up_at = time.monotonic() + 60
    while not Path("{there}").exists():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
"""


def folder(root: Path, name: str, text: str) -> None:
    (root / "tests" / name).mkdir(parents=True)
    (root / "tests" / name / "test_it.py").write_text(text)


def run_tests(root: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=root, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def outcomes(output: str) -> dict[str, str]:
    """By folder, what was said of it in the end."""
    lines = [line.removeprefix("== ").partition(": ") for line in output.splitlines() if line.startswith("== ")]
    return {name: said.partition(" after")[0] for name, _, said in lines}


def test_two_folders_run_side_by_side_and_one_that_leaves_all_out_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = full\naddopts = -q -m 'not full'\n")
    folder(tmp_path, "b", MEETS.format(here="b", there="numerics"))
    folder(tmp_path, "numerics", MEETS.format(here="numerics", there="b"))
    folder(tmp_path, "c", "import pytest\n\n@pytest.mark.full\ndef test_long(): pass\n")
    (tmp_path / "tests" / "support").mkdir()
    status, output = run_tests(tmp_path)
    assert outcomes(output) == dict.fromkeys(["tests/numerics", "tests/b", "tests/c", "all"], "passed"), output
    assert output.index("== tests/numerics: begins") < output.index("== tests/b: begins"), "the longest first"
    assert status == 0


def test_any_failure_is_shown_and_is_the_answer(tmp_path: Path) -> None:
    folder(tmp_path, "a", "def test_good(): pass\n")
    folder(tmp_path, "b", "def test_bad(): assert 1 == 2\n")
    folder(tmp_path, "c", "def test_good(): pass\n")
    status, output = run_tests(tmp_path, "-q", "--jobs", "1")
    assert outcomes(output) == {
        "tests/a": "passed",
        "tests/b": "FAILED with status 1",
        "tests/c": "passed",
        "all": "FAILED in tests/b",
    }
    assert "assert 1 == 2" in output
    assert status == 1


def test_tests_that_are_in_no_folder_are_not_left_out_in_silence(tmp_path: Path) -> None:
    folder(tmp_path, "a", "def test_good(): pass\n")
    (tmp_path / "tests" / "test_stray.py").touch()
    status, output = run_tests(tmp_path)
    assert status == 1
    assert "tests/test_stray.py: put it into a folder, or nobody runs it" in output


def test_who_ends_it_ends_all_of_it(tmp_path: Path) -> None:
    folder(tmp_path, "a", "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    process = subprocess.Popen([sys.executable, str(SCRIPT)], cwd=tmp_path, stdout=subprocess.PIPE)
    give_up_at = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_it_runs_every_folder_of_this_repository() -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from run_tests import LONGEST, folders_of
    finally:
        sys.path.remove(str(SCRIPT.parent))
    names = [each.name for each in folders_of(Path("tests"))]
    assert set(LONGEST) <= set(names)
    assert set(names) == {path.parts[1] for path in Path("tests").rglob("test_*.py")}
