"""A preview of a job as static pages that work offline, written image by image.

Every image becomes a small copy in ``img/`` and one line in ``cards.jsonl``; the pages are put together from those
lines at the end. So memory does not grow with the number of images but for their names, a run that was killed leaves
nothing half-written that the next could trip over, and a resumed run fills in what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import SettingsError, TclError
from tcl_core.preview.card import Outlines, Overlay, Thumbnail
from tcl_core.preview.drawing import draw_unlabeled, muted_color
from tcl_core.preview.markup import page_name, render_page
from tcl_core.types import Region, Unlabeled
from tcl_core.vocabulary import Vocabulary
from tcl_core.vocabulary.colors import Color

__all__ = ["CARDS_FILE", "MAX_SIDE", "PreviewWriter", "check_preview_folder", "is_preview_folder"]

MAX_SIDE = 800
"""Longer side of the copies of images, in pixels."""
CARDS_FILE = "cards.jsonl"
"""File in a preview's folder that holds one line for each image."""
_INDEX = page_name(0)
_STEM = 16
_FORMAT = {"preview": "tcl-annotate", "format": 1}


def check_preview_folder(folder: Path) -> bool:
    """Whether ``folder``, which is made if need be, already holds a preview.

    Raises:
        SettingsError: if it is not a folder, cannot be written to, or holds something that should not be mixed with a
            preview.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--preview {folder}: is not a folder; choose a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not any(folder.iterdir()):
            return False
    except OSError as error:
        raise _unwritable(folder, error) from error
    if is_preview_folder(folder):
        return True
    raise SettingsError(f"--preview {folder}: contains other files; choose a new or empty folder")


def is_preview_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a preview was written into ``folder``; its images are then copies, not images to label."""
    try:
        with open(os.path.join(folder, CARDS_FILE), "rb") as lines:
            header = json.loads(lines.readline())
            return isinstance(header, dict) and header.items() >= _FORMAT.items()
    except (OSError, ValueError):
        return False


