"""Writing a COCO file image by image, in constant memory, so that a run can be interrupted and resumed.

Results go to a journal next to the output (``FILE.json.journal``, one JSON line for each image). The COCO file
itself is put together from the journal at the end, or when the run is interrupted, in a temporary file that replaces
the output at once.

Two runs over the same images end with the same bytes, whether one was interrupted or not: ids are given when the
file is put together, images come in the order of the input, and nothing in the file is taken from the clock (COCO's
``date_created`` is therefore left out).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tcl_core.errors import CocoError
from tcl_core.export.coco.names import is_text, printable
from tcl_core.prelabel.resume import check_same_run, journal_header, lines_of_finished

if TYPE_CHECKING:
    from tcl_core.vocabulary import Vocabulary

__all__ = ["CocoJournal", "ImageResult", "coco_file_name", "journal_path", "write_coco_file"]

_SECONDS_BETWEEN_SYNCS = 1.0
_IMAGE_PREFIX = '{"image": '
_HEADER_PREFIX = b'{"journal": '
_NOT_TEXT = "the file name is not valid UTF-8, so it cannot stand in a JSON file; rename the file"


@dataclass(frozen=True)
class ImageResult:
    """What a COCO file says about one image.

    Attributes:
        file_name: relative, as given, with forward slashes (`coco_file_name`).
        height: pixels after EXIF rotation.
        width: pixels after EXIF rotation.
        annotations: without ids, from `tcl_core.export.coco.annotations.regions_to_annotations`; may be empty.
    """

    file_name: str
    height: int
    width: int
    annotations: Sequence[Mapping[str, Any]] = field(default_factory=list)


def coco_file_name(path: str | os.PathLike[str]) -> str:
    """The ``file_name`` of an image: the path as it was given, with forward slashes.

    >>> coco_file_name("a folder/b.png")
    'a folder/b.png'
    """
    return os.fspath(path).replace(os.sep, "/")


def journal_path(out_path: str | os.PathLike[str]) -> Path:
    """Where the journal of an output file lies: next to it, with ``.journal`` appended."""
    out = Path(out_path)
    return out.with_name(out.name + ".journal")


class CocoJournal:
    """The results of a run so far, on disc, and the COCO file made of them.

    Lines are handed to the operating system one by one, so a killed process loses at most the image it was working
    on; at most every second they are forced to the disc as well, which bounds the loss when the power fails. Only the
    file names and their places in the journal are held in memory.

    Example:
        ``with CocoJournal.open("out.json", vocabulary, settings, resume=True) as journal:`` then, for every image
        whose name is not in ``journal.done``, ``journal.add(ImageResult(...))`` or ``journal.add_failure(name,
        reason)``; at the end ``journal.write_coco(names)``, after Ctrl-C ``journal.write_coco(names, final=False)``.
    """

    def __init__(self, out_path: Path, header: dict[str, Any], file: IO[bytes], lock: FileLock | None = None) -> None:
        self.out_path = out_path
        self._header = header
        self._file = file
        self._lock = lock
        self._end = 0
        self._done: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._synced_at = time.monotonic()

    @classmethod
    def open(
        cls,
        out_path: str | os.PathLike[str],
        vocabulary: Vocabulary,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> CocoJournal:
        """Start a run, or continue one.

        Args:
            out_path: the COCO file to be; missing folders are made.
            vocabulary: gives the categories.
            settings: everything else the results depend on (model, hash of the weights, geometry, ...), fit for JSON;
                stands in the file's ``info`` and must be the same on resuming.
            resume: continue the journal of an interrupted run, or a finished file (whose images then count as
                done). With neither, a new run starts.
            overwrite: throw away an existing journal; the existing file stays until the new one replaces it.

        Returns:
            The open journal, locked against a second run (by ``FILE.json.journal.lock``; the lock itself dies with the
            process, whatever is left of that file).

        Raises:
            CocoError: the file or a journal is there and neither ``resume`` nor ``overwrite`` was asked for (or both
                were); what is to be resumed was made with other settings (the message names the first difference), is
                damaged, or is in use; or the disc refuses.
        """
        out = Path(out_path)
        journal = journal_path(out)
        if resume and overwrite:
            raise CocoError(f"{out}: resume and overwrite exclude each other; ask for one of them")
        if out.exists() and not out.is_file():
            raise CocoError(f"{out} is not a file; name a file to write")
        if not resume and not overwrite:
            if journal.exists():
                raise CocoError(f"{journal} is left from an unfinished run; resume it, or ask to overwrite it")
            if out.exists():
                raise CocoError(f"{out} exists; resume it, ask to overwrite it, or choose another name")
        header = journal_header(vocabulary, settings)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            lock = _locked(journal)
        except OSError as error:
            raise CocoError(f"{out} cannot be written: {error.strerror}; choose another folder or file name") from error
        try:
            part = journal.with_name(journal.name + ".part")
            part.unlink(missing_ok=True)
            if resume and out.exists() and not journal.exists():
                cls._rebuild(out, header, part)
                os.replace(part, journal)
            self = cls(out, header, open(journal, "a+b", buffering=0), lock)
        except OSError as error:
            _let_go(lock)
            raise CocoError(f"{out} cannot be written: {error.strerror}; choose another folder or file name") from error
        except BaseException:
            _let_go(lock)
            raise
        try:
            if overwrite:
                self._file.truncate(0)
            self._start()
        except BaseException:
            self._file.close()
            _let_go(lock)
            raise
        return self

    @property
    def done(self) -> Set[str]:
        """File names that have a result (a live view); failed ones are not among them, so resuming tries them again."""
        return self._done.keys()

    @property
    def failed(self) -> dict[str, str]:
        """Reason of each image that failed, by file name."""
        return dict(self._failed)

    def add(self, image: ImageResult) -> None:
        """Keep an image's result.

        An image whose name is not text (bytes that are not valid UTF-8) is kept as a failure instead: strict readers
        of JSON refuse a whole file with such a name in it.

        Raises:
            CocoError: the image is there already, has no area, holds a number that is not finite, or the disc
                refuses.
        """
        if image.file_name in self._done:
            raise CocoError(f"{image.file_name} is in {journal_path(self.out_path)} already")
        if image.height < 1 or image.width < 1:
            raise CocoError(f"{image.file_name} has a size of {image.width}x{image.height}")
        if not is_text(image.file_name):
            self.add_failure(image.file_name, _NOT_TEXT)
            return
        entry = {"file_name": image.file_name, "width": int(image.width), "height": int(image.height)}
        line = {"image": entry, "annotations": list(image.annotations)}
        self._done[image.file_name] = self._append(line, image.file_name)
        self._failed.pop(image.file_name, None)

    def add_failure(self, file_name: str, reason: str) -> None:
        """Keep that an image could not be read; it will stand in ``info.failed`` with its reason.

        Raises:
            CocoError: the image has a result already, or the disc refuses.
        """
        if file_name in self._done:
            raise CocoError(f"{file_name} is in {journal_path(self.out_path)} already")
        self._append({"failure": {"file_name": file_name, "reason": reason}}, file_name)
        self._failed[file_name] = reason

    def write_coco(self, order: Iterable[str] | None = None, *, final: bool = True) -> None:
        """Put the COCO file together and set it in place at once.

        An image that failed has no size, so it cannot stand under ``images``; it stands in ``info.failed``.

        Args:
            order: file names in the order of the input; the file holds those among them that are done. ``None`` takes
                all, in the order they were added.
            final: the run is over: remove the journal. Otherwise it stays for resuming, and ``info.complete`` is
                false.

        Raises:
            CocoError: a name occurs twice, with ``final`` one is neither done nor failed, or the disc refuses.
        """
        names = list(order) if order is not None else [*self._done, *self._failed]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise CocoError(f"{twice} is among the images twice; COCO lists an image once")
        missing = [name for name in names if name not in self._done and self._reason(name) is None]
        if final and missing:
            raise CocoError(f"{missing[0]} has no result yet, so {self.out_path} cannot be finished")
        part = self.out_path.with_name(self.out_path.name + ".part")
        try:
            self._sync()
            with open(part, "w", encoding="ascii", newline="\n") as out:
                self._assemble(out, names, final)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, self.out_path)
            if final:
                journal_path(self.out_path).unlink(missing_ok=True)
        except OSError as error:
            raise CocoError(f"{self.out_path} cannot be written: {error.strerror}") from error
        finally:
            if part.is_file():
                part.unlink()

    def close(self) -> None:
        """Force the journal to the disc and let go of it; it stays unless the file was finished."""
        if not self._file.closed:
            try:
                self._sync()
            finally:
                self._file.close()
                if self._lock is not None:
                    _let_go(self._lock)

    def __enter__(self) -> CocoJournal:
        """The journal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the journal, whatever happened."""
        self.close()

    @classmethod
    def _rebuild(cls, out: Path, header: dict[str, Any], part: Path) -> None:
        """Write the journal of a finished file under another name, for a journal that is there must be whole."""
        try:
            with open(part, "w+b", buffering=0) as file:
                draft = cls(out, header, file)
                draft._append(header, "the settings")
                for line in lines_of_finished(out, header):
                    draft._note(line, draft._append(line, str(out)))
                draft._sync()
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _start(self) -> None:
        """Read what is there, or write the first line."""
        for offset, line in self._read():
            if offset == 0:
                check_same_run(line, self._header, journal_path(self.out_path))
            else:
                self._note(line, offset)
        if self._end == 0:
            self._append(self._header, "the settings")

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Offsets and lines; a last line that a killed run left unfinished is cut off."""
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as reader:
            for number, raw in enumerate(reader, start=1):
                if not raw.endswith(b"\n"):
                    if number == 1 and raw[: len(_HEADER_PREFIX)] != _HEADER_PREFIX[: len(raw)]:
                        check_same_run({}, self._header, journal_path(self.out_path))
                    return
                try:
                    line = json.loads(raw)
                    if not isinstance(line, dict):
                        raise ValueError
                except ValueError:
                    journal = journal_path(self.out_path)
                    raise CocoError(
                        f"{journal}, line {number}: this is not a journal's line; ask to overwrite it"
                    ) from None
                yield self._end, line
                self._end += len(raw)

    def _note(self, line: dict[str, Any], offset: int) -> None:
        """Take a line that is on disc into the index; the last line about an image counts."""
        try:
            if "image" in line:
                name = line["image"]["file_name"]
                if not is_text(name):
                    return
                self._done[name] = offset
                self._failed.pop(name, None)
            else:
                self._failed[line["failure"]["file_name"]] = line["failure"]["reason"]
        except (KeyError, TypeError):
            raise CocoError(
                f"{journal_path(self.out_path)}, byte {offset}: neither an image nor a failure; ask to overwrite it"
            ) from None

    def _append(self, line: dict[str, Any], what: str) -> int:
        """Write one line; returns its offset."""
        try:
            data = json.dumps(line, allow_nan=False).encode("ascii") + b"\n"
        except ValueError as error:
            raise CocoError(f"{what}: a number is not finite, so it cannot be written as JSON") from error
        except TypeError as error:
            raise CocoError(f"{what} cannot be written as JSON: {error}") from error
        offset = self._end
        try:
            # An interrupt may have left half a line behind the last whole one.
            self._file.truncate(offset)
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._end = offset + len(data)
            if time.monotonic() - self._synced_at > _SECONDS_BETWEEN_SYNCS:
                self._sync()
        except OSError as error:
            raise CocoError(f"{journal_path(self.out_path)} cannot be written: {error.strerror}") from error
        return offset

    def _reason(self, name: str) -> str | None:
        """Why an image failed; a finished file holds its name as it can be printed."""
        return self._failed.get(name, self._failed.get(printable(name)))

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def _assemble(self, out: IO[str], names: list[str], final: bool) -> None:
        done = [name for name in names if name in self._done]
        reasons = {name: self._reason(name) for name in names if name not in self._done}
        failed = [
            {"file_name": printable(name), "reason": printable(reason)}
            for name, reason in reasons.items()
            if reason is not None
        ]
        info = {**self._header["info"], "complete": final, "failed": failed}
        categories = ",\n".join(json.dumps(c) for c in self._header["categories"])
        out.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": [\n{categories}\n],\n"images": [')
        with open(journal_path(self.out_path), "rb") as journal:
            for image_id, line in enumerate(_lines_at(journal, (self._done[name] for name in done)), start=1):
                # Only the image is wanted here; a line's annotations may be a thousand times longer.
                image, _ = json.JSONDecoder().raw_decode(line, len(_IMAGE_PREFIX))
                out.write(("\n" if image_id == 1 else ",\n") + json.dumps({"id": image_id, **image}))
            out.write('\n],\n"annotations": [')
            annotation_id = 0
            for image_id, line in enumerate(_lines_at(journal, (self._done[name] for name in done)), start=1):
                for annotation in json.loads(line)["annotations"]:
                    annotation_id += 1
                    ids = {"id": annotation_id, "image_id": image_id}
                    out.write(("\n" if annotation_id == 1 else ",\n") + json.dumps({**ids, **annotation}))
        out.write("\n]}\n")


