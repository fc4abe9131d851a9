"""Reads the Markdown of this repository as its readers do: headings, links, blocks of code, commands."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_IGNORED = frozenset({"build", "dist", "node_modules"})
PAGES = sorted(
    page
    for page in Path().rglob("*.md")
    if not any(part.startswith(".") or part in _IGNORED for part in page.parts) and page.name != "report.md"
)
"""All but the reports of Benchmarks, which are made by the product."""

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)((?: {4}.*\n|\n(?= {4}))+)")
_CODE = re.compile(r"`+[^`]*`+")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_TARGET = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:href|src|srcset)=\"([^\"\s]+)\"")
_PROMPT = re.compile(r"^\$ ")
_COMMENT = re.compile(r"(?:^|\s)#.*$")


def anchors(page: Path) -> set[str]:
    """What a link may have behind `#`, as GitHub makes it of the page's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", page.read_text())):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("\\", "")
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(anchor if not seen[anchor] else f"{anchor}-{seen[anchor]}")
        seen[anchor] += 1
    return found


def links(page: Path) -> list[str]:
    """Targets of the page's links and pictures that stay in this repository."""
    text = _CODE.sub("", _INDENTED.sub("\n", _FENCE.sub("", page.read_text())))
    targets = [one or other for one, other in _TARGET.findall(text)]
    return [target for target in targets if "://" not in target and not target.startswith("mailto:")]


def dead_links(page: Path) -> list[str]:
    """Those of `links` that lead to no file, or to no heading of it."""
    return [target for target in links(page) if not _leads_somewhere(page, target)]


def _leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = unquote(target).partition("#")
    file = page.parent / path if path else page
    if not file.exists():
        return False
    return not anchor or (file.suffix == ".md" and anchor in anchors(file))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each block of code; an indented one is of language sh."""
    yield from _blocks(page.read_text())


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    for _, language, code in _FENCE.findall(text):
        yield language, code
    for code in _INDENTED.findall(_FENCE.sub("", text)):
        yield "sh", re.sub(r"^ {4}", "", code, flags=re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """Words of each command that the page shows: in blocks of language console lines that begin with `$ `, in others of
    a shell all. A line that ends with a backslash goes on, and what follows `|`, `&&` or `;` is a command, too."""
    for language, code in blocks(page):
        if language not in ("sh", "bash", "console"):
            continue
        for line in code.replace("\\\n", " ").splitlines():
            if language == "console" and not _PROMPT.match(line):
                continue
            yield from _split(_COMMENT.sub("", _PROMPT.sub("", line)))


def sessions(page: Path, heading: str | None = None) -> Iterator[tuple[str, str]]:
    """(command, what it prints) of the blocks of language console, in order: of the page, or below one heading."""
    text = page.read_text()
    if heading is not None:
        text = re.split(r"\n#+ ", text.split(f"# {heading}\n")[1])[0]
    for language, code in _blocks(text):
        if language == "console":
            for entry in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
                command, _, output = entry.partition("\n")
                yield command, output


def _split(line: str) -> Iterator[list[str]]:
    for part in re.split(r"\s(?:\||&&|\|\|)\s|;\s", line):
        try:
            words = shlex.split(part)
        except ValueError:
            continue  # a part of a text that goes on in the next line
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words