class PreviewWriter:
    """Writes the preview of a job into a folder.

    Args:
        folder: made if need be; see :func:`check_preview_folder`.
        vocabulary: whose labels make the legend.
        keep: go on with the cards that are there instead of beginning anew.
        page_size: cards on one page.
        max_side: longer side of the images' copies in pixels.
        job: any text that tells jobs of different results apart; only cards of the same job are kept.

    Raises:
        SettingsError: if the folder holds something else, cannot be written to, or if cards are to be kept that are
            another job's or damaged.
    """

    def __init__(
        self,
        folder: Path,
        vocabulary: Vocabulary,
        keep: bool = False,
        page_size: int = 100,
        max_side: int = MAX_SIDE,
        job: str = "",
    ) -> None:
        self._folder = folder
        self._vocabulary = vocabulary
        self._page_size = page_size
        self.max_side = max_side
        self._header = {**_FORMAT, "job": job}
        there = check_preview_folder(folder)
        if there and keep:
            self._check_cards()
        try:
            (folder / "img").mkdir(parents=True, exist_ok=True)
            if there and not keep:
                self._remove_old()
            self._cards: IO[bytes] = open(folder / CARDS_FILE, "a+b")
            self._drop_torn_line()
            self._name_colors: dict[str, Color] = {}
            for _, card in self._lines():
                self._color_names(entry["name"] for entry in card.get("unlabeled", ()))
        except OSError as error:
            raise _unwritable(folder, error) from error

    def __enter__(self) -> PreviewWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file of cards; the pages are only written by :meth:`finish`."""
        self._cards.close()

    def names(self) -> set[str]:
        """File names of the images that have a card, without those that failed."""
        last = {card["name"]: "failed" in card for _, card in self._lines()}
        return {name for name, failed in last.items() if not failed}

    def add_image(
        self,
        file_name: str,
        image: NDArray[np.uint8],
        regions: Sequence[Region],
        unlabeled: Unlabeled | None = None,
        *,
        groups: Unlabeled | None = None,
        column: str = "",
        note: str = "",
    ) -> None:
        """Add the card of one image; a later card of the same name and column replaces it.

        Args:
            file_name: as in the COCO file.
            image: uint8 ``[H, W, 3]``.
            regions: its regions, with polygons; there may be none.
            unlabeled: background names that won some of its pixels, shown as a layer that is off at first.
            groups: groups that have no label, shown as another layer that is off at first.
            column: which of several cards of the image this is, such as the name of a model.
            note: a line below the card.

        Raises:
            TclError: if the folder cannot be written to.
        """
        small = Thumbnail.of(image, self.max_side)
        self.add_card(
            file_name,
            small,
            Outlines.of(regions, small.scale),
            None if unlabeled is None else Overlay.of(unlabeled, small.size),
            groups=None if groups is None else Overlay.of(groups, small.size),
            column=column,
            note=note,
        )

    def add_card(
        self,
        file_name: str,
        small: Thumbnail,
        outlines: Outlines,
        unlabeled: Overlay | None = None,
        *,
        groups: Overlay | None = None,
        column: str = "",
        note: str = "",
    ) -> None:
        """`add_image` of what was drawn already, perhaps by another process.

        Args:
            file_name: as in the COCO file.
            small: of `max_side`.
            outlines: at its scale.
            unlabeled: at its size.
            groups: likewise.
            column: see `add_image`.
            note: likewise.

        Raises:
            TclError: if the folder cannot be written to.
        """
        # The same name in every run, whatever other images there are, and safe on every file system.
        stem = hashlib.sha256(file_name.encode("utf-8", "surrogatepass")).hexdigest()[:_STEM]
        name = f"{stem}.{'png' if small.is_tiny else 'jpg'}"
        overlay, grouped = (self._folder / "img" / f"{stem}-{kind}.png" for kind in ("names", "groups"))
        shares = {} if unlabeled is None else unlabeled.shares
        try:
            (self._folder / "img" / name).write_bytes(small.data)
            if unlabeled is not None and shares:
                self._color_names(shares)
                draw_unlabeled(unlabeled.sample, self._name_colors, small.size).save(overlay, compress_level=6)
            else:
                # An earlier card of the same image may have left one.
                overlay.unlink(missing_ok=True)
            if groups is not None and groups.sample.names:
                colors = {name: muted_color(number) for number, name in enumerate(groups.sample.names)}
                draw_unlabeled(groups.sample, colors, small.size).save(grouped, compress_level=6)
            else:
                grouped.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        card = {
            "name": file_name,
            "size": list(small.original),
            "image": name,
            "shown": list(small.size),
            "tiny": small.is_tiny,
            "counts": outlines.counts,
            "svg": outlines.svg,
        }
        if column:
            card |= {"column": column, "note": note}
        if groups is not None and groups.sample.names:
            card["groups"] = grouped.name
        if shares:
            card["overlay"] = overlay.name
            card["unlabeled"] = [
                {"name": name, "share": share, "color": "#{:02x}{:02x}{:02x}".format(*self._name_colors[name])}
                for name, share in shares.items()
            ]
        self._append(card)

    def add_failure(self, file_name: str, reason: str) -> None:
        """Add the card of an image that could not be labeled.

        Raises:
            TclError: if the folder cannot be written to.
        """
        self._append({"name": file_name, "failed": reason})

    def finish(
        self, title: str, settings: Mapping[str, str], order: Sequence[str], columns: Sequence[str] = ()
    ) -> Path:
        """Write the pages from the cards there are; may be called again after more cards.

        Args:
            title: heading of the page.
            settings: names and values that are printed under the images.
            order: file names of the job's images; where some have no card yet the page says so.
            columns: of `add_image`, in the order in which they stand side by side.

        Returns:
            Path of the first page.

        Raises:
            TclError: if the folder cannot be written to.
        """
        offsets = {(card["name"], card.get("column", "")): offset for offset, card in self._lines()}
        wanted = [(name, column) for name in order for column in columns or ("",)]
        present = array("q", (offsets[key] for key in wanted if key in offsets))
        counts: Counter[int] = Counter()
        kinds: Counter[str] = Counter()
        any_unlabeled = any_groups = False
        for card in self._read(present):
            any_unlabeled |= "unlabeled" in card
            any_groups |= "groups" in card
            counts.update({int(label_id): number for label_id, number in card.get("counts", {}).items()})
            kinds[_kind(card)] += 1
        page_size = max(1, self._page_size // max(1, len(columns))) * max(1, len(columns))
        pages = max(1, -(-len(present) // page_size))
        try:
            for page in range(pages):
                begin = page * page_size
                cards = list(self._read(present[begin : begin + page_size]))
                for card in cards:
                    card["kind"] = _kind(card)
                text = render_page(
                    title,
                    cards,
                    self._vocabulary,
                    counts,
                    kinds,
                    settings,
                    len(wanted),
                    page,
                    pages,
                    any_unlabeled,
                    columns,
                    any_groups,
                )
                _write(self._folder / page_name(page), text)
            for stale in self._folder.glob("page-*.html"):
                if stale.name not in {page_name(page) for page in range(pages)}:
                    stale.unlink()
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        return self._folder / _INDEX

    def _color_names(self, names: Iterable[str]) -> None:
        # In the order in which they appear, so that a name has one color in the whole job, also when it is resumed.
        for name in names:
            self._name_colors.setdefault(name, muted_color(len(self._name_colors)))

    def _append(self, card: Mapping[str, Any]) -> None:
        try:
            # One write for one line, so that a kill tears at most the last.
            self._cards.write(json.dumps(card).encode("ascii") + b"\n")
            self._cards.flush()
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self._cards.flush()
        with open(self._folder / CARDS_FILE, "rb") as lines:
            offset = len(lines.readline())
            for number, line in enumerate(lines, start=2):
                yield offset, self._card(line, number)
                offset += len(line)

    def _read(self, offsets: Sequence[int]) -> Iterator[dict[str, Any]]:
        with open(self._folder / CARDS_FILE, "rb") as lines:
            for offset in offsets:
                lines.seek(offset)
                yield json.loads(lines.readline())

    def _check_cards(self) -> None:
        with open(self._folder / CARDS_FILE, "rb") as lines:
            if json.loads(lines.readline()) != self._header:
                raise SettingsError(
                    f"--preview {self._folder}: contains the preview of a job with other labels or settings; choose "
                    "another folder or delete this one"
                )
            for number, line in enumerate(lines, start=2):
                if line.endswith(b"\n"):
                    self._card(line, number)

    def _card(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            card = json.loads(line)
            if not (isinstance(card["name"], str) and ("failed" in card or {"image", "counts", "svg"} <= card.keys())):
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError):
            raise SettingsError(
                f"--preview {self._folder / CARDS_FILE}: line {number} is damaged; delete the folder, and --resume "
                "writes the preview again"
            ) from None
        return dict(card)

    def _drop_torn_line(self) -> None:
        size = self._cards.seek(0, os.SEEK_END)
        if size == 0:
            self._cards.write(json.dumps(self._header).encode("ascii") + b"\n")
            self._cards.flush()
            return
        self._cards.seek(0)
        whole = 0
        for line in self._cards:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
        self._cards.truncate(whole)

    def _remove_old(self) -> None:
        # Only what a preview wrote: whatever else the user keeps there stays.
        stem = "?" * _STEM
        images = (f"img/{stem}.jpg", f"img/{stem}.png", f"img/{stem}-names.png", f"img/{stem}-groups.png")
        for pattern in (CARDS_FILE, _INDEX, "page-*.html", *images):
            for path in self._folder.glob(pattern):
                path.unlink()


def _kind(card: Mapping[str, Any]) -> str:
    if "failed" in card:
        return "failed"
    return "found" if card["counts"] else "empty"


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    # A name that is not valid Unicode can be shown only approximately.
    part.write_text(text, encoding="utf-8", errors="replace")
    os.replace(part, path)


def _unwritable(folder: Path, error: OSError) -> TclError:
    return SettingsError(
        f"--preview {folder}: cannot be written ({error.strerror or error}); free some space or choose another folder"
    )
