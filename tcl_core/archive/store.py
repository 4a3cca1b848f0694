"""An archive on disk: a folder with a description and parts of embeddings, each written when it is complete.

The images stay where they are; the archive knows their paths relative to a root, their sizes in bytes and the times of
their last change. A later part replaces what an earlier one says of the same image.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tcl_core.archive.pixels import square
from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import ImageError, SettingsError, WeightsError
from tcl_core.images import load_image
from tcl_core.models.metadata import Preprocess
from tcl_core.models.paths import write_atomically
from tcl_core.validation import Text, WholeNumber, checked, validated

__all__ = ["ABOUT_FILE", "About", "ArchiveFolder", "Entry", "is_archive"]

ABOUT_FILE = "archive.json"
_FORMAT: dict[str, Any] = {"archive": "tcl-annotate", "format": 1}
_CACHE_BYTES = 256 << 20


@checked("archive", SettingsError)
class About:
    """What all embeddings of an archive have in common.

    Attributes:
        model: whose CLIP embedded the images, by name.
        sha256: of its weights.
        embed_dim: dimension E.
        side: side in pixels of the squares that were embedded.
        root: absolute folder that file names are relative to.
    """

    model: Text
    sha256: Text
    embed_dim: Annotated[WholeNumber, Field(ge=1)]
    side: Annotated[WholeNumber, Field(ge=1)]
    root: Text
    archive: Literal["tcl-annotate"] = "tcl-annotate"
    format: Literal[1] = 1


@dataclass(frozen=True)
class Entry:
    """An image of an archive.

    Attributes:
        name: path relative to the root, with ``/`` between the parts.
        size: of the file in bytes.
        changed: time of the file's last change in nanoseconds.
    """

    name: str
    size: int
    changed: int


def is_archive(folder: Path) -> bool:
    """Whether an archive was written into a folder."""
    try:
        entry = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(entry, dict) and entry.get("archive") == _FORMAT["archive"]


class ArchiveFolder:
    """An archive that can be asked, and added to.

    Args:
        folder: with the archive.
        cache_bytes: bound of the embeddings that are kept in memory; all others are read again for every word.

    Attributes:
        passed_over: why images that `nearest` would have given could not be, by their names.

    Raises:
        SettingsError: there is no archive, or it is damaged.
    """

    def __init__(self, folder: Path, cache_bytes: int = _CACHE_BYTES) -> None:
        self.folder = folder
        try:
            entry = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(
                f"{folder}: is no archive ({error.strerror or error}); make one with 'tcl-annotate archive build'"
            ) from error
        except ValueError as error:
            raise SettingsError(
                f"{folder / ABOUT_FILE}: is not valid JSON; delete the archive and build it again"
            ) from error
        self.about = validated(About, entry if isinstance(entry, dict) else {}, str(folder / ABOUT_FILE), SettingsError)
        self._parts = sorted(folder.glob("part-*.safetensors"))
        self._rows: dict[str, tuple[int, int]] = {}
        self._entries: dict[str, Entry] = {}
        for part, path in enumerate(self._parts):
            for row, known in enumerate(_read_entries(path)):
                self._rows[known.name] = (part, row)
                self._entries[known.name] = known
        self._cache: ByteBoundedCache[int, Tensor] = ByteBoundedCache(cache_bytes, lambda x: x.nbytes)
        self.passed_over: dict[str, str] = {}
        self._readable: set[str] = set()
        self._side = self.about.side
        self._preprocess: Preprocess | None = None

    @classmethod
    def create(cls, folder: Path, about: About) -> ArchiveFolder:
        """Make an archive without images.

        Raises:
            SettingsError: the folder cannot be written to.
        """
        text = json.dumps({name: getattr(about, name) for name in about.__dataclass_fields__}, indent=1) + "\n"
        try:
            write_atomically(folder / ABOUT_FILE, text.encode("utf-8"))
        except WeightsError as error:
            raise SettingsError(str(error)) from error
        return cls(folder)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def entries(self) -> dict[str, Entry]:
        """The images by name."""
        return self._entries

    # -- adding --------------------------------------------------------------------------------------------------

    def add(self, entries: Sequence[Entry], embeddings: Tensor) -> None:
        """Write a part.

        Args:
            entries: n images.
            embeddings: float32 ``[n, E]``, L2-normalized.

        Raises:
            SettingsError: it cannot be written.
        """
        number = 1 + max((int(path.stem[5:]) for path in self._parts), default=-1)
        path = self.folder / f"part-{number:06d}.safetensors"
        listed = json.dumps([[entry.name, entry.size, entry.changed] for entry in entries])
        try:
            write_atomically(path, save({"embeddings": embeddings.cpu().contiguous()}, metadata={"images": listed}))
        except WeightsError as error:
            raise SettingsError(f"{error}; free some space and run the command again, which continues") from error
        self._parts.append(path)
        for row, entry in enumerate(entries):
            self._rows[entry.name] = (len(self._parts) - 1, row)
            self._entries[entry.name] = entry

    # -- asking --------------------------------------------------------------------------------------------------

    def look_at(self, side: int, preprocess: Preprocess) -> ArchiveFolder:
        """Say how images are prepared that `pixels` gives.

        Args:
            side: of the squares in pixels.
            preprocess: mean and standard deviation.
        """
        self._side, self._preprocess = side, preprocess
        return self

    def similarities(self, text: Tensor) -> tuple[list[str], Tensor]:
        """Names of all images, and their cosines float32 ``[N]`` with a text ``[E]``."""
        names: list[str] = []
        values: list[Tensor] = []
        current: dict[int, list[tuple[int, str]]] = {}
        for name, (part, row) in self._rows.items():
            current.setdefault(part, []).append((row, name))
        for part, embeddings in self._read():
            rows = current.get(part, [])
            if rows:
                names += [name for _, name in rows]
                values.append(embeddings[[row for row, _ in rows]] @ text.cpu().float())
        return names, torch.cat(values) if values else torch.zeros(0)

    def nearest(self, text: Tensor, k: int, without: Collection[str]) -> list[tuple[str, float]]:
        """The k images nearest to a text; see `tcl_core.methods.reco.fitting.Archive`.

        Images whose files were deleted or damaged since are passed over, see `passed_over`.
        """
        names, values = self.similarities(text)
        found: list[tuple[str, float]] = []
        for place in values.argsort(descending=True, stable=True).tolist():
            if len(found) == k:
                break
            if names[place] not in without and self._can_read(names[place]):
                found.append((names[place], float(values[place])))
        return found

    def _can_read(self, name: str) -> bool:
        if name not in self._readable and name not in self.passed_over:
            try:
                load_image(self.path(name))
                self._readable.add(name)
            except ImageError as error:
                self.passed_over[name] = str(error)
        return name in self._readable

    def embeddings(self, names: Sequence[str]) -> Tensor:
        """Embeddings float32 ``[k, E]`` of images of the archive."""
        wanted = [self._rows[name] for name in names]
        found: dict[tuple[int, int], Tensor] = {}
        for part, embeddings in self._read({part for part, _ in wanted}):
            found |= {(part, row): embeddings[row] for other, row in wanted if other == part}
        return torch.stack([found[row] for row in wanted])

    def path(self, name: str) -> Path:
        """Where an image lies."""
        return Path(self.about.root) / name

    def pixels(self, name: str) -> Tensor:
        """The square in the middle of an image, float32 ``[3, S, S]``, normalized; see `look_at`.

        Raises:
            ImageError: the file cannot be read any more.
        """
        if self._preprocess is None:
            raise RuntimeError("look_at comes first")
        return square(load_image(self.path(name)), self._side, self._preprocess)

    def _read(self, parts: Collection[int] | None = None) -> Iterator[tuple[int, Tensor]]:
        for part, path in enumerate(self._parts):
            if parts is not None and part not in parts:
                continue
            found = self._cache.get(part)
            if found is None:
                found = _read_embeddings(path, self.about.embed_dim)
                self._cache.put(part, found)
            yield part, found


def _read_entries(path: Path) -> list[Entry]:
    try:
        with safe_open(path, framework="pt") as handle:
            listed = json.loads((handle.metadata() or {})["images"])
            count = handle.get_slice("embeddings").get_shape()[0]
        entries = [Entry(str(name), int(size), int(changed)) for name, size, changed in listed]
        if len(entries) != count or any(_leads_out(entry.name) for entry in entries):
            raise ValueError
        return entries
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise SettingsError(
            f"{path}: is damaged; delete this file and run 'tcl-annotate archive build' again"
        ) from error


def _leads_out(name: str) -> bool:
    """Whether a name of a file that came from elsewhere leaves the archive's root."""
    path = PurePath(name)
    return not path.parts or bool(path.anchor) or ".." in path.parts or "\0" in name


def _read_embeddings(path: Path, width: int) -> Tensor:
    try:
        with safe_open(path, framework="pt") as handle:
            found: Tensor = handle.get_tensor("embeddings").float()
    except (OSError, SafetensorError) as error:
        raise SettingsError(
            f"{path}: cannot be read; delete this file and run 'tcl-annotate archive build' again"
        ) from error
    if found.ndim != 2 or found.shape[1] != width or not bool(found.isfinite().all()):
        raise SettingsError(f"{path}: holds no embeddings of this archive; delete this file and build it again")
    return found
