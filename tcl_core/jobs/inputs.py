"""From what the user names (files, folders, globs) to the list of images of a job.

An image's **file name** in the COCO file is its path relative to the job's **root**, with ``/`` between the parts. The
root is the deepest folder that holds every input, a folder itself included, unless the user sets it; so images of
the same name in several folders never collide, and one folder gives the names that are seen inside it.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcl_core.errors import ImageError, SettingsError
from tcl_core.images import HEIF_EXTENSIONS, HEIF_REMEDY, SUPPORTED_EXTENSIONS, is_remote, is_supported
from tcl_core.preview.page import CARDS_FILE, is_preview_folder

__all__ = ["ImageList", "find_images", "left_out_message", "no_images"]

_ENDINGS_SHOWN = 5


@dataclass(frozen=True)
class ImageList:
    """The images of a job, in the order in which they are worked on.

    Attributes:
        root: absolute folder that the file names are relative to.
        file_names: one to an image, relative to ``root``, with ``/`` between the parts; none twice.
        left_out: how many files of the folders are no images by their ending (lower case), the most frequent first;
            hidden files and what was excluded do not count.
    """

    root: Path
    file_names: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.file_names)

    def path(self, index: int) -> Path:
        """Absolute path of image ``index`` (counted from 0)."""
        return self.root / self.file_names[index]

    def local_paths(self) -> Iterator[Path]:
        """Paths of the images, which no output may replace."""
        return map(self.path, range(len(self)))

    def left_out_message(self) -> str:
        """What became of the files that are no images; empty where there are none.

        >>> ImageList(Path("/"), (), {".txt": 3}).left_out_message()
        '3 files left out: .txt'
        >>> ImageList(Path("/"), (), {".txt": 2, "": 1}).left_out_message()
        '3 files left out: .txt (2), without an extension (1)'
        """
        return left_out_message(self.left_out)


def find_images(inputs: Sequence[str], root: Path | None = None, exclude: Sequence[Path] = ()) -> ImageList:
    """List the images that ``inputs`` name, each once.

    A file is taken whatever it is called; a folder is searched through all its sub-folders, in the order of names, for
    files that end like images (hidden ones, whose name begins with a dot, and the copies in the folder of a preview
    are left out), and what ends otherwise is counted; a pattern with ``*``, ``?``, ``[...]`` or ``**`` is expanded here
    too, so that it may be quoted.

    Args:
        inputs: what the user named, in order.
        root: folder that file names are relative to; by default the deepest folder that holds all inputs.
        exclude: folders and files that are never taken from a folder (the job's own results).

    Raises:
        ImageError: an input does not exist, a pattern matches nothing, or there is no image in any of them.
        SettingsError: an image lies outside ``root``, or ``root`` is not a folder.
    """
    left_out = frozenset(_absolute(str(path)) for path in exclude)
    found: dict[str, None] = {}
    others: dict[str, None] = {}
    anchors: list[str] = []
    for named in inputs:
        for match in _expand(named):
            path = _absolute(match)
            if os.path.isdir(path):
                anchors.append(path)
                for file in _walk(path, left_out):
                    (found if is_supported(file) else others)[file] = None
            else:
                anchors.append(os.path.dirname(path))
                found[path] = None
    # A file that is named by itself is taken, although the walk through its folder passed it over.
    counts = Counter(os.path.splitext(path)[1].lower() for path in others if path not in found)
    endings = dict(counts.most_common())
    if not found:
        raise no_images(inputs, endings)
    base = _root(root, anchors)
    return ImageList(Path(base), tuple(_relative(path, base) for path in found), endings)


def no_images(inputs: Sequence[str], endings: Mapping[str, int]) -> ImageError:
    """What to raise where inputs hold no image, but perhaps files of other endings."""
    known = ", ".join(SUPPORTED_EXTENSIONS)
    message = f"{', '.join(inputs)}: no images found; they are told by their endings {known}"
    return ImageError(f"{message}; {left_out_message(endings)}" if endings else message)


def left_out_message(endings: Mapping[str, int]) -> str:
    """See `ImageList.left_out_message`."""
    if not endings:
        return ""
    shown = {ending or "without an extension": count for ending, count in list(endings.items())[:_ENDINGS_SHOWN]}
    total = sum(endings.values())
    text = next(iter(shown)) if len(endings) == 1 else ", ".join(f"{name} ({n:,})" for name, n in shown.items())
    more = ", and others" if len(endings) > _ENDINGS_SHOWN else ""
    remedy = f"; for HEIF images, {HEIF_REMEDY}" if set(endings) & set(HEIF_EXTENSIONS) else ""
    return f"{total:,} file{'' if total == 1 else 's'} left out: {text}{more}{remedy}"


def _expand(named: str) -> list[str]:
    if not named:
        raise ImageError("an input is empty; give an image, a folder or a pattern")
    if os.path.lexists(named):
        return [named]
    if is_remote(named):
        raise ImageError(f"{named}: only prelabel reads from object storage; copy the images to a folder")
    if not glob.has_magic(named):
        raise ImageError(f"{named}: no such file or folder; check the path")
    matches = sorted(glob.glob(os.path.expanduser(named), recursive=True))
    if not matches:
        raise ImageError(f"{named}: the pattern matches no files; check it, and quote it if the shell would expand it")
    return matches


def _walk(folder: str, left_out: frozenset[str]) -> Iterator[str]:
    visited: set[tuple[int, int]] = set()
    # Linked folders are entered, as data sets are often put together from links; a loop of links is entered once.
    for current, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in visited or (CARDS_FILE in files and is_preview_folder(current)):
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.join(current, name) not in left_out
        )
        for name in sorted(files):
            path = os.path.join(current, name)
            if not name.startswith(".") and path not in left_out:
                yield path


def _unreadable(error: OSError) -> None:
    raise ImageError(f"{error.filename}: the folder cannot be read ({error.strerror}); change its permissions")


def _root(root: Path | None, anchors: list[str]) -> str:
    if root is not None:
        if not root.is_dir():
            raise SettingsError(f"--root {root}: is not a folder; give the folder that file names are relative to")
        return _absolute(str(root))
    try:
        return os.path.commonpath(anchors)
    except ValueError as error:
        raise SettingsError("the inputs are on different drives; run the command once per drive") from error


def _relative(path: str, root: str) -> str:
    if path != root and os.path.commonpath([path, root]) != root:
        raise SettingsError(f"{path}: is outside --root {root}; give a folder that contains every input")
    return Path(os.path.relpath(path, root)).as_posix()


def _absolute(path: str) -> str:
    # Not resolved: the name the user sees is a link's own, not that of what it points to.
    return os.path.abspath(path)
