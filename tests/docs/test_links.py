"""Every link between the pages of this repository leads to a file, and to a heading of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pages import PAGES, anchors, dead_links, links


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_every_page_of_docs_is_reached_from_its_index() -> None:
    index = Path("docs/README.md")
    reached = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    pages = {page.resolve() for page in PAGES if page.parts[0] == "docs" and page != index}
    assert sorted(page.name for page in pages - reached) == []


def test_a_link_to_no_file_or_to_no_heading_is_dead(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One `two`, three\n\n## Same\n\n## Same\n\n```\n# no heading\n```\n")
    page.write_text(
        "[a](other.md) [b](other.md#one-two-three) [c](other.md#same-1) [d](https://x.dev/y) `[e](in-code.md)`\n\n"
        "[f](absent.md) [g](other.md#no-heading) [h](#absent)\n\n    [i](in-a-block.md)\n"
    )
    assert anchors(tmp_path / "other.md") == {"one-two-three", "same", "same-1"}
    assert dead_links(page) == ["absent.md", "other.md#no-heading", "#absent"]
