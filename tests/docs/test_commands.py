"""What the pages tell their readers to type, and to apply, is what there is."""

from __future__ import annotations

import argparse
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts.command_docs import commands as capstan_commands

from tests.support.manifests import SPECS, refusals
from tests.support.pages import PAGES, blocks, commands

TARGETS = frozenset(re.findall(r"^([a-z][a-z0-9-]*):", Path("Makefile").read_text(), re.MULTILINE))
CAPSTAN = dict(capstan_commands())
OURS = re.compile(r"(?:examples|charts|docs|scripts|crds|benchmarks|tests|operator|trainer_images)/[\w./-]*")
"""A path in this repository."""


def _shown(page: Path, program: str) -> list[list[str]]:
    return [words[1:] for words in commands(page) if words[0].rpartition("/")[2] == program]


def _mentioned(page: Path) -> list[list[str]]:
    """Words behind `capstan` in the page's sentences."""
    return [text.split() for text in re.findall(r"`capstan ([^`]+)`", page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_make_is_asked_for_targets_that_it_has(page: Path) -> None:
    asked = {word for words in _shown(page, "make") for word in words if re.fullmatch(r"[a-z][a-z0-9-]*", word)}
    mentioned = set(re.findall(r"`make ([a-z][a-z0-9-]*)`", page.read_text()))
    assert (asked | mentioned) - TARGETS == set()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_capstan_is_called_with_commands_and_options_that_it_has(page: Path) -> None:
    assert [problem for words in _shown(page, "capstan") for problem in _problems(words)] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_sentences_name_commands_and_options_that_capstan_has(page: Path) -> None:
    whole = [words for words in _mentioned(page) if "COMMAND" not in words and not _is_a_group(words)]
    assert [problem for words in whole for problem in _problems(words)] == []


def _is_a_group(words: list[str]) -> bool:
    return any(name.startswith(f"{' '.join(['capstan', *words])} ") for name in CAPSTAN)


def _problems(words: list[str]) -> list[str]:
    """`a|b` stands for several commands."""
    for position, word in enumerate(words):
        if "|" in word and not word.startswith("-"):
            return [
                one for name in word.split("|") for one in _problems([*words[:position], name, *words[position + 1 :]])
            ]
    shown = " ".join(["capstan", *words])
    if words[:1] in (["--help"], ["--version"]):
        return []
    found = [name for name in CAPSTAN if f"{shown} ".startswith(f"{name} ")]
    if not found:
        return [f"{shown}: no such command"]
    options = [option for action in CAPSTAN[found[0]]._actions for option in action.option_strings]
    return [
        f"{shown}: no option {word}" for word in words if word.startswith("-") and word.partition("=")[0] not in options
    ]


def test_what_is_not_there_is_found() -> None:
    assert _problems(["local", "up|down", "--home", "x"]) == []
    assert _problems(["local", "up|stop"]) == ["capstan local stop: no such command"]
    assert _problems(["checkpoint", "gc", "STORE", "--keep", "2"]) == [
        "capstan checkpoint gc STORE --keep 2: no option --keep"
    ]
    assert _problems(["data", "inspect", "-f", "job.yaml"]) == ["capstan data inspect -f job.yaml: no option -f"]
    assert (_is_a_group(["data"]), _is_a_group(["data", "inspect"])) == (True, False)


def test_every_command_of_capstan_is_in_the_reference_and_told_of_in_a_page() -> None:
    pages = [page for page in PAGES if page != Path("docs/reference/commands.md")]
    told = " ".join(page.read_text() for page in pages)
    groups = {name.split()[1] for name in CAPSTAN}
    assert sorted(group for group in groups if f"capstan {group}" not in told) == []
    for name, parser in CAPSTAN.items():
        assert isinstance(parser, argparse.ArgumentParser)
        assert f"## {name}\n" in Path("docs/reference/commands.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_that_commands_name_exist(page: Path) -> None:
    named = {
        word
        for words in commands(page)
        if words[0] in ("kubectl", "helm", "capstan", "python", "bash", "curl") or words[0].startswith("scripts/")
        for before, word in pairwise(["", *words])
        if before != "-o" and OURS.fullmatch(word.removeprefix("@"))
    }
    missing = [word for word in named if not Path(word.removeprefix("@")).exists()]
    # Beside a package's README its paths are that folder's.
    assert sorted(word for word in missing if not (page.parent / word).exists()) == []


def _objects(page: Path) -> list[dict[str, Any]]:
    found = [document for language, code in blocks(page) if language == "yaml" for document in yaml.safe_load_all(code)]
    found += [
        document
        for language, code in blocks(page)
        if language in ("sh", "console")
        for text in re.findall(r"<<'?EOF'?\n(.*?)^EOF$", code, re.MULTILINE | re.DOTALL)
        for document in yaml.safe_load_all(text)
    ]
    return [one for one in found if isinstance(one, dict) and one.get("kind") in SPECS and "spec" in one]


@pytest.mark.parametrize("page", [page for page in PAGES if _objects(page)], ids=str)
def test_the_objects_that_a_page_shows_are_accepted(page: Path) -> None:
    for document in _objects(page):
        assert refusals(document) == []
        SPECS[document["kind"]].parse(document["spec"])


def test_the_front_page_shows_one_object_of_each_kind() -> None:
    assert [document["kind"] for document in _objects(Path("README.md"))] == [
        "TrainingJob",
        "InferenceService",
        "Benchmark",
    ]
