"""Embedding a folder of images: resumable, with bounded memory, over files that may be broken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from tcl_core.archive.base import Base
from tcl_core.archive.pixels import square
from tcl_core.archive.store import About, ArchiveFolder, Entry, is_archive
from tcl_core.devices import autocast, to_device
from tcl_core.errors import ImageError, SettingsError
from tcl_core.images import DEFAULT_MAX_PIXELS, load_image
from tcl_core.jobs.inputs import ImageList

__all__ = ["BuildSummary", "build_archive", "check_archive_folder"]

PART = 512
"""Images of a part: what is lost at most when the work is stopped."""


@dataclass
class BuildSummary:
    """What a build did.

    Attributes:
        total: images of the archive afterwards.
        added: images that were embedded now.
        failed: reasons by file name.
    """

    total: int = 0
    added: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def check_archive_folder(folder: Path) -> bool:
    """Whether there is an archive to be continued.

    Raises:
        SettingsError: there is something else.
    """
    if is_archive(folder):
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(f"--out {folder}: contains other files; choose a new or empty folder")
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder}: is not a folder; choose a new folder")
    return False


def build_archive(
    base: Base,
    images: ImageList,
    folder: Path,
    *,
    batch_size: int = 8,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_image: Callable[[str, str | None], None] | None = None,
) -> BuildSummary:
    """Embed the images that an archive does not hold yet, or that changed since.

    Args:
        base: the CLIP.
        images: all images of the archive.
        folder: of the archive; made if need be, continued if it is there.
        batch_size: images that go through the network together.
        max_pixels: larger images are refused.
        on_image: called with each image's name when it is done, and with the reason if it failed; what it raises ends
            the work, of which all complete parts stay.

    Raises:
        SettingsError: the folder belongs to other weights or another root, or cannot be written to.
    """
    about = About(
        model=base.name,
        sha256=base.model.weights_sha256,
        embed_dim=base.method.clip.embed_dim,
        side=base.embedded_side,
        root=str(images.root),
    )
    archive = ArchiveFolder(folder) if check_archive_folder(folder) else ArchiveFolder.create(folder, about)
    if archive.about != about:
        differ = [name for name in ("model", "sha256", "root") if getattr(archive.about, name) != getattr(about, name)]
        raise SettingsError(
            f"--out {folder}: is an archive of another {' and '.join(differ) or 'kind'} ({archive.about.model}, "
            f"{archive.about.root}); choose another folder"
        )
    summary = BuildSummary()
    waiting = (entry for entry in _entries(images) if archive.entries.get(entry.name) != entry)
    while part := list(islice(waiting, PART)):
        done: list[Entry] = []
        rows: list[Tensor] = []
        for entries, pixels in _batches(base, images.root, part, batch_size, max_pixels, summary, on_image):
            with torch.no_grad(), autocast(base.model.device, base.model.precision):
                rows.append(base.method.embed_images(to_device(pixels, base.model.device)).cpu())
            done += entries
            for entry in entries:
                if on_image is not None:
                    on_image(entry.name, None)
        if done:
            archive.add(done, torch.cat(rows))
            summary.added += len(done)
    summary.total = len(archive)
    return summary


def _entries(images: ImageList) -> Iterator[Entry]:
    for name in images.file_names:
        try:
            status = os.stat(images.root / name)
        except OSError:
            # Whoever reads it says what is wrong.
            yield Entry(name, -1, -1)
        else:
            yield Entry(name, status.st_size, status.st_mtime_ns)


def _batches(
    base: Base,
    root: Path,
    part: Sequence[Entry],
    batch_size: int,
    max_pixels: int,
    summary: BuildSummary,
    on_image: Callable[[str, str | None], None] | None,
) -> Iterator[tuple[list[Entry], Tensor]]:
    """Images that can be read, and their pixels ``[B, 3, S, S]``."""
    entries: list[Entry] = []
    pixels: list[Tensor] = []
    for entry in part:
        try:
            image = load_image(root / entry.name, max_pixels=max_pixels)
        except ImageError as error:
            summary.failed[entry.name] = str(error)
            if on_image is not None:
                on_image(entry.name, str(error))
            continue
        entries.append(entry)
        pixels.append(square(image, base.embedded_side, base.model.preprocess))
        if len(entries) == batch_size:
            yield entries, torch.stack(pixels)
            entries, pixels = [], []
    if entries:
        yield entries, torch.stack(pixels)
