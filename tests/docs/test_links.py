"""Links between pages lead somewhere."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, REPOSITORY

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^(```+).*?^\1", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The addresses of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", _FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_page(page: str) -> None:
    source = REPOSITORY / page
    for target in _LINK.findall(_FENCED.sub("", source.read_text(encoding="utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = (source.parent / name).resolve() if name else source
        assert path.exists(), f"{page}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page}: {target} is no heading there"
