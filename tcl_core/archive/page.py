"""A page of the images that were retrieved for each word, with their seeds, on which wrong ones are struck out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from tcl_core.archive.pixels import middle_square
from tcl_core.archive.references import FoundReferences
from tcl_core.archive.store import ArchiveFolder
from tcl_core.errors import SettingsError
from tcl_core.images import load_image

__all__ = ["check_page_folder", "write_page"]

_MARK = "references-page.json"
_SIDE = 144


def check_page_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something else, or a page that is not to be replaced.

    Raises:
        SettingsError: with the remedy.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--page {folder}: is not a folder; choose a new folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / _MARK).is_file():
        raise SettingsError(f"--page {folder}: contains other files; choose a new or empty folder")
    if not overwrite:
        raise SettingsError(f"--page {folder}: already exists; add --overwrite, or choose another folder")


def write_page(
    folder: Path, archive: ArchiveFolder, found: FoundReferences, struck: Mapping[str, Collection[str]]
) -> Path:
    """Write the page and small copies of the images.

    Args:
        folder: made if need be; see `check_page_folder`.
        archive: with the images.
        found: what was retrieved.
        struck: file names that were struck out before, by prompt; they stay struck out.

    Returns:
        Path of the page.

    Raises:
        SettingsError: the folder cannot be written to.
        ImageError: an image cannot be read any more.
    """
    words = []
    copies: dict[str, str] = {}
    try:
        (folder / "img").mkdir(parents=True, exist_ok=True)
        (folder / _MARK).write_text("{}\n", encoding="utf-8")
        for old in (folder / "img").glob("*.jpg"):
            old.unlink()
        for word in found.fitting.words:
            images = []
            for image in word.images:
                if image.name not in copies:
                    copies[image.name] = _copy(folder, archive, image.name)
                shares = {"top": 100 * image.seed[0], "left": 100 * image.seed[1]}
                images.append(
                    {"name": image.name, "file": copies[image.name], "similarity": image.similarity, **shares}
                )
            words.append(
                {
                    "name": word.name,
                    "context": word.context,
                    "last": word.last_similarity,
                    "doubt": found.doubtful.get(word.name, ""),
                    "images": images,
                }
            )
        page = folder / "index.html"
        text = (
            _environment()
            .get_template("references.html.j2")
            .render(
                words=words,
                settings=found.settings,
                struck=json.dumps({name: sorted(names) for name, names in struck.items() if names}),
                side=_SIDE,
                style=_asset("references.css"),
                script=_asset("references.js"),
            )
        )
        part = page.with_name(page.name + ".part")
        # A name that is not valid Unicode can be shown only approximately.
        part.write_text(text, encoding="utf-8", errors="replace")
        os.replace(part, page)
    except OSError as error:
        raise SettingsError(
            f"--page {folder}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error
    return page


def _copy(folder: Path, archive: ArchiveFolder, name: str) -> str:
    """The square that was looked at, as a small file of a name that is safe everywhere."""
    copy = f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.jpg"
    pixels = middle_square(load_image(archive.path(name)), 2 * _SIDE)
    Image.fromarray(pixels).save(folder / "img" / copy, quality=82)
    return copy


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("tcl_core.archive"), autoescape=True, undefined=StrictUndefined, auto_reload=False
    )


def _asset(name: str) -> str:
    return (resources.files("tcl_core.archive") / "assets" / name).read_text(encoding="utf-8")
