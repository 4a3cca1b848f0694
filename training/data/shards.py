"""Image-text shards: tar files as img2dataset writes them, read through an index of our own.

A shard is walked through once. What is kept is where each image and caption lies, so that any sample of any shard can
be read alone, in any order, by any process. The index is kept beside other caches and made anew when a shard's size or
modification time has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import ImageError, SettingsError, reason_of
from tcl_core.images import DEFAULT_MAX_PIXELS, image_size
from tcl_core.models.paths import home_folder, write_atomically
from training.data.source import DataReport, Pair, Source
from training.processes import in_order

__all__ = ["Filters", "Shard", "ShardSource", "index_shard"]

_VERSION = 1
_IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
_ENTRY = np.dtype([("image", "<i8"), ("caption", "<i8"), ("image_size", "<i4"), ("caption_size", "<i4")])
_OPEN_FILES = 32
_BLOCK = tarfile.BLOCKSIZE
_AGAIN = "with a duplicate name"


@dataclass(frozen=True)
class Filters:
    """Which images are left out.

    Attributes:
        min_side: shortest side, in pixels.
        max_aspect: longest side over shortest side.
        max_pixels: width times height.
    """

    min_side: int = 16
    max_aspect: float = 20.0
    max_pixels: int = DEFAULT_MAX_PIXELS


@dataclass(frozen=True)
class Shard:
    """An indexed shard.

    Attributes:
        path: of the tar file.
        size: of the file in bytes, when it was indexed.
        modified: its modification time in nanoseconds, likewise.
        entries: offsets and sizes of the samples' images and captions, in the order of the images in the file.
        dropped: number of samples that were left out, by reason.
        damage: what is wrong with the file; empty if it is whole.
    """

    path: Path
    size: int
    modified: int
    entries: NDArray[np.void]
    dropped: Mapping[str, int]
    damage: str


def index_shard(path: Path, filters: Filters) -> Shard:
    """Walk through a shard.

    Samples are put together by their whole name without the last ending, wherever their members lie. Of a name that
    occurs twice the first image and caption count. A file that ends too soon gives what is before its end.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    images: dict[str, tuple[int, int]] = {}
    captions: dict[str, tuple[int, int]] = {}
    dropped: dict[str, int] = {}
    with path.open("rb") as file:
        damage = _walk(file, status.st_size, images, captions, dropped)
        entries = []
        for name, (start, size) in images.items():
            place = captions.pop(name, None)
            reason = _reason(file, (start, size), place, filters)
            if reason:
                dropped[reason] = dropped.get(reason, 0) + 1
            elif place is not None:
                entries.append((start, place[0], size, place[1]))
    if captions:
        dropped["without an image"] = len(captions)
    if not images and not captions and not damage:
        damage = "has no samples"
    found = np.array(entries, dtype=_ENTRY)
    return Shard(path, status.st_size, status.st_mtime_ns, found, dropped, damage)


def _walk(
    file: BinaryIO,
    length: int,
    images: dict[str, tuple[int, int]],
    captions: dict[str, tuple[int, int]],
    dropped: dict[str, int],
) -> str:
    """Note where members lie; returns what is wrong with the file."""
    if not length:
        return "is empty"
    seen = end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                seen, end = seen + 1, member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                # A list of millions of members would be kept otherwise.
                archive.members = []  # type: ignore[attr-defined]
                if end > length:
                    return f"is truncated after {seen - 1} members, within {member.name}"
                if not member.isfile():
                    continue
                name, _, ending = member.name.rpartition(".")
                ending = ending.lower()
                kind = images if ending in _IMAGE_ENDINGS else captions if ending == "txt" else None
                if kind is None:
                    continue
                if name not in kind:
                    kind[name] = (member.offset_data, member.size)
                elif kind is images:
                    dropped[_AGAIN] = dropped.get(_AGAIN, 0) + 1
    except tarfile.TarError as error:
        return f"is damaged after {seen} members ({error})" if seen else "is not a tar file"
    # The reader takes anything that is no header for the end.
    file.seek(end)
    mark = file.read(2 * _BLOCK)
    whole = len(mark) == 2 * _BLOCK and not mark.strip(b"\0")
    return "" if whole else f"is damaged after {seen} members (no end-of-archive marker)"


def _reason(file: BinaryIO, image: tuple[int, int], caption: tuple[int, int] | None, filters: Filters) -> str:
    """Why a sample is left out; empty if it is not."""
    if caption is None:
        return "without a caption"
    file.seek(caption[0])
    try:
        text = file.read(caption[1]).decode("utf-8")
    except UnicodeDecodeError:
        return "with a caption that is not UTF-8"
    if not text.strip():
        return "with an empty caption"
    file.seek(image[0])
    try:
        height, width = image_size(file.read(image[1]))
    except ImageError:
        return "with a file that is not an image"
    short, long = sorted((height, width))
    if short < filters.min_side:
        return "with too short a side"
    if long > filters.max_aspect * short:
        return "with an extreme aspect ratio"
    return "with too many pixels" if height * width > filters.max_pixels else ""