def write_coco_file(
    out_path: str | os.PathLike[str],
    images: Iterable[ImageResult],
    vocabulary: Vocabulary,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write a COCO file from results, one by one, in constant memory.

    Args:
        out_path: the file.
        images: results in the order they shall have.
        vocabulary: gives the categories.
        settings: stand in the file's ``info``.
        overwrite: replace an existing file.

    Raises:
        CocoError: see `CocoJournal.open` and `CocoJournal.add`.
    """
    with CocoJournal.open(out_path, vocabulary, settings, overwrite=overwrite) as journal:
        for image in images:
            if not is_text(image.file_name):
                raise CocoError(f"{printable(image.file_name)}: {_NOT_TEXT}")
            journal.add(image)
        journal.write_coco()


def _lines_at(journal: IO[bytes], offsets: Iterable[int]) -> Iterator[str]:
    for offset in offsets:
        journal.seek(offset)
        yield journal.readline().decode("ascii")


def _locked(journal: Path) -> FileLock:
    """Keep a second run from writing the same journal; the lock dies with the process."""
    path = journal.with_name(journal.name + ".lock")
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise CocoError(f"{journal} is in use by another run; wait for it or choose another name") from None
    return lock


def _let_go(lock: FileLock) -> None:
    """Release a lock and remove its file."""
    if sys.platform != "win32":
        # Before the release, for afterwards the file may be another run's; Windows removes no open file.
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
