"""The pages that a reader sees, and their examples."""

from __future__ import annotations

from pathlib import Path

from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from tests.docs.console import ConsoleParser

__all__ = ["PAGES", "REPOSITORY", "read_page"]

REPOSITORY = Path(__file__).parents[2]
PAGES = tuple(
    path.relative_to(REPOSITORY).as_posix()
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
)


def read_page(page: str) -> Document:
    """A page with its ``python`` and ``console`` blocks as examples, in their order."""
    return Document.parse(str(REPOSITORY / page), PythonCodeBlockParser(), ConsoleParser())