class ShardSource(Source):
    """All samples of some shards.

    Args:
        paths: tar files; their order does not matter.
        filters: which images are left out.
        folder: where indexes are kept; a folder beside downloads by default.
        workers: processes that index shards which are new.
        progress: called with the shards done and their number.

    Raises:
        SettingsError: there are no shards, or one cannot be read.
        WeightsError: the index cannot be written.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        filters: Filters | None = None,
        folder: Path | None = None,
        workers: int = 1,
        progress: Callable[[int, int], object] | None = None,
    ):
        if not paths:
            raise SettingsError("there are no shards; pass a folder with tar files")
        self._filters = filters or Filters()
        self._folder = folder or home_folder() / "shards"
        self.shards = self._indexed(sorted(paths, key=lambda path: (path.name, str(path))), workers, progress)
        self.groups = [len(shard.entries) for shard in self.shards]
        self._ends = np.cumsum(self.groups)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._process = os.getpid()
        self.report = DataReport(pairs=sum(self.groups), files=len(self.shards))
        for shard in self.shards:
            damaged = {str(shard.path): shard.damage} if shard.damage else {}
            self.report.add(DataReport(dropped=dict(shard.dropped), damaged=damaged))

    def identity(self) -> str:
        """Names and numbers of samples of all shards, hashed."""
        text = json.dumps([[shard.path.name, shard.size, len(shard.entries)] for shard in self.shards])
        return "shards:" + hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self, index: int) -> Pair:
        """The sample of a number."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.shards[number]
        entry = shard.entries[index - (int(self._ends[number - 1]) if number else 0)]
        handle = self._open(number)
        image = _read_at(handle, int(entry["image_size"]), int(entry["image"]))
        caption = _read_at(handle, int(entry["caption_size"]), int(entry["caption"]))
        return Pair(image, caption.decode("utf-8"), f"{shard.path} at byte {int(entry['image'])}")

    def _open(self, number: int) -> int:
        if self._process != os.getpid():
            # A forked process must not close what its parent still reads, and reads the same with handles of its own.
            self._files, self._process = OrderedDict(), os.getpid()
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        shard = self.shards[number]
        handle = os.open(shard.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        status = os.fstat(handle)
        if (status.st_size, status.st_mtime_ns) != (shard.size, shard.modified):
            os.close(handle)
            raise SettingsError(f"{shard.path}: was replaced during training; run the same command again")
        self._files[number] = handle
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return handle

    def _indexed(
        self, paths: Sequence[Path], workers: int, progress: Callable[[int, int], object] | None
    ) -> list[Shard]:
        found = {path: self._cached(path) for path in paths}
        missing = [path for path, shard in found.items() if shard is None]
        done = len(paths) - len(missing)
        with closing(_index_all(missing, self._filters, workers)) as shards:
            for shard in shards:
                self._keep(shard)
                # Read back, so that millions of entries lie in the file's memory instead of this process'.
                found[shard.path] = self._cached(shard.path) or shard
                done += 1
                if progress is not None:
                    progress(done, len(paths))
        return [shard for shard in found.values() if shard is not None]

    def _place(self, path: Path) -> Path:
        key = json.dumps([_VERSION, str(path.resolve()), asdict(self._filters)])
        return self._folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def _cached(self, path: Path) -> Shard | None:
        place = self._place(path)
        try:
            status = path.stat()
        except OSError as error:
            raise SettingsError(
                f"{path}: cannot be read: {reason_of(error)}; check the path and permissions"
            ) from error
        try:
            header = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
            if [header["size"], header["modified"]] != [status.st_size, status.st_mtime_ns]:
                return None
            count = int(header["entries"])
            # An empty file cannot be mapped.
            entries = np.memmap(place.with_suffix(".bin"), _ENTRY, "r") if count else np.array([], _ENTRY)
            if len(entries) != count:
                return None
            return Shard(path, header["size"], header["modified"], entries, header["dropped"], header["damage"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, shard: Shard) -> None:
        place = self._place(shard.path)
        header = {
            "path": str(shard.path),
            "size": shard.size,
            "modified": shard.modified,
            "entries": len(shard.entries),
            "dropped": dict(shard.dropped),
            "damage": shard.damage,
        }
        write_atomically(place.with_suffix(".bin"), shard.entries.tobytes())
        # Last, because it says that the other is whole.
        write_atomically(place.with_suffix(".json"), json.dumps(header).encode())


def _read_at(handle: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(handle, size, offset)
    # Windows; every process has handles of its own.
    os.lseek(handle, offset, os.SEEK_SET)
    return os.read(handle, size)


def _index(path: Path, filters: Filters) -> Shard:
    try:
        return index_shard(path, filters)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {reason_of(error)}; make it readable, or leave it out") from error


def _index_all(paths: Sequence[Path], filters: Filters, workers: int) -> Generator[Shard, None, None]:
    """One after the other, as soon as they are ready, so that an interruption keeps what was done."""
    processes = min(workers, len(paths))
    return in_order(partial(_index, filters=filters), paths, processes if processes > 1 else 0)
