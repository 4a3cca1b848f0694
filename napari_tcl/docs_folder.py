"""Where the pages of the documentation lie: beside an installed plugin, or in a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["docs_page"]

_HERE = Path(__file__).resolve().parent
# The first is made when the wheel is built.
_FOLDERS = (_HERE / "docs", _HERE.parent / "docs")


def docs_page(name: str = "napari.md") -> Path | None:
    """The path of a page, ``None`` where this installation has no documentation."""
    return next((folder / name for folder in _FOLDERS if (folder / name).is_file()), None)
