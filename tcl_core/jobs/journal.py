"""What a job has found so far, image by image, on disk: so that it can be interrupted, resumed, and exported.

Results go to a journal next to the output (``OUT.journal``, one JSON line for each image) that knows no annotation
format: an exporter makes its output of it at the end, or when the job is interrupted.

Two jobs over the same images end with the same bytes, whether one was interrupted or not: images are exported in the
order of the input, and nothing is taken from the clock.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from tcl_core.errors import ExportError, is_full, reason_of, remedy_of
from tcl_core.export.base import Exporter, ImageRegions, journal_path
from tcl_core.export.info import run_info
from tcl_core.export.names import NOT_TEXT, is_text, printable
from tcl_core.images import RemoteFolder
from tcl_core.jobs.regions_json import region_from_json, region_to_json
from tcl_core.jobs.resume import check_same_run
from tcl_core.jobs.sources import Source
from tcl_core.jobs.syncing import BackgroundSync
from tcl_core.vocabulary import Vocabulary

__all__ = ["LONGEST_SUFFIX", "Journal", "image_line", "is_in_use", "journal_path"]

LONGEST_SUFFIX = ".journal.lock"
"""What is appended to an output's name at most, for the files that lie beside it while its job runs."""

_FORMAT = 3
_SOURCES = "sources"
_HEADER_PREFIX = b'{"journal": '


class Journal:
    """The results of a job so far, on disk.

    Lines are handed to the operating system one by one, so a killed process loses at most the image it was working
    on; about every second they are forced to the disk as well, in the background, which bounds the loss when the power
    fails. Only the file names and their places in the journal are held in memory.

    Example:
        ``with Journal.open("out.json", exporter, vocabulary, settings, resume=True) as journal:`` then, for every image
        whose name is not in ``journal.done``, ``journal.add(ImageRegions(...))`` or ``journal.add_failure(name,
        reason)``; at the end ``journal.export(names)``, after Ctrl-C ``journal.export(names, final=False)``.
    """

    def __init__(
        self, out_path: Path, exporter: Exporter, vocabulary: Vocabulary, header: dict[str, Any], file: IO[bytes]
    ) -> None:
        self.out_path = out_path
        self.exporter = exporter
        self._vocabulary = vocabulary
        self._header = header
        self._file = file
        self._lock: FileLock | None = None
        self._end = 0
        self._done: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._sources: dict[str, Source] = {}
        self._disk = BackgroundSync(file)

    @classmethod
    def open(
        cls,
        out_path: str | os.PathLike[str],
        exporter: Exporter,
        vocabulary: Vocabulary,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> Journal:
        """Start a job, or continue one.

        Args:
            out_path: the output to be; missing folders are made.
            exporter: makes the output.
            vocabulary: the labels.
            settings: everything else the results depend on (model, hash of the weights, ...), fit for JSON; stands with
                the exporter's own settings in the output's ``info`` and must be the same on resuming.
            resume: continue the journal of an interrupted job, or a finished output (whose images then count as
                done). With neither, a new job starts.
            overwrite: throw away an existing journal; the existing output stays until the new one replaces it.

        Returns:
            The open journal, locked against a second job (by ``OUT.journal.lock``; the lock itself dies with the
            process, whatever is left of that file).

        Raises:
            ExportError: the output or a journal is there and neither ``resume`` nor ``overwrite`` was asked for (or
                both were); what is to be resumed was made with other settings (the message names the first difference),
                is damaged, or is in use; or the disk refuses.
        """
        out = Path(out_path)
        journal = journal_path(out)
        if resume and overwrite:
            raise ExportError(f"{out}: resume and overwrite cannot be combined; use one of them")
        exporter.check_target(out)
        if not resume and not overwrite:
            if journal.exists():
                raise ExportError(
                    f"{journal} is left over from an unfinished run; resume it (--resume), or start over (--overwrite)"
                )
            if out.exists():
                raise ExportError(
                    f"{out} already exists; resume it (--resume), overwrite it (--overwrite), or choose another name"
                )
        info = run_info(vocabulary, {**settings, **exporter.settings()})
        header = {"journal": _FORMAT, "exporter": exporter.name, "info": info}
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            lock = _locked(journal)
        except OSError as error:
            raise _refused(out, error) from error
        file: IO[bytes] | None = None
        try:
            part = journal.with_name(journal.name + ".part")
            part.unlink(missing_ok=True)
            if resume and out.exists() and not journal.exists():
                cls._rebuild(out, exporter, vocabulary, header, part)
                os.replace(part, journal)
            file = open(journal, "a+b", buffering=0)
            self = cls(out, exporter, vocabulary, header, file)
            if overwrite:
                file.truncate(0)
            self._start()
        except OSError as error:
            _let_go(lock, file)
            raise _refused(out, error) from error
        except BaseException:
            _let_go(lock, file)
            raise
        self._lock = lock
        return self

    @property
    def done(self) -> Set[str]:
        """File names that have a result (a live view); failed ones are not among them, so resuming tries them again."""
        return self._done.keys()

    @property
    def failed(self) -> dict[str, str]:
        """Reason of each image that failed, by file name."""
        return dict(self._failed)

    def forget_changed(self, root: Path | RemoteFolder) -> list[str]:
        """Take no result for done whose image has changed since, so that it is labeled again.

        Args:
            root: folder of the images, or what stands for it in object storage.

        Returns:
            Their file names, in the order they were done. Images whose source was not kept are not among them.
        """
        changed = [
            name for name in self._done if name in self._sources and self._sources[name].has_changed(root / name)
        ]
        for name in changed:
            del self._done[name], self._sources[name]
        return changed

    def add(self, image: ImageRegions, prepared: Any = None, source: Source | None = None) -> None:
        """Keep an image's result.

        Args:
            image: what was found.
            prepared: of the exporter's `prepare`, where it was called already.
            source: of the image's file, so that a change of it is noticed when the job is resumed.

        An image whose name is not text (bytes that are not valid UTF-8) is kept as a failure instead: strict readers
        of JSON refuse a whole file with such a name in it.

        Raises:
            ExportError: the image is there already, has no area, holds a number that is not finite, or the disk
                refuses.
        """
        self._check_new(image.file_name)
        if not is_text(image.file_name):
            self.add_failure(image.file_name, NOT_TEXT)
            return
        if prepared is None:
            prepared = self.exporter.prepare(image)
        self.add_line(image.file_name, image_line(image, prepared, source), source)

    def add_line(self, file_name: str, line: bytes, source: Source | None = None) -> None:
        """`add` of a line that is made already, perhaps by another process.

        Args:
            file_name: of the image.
            line: from `image_line`, with the same source.
            source: of the image's file.

        Raises:
            ExportError: the image is there already, or the disk refuses.
        """
        self._check_new(file_name)
        offset = self._write(line)
        if source is not None:
            self._sources[file_name] = source
        self._done[file_name] = offset
        self._failed.pop(file_name, None)

    def add_failure(self, file_name: str, reason: str) -> None:
        """Keep that an image could not be labeled, with its reason.

        Raises:
            ExportError: the image has a result already, or the disk refuses.
        """
        self._check_new(file_name)
        self._append({"failure": {"file_name": file_name, "reason": reason}}, file_name)
        self._failed[file_name] = reason

    def export(
        self,
        order: Iterable[str] | None = None,
        *,
        final: bool = True,
        exporter: Exporter | None = None,
        out: Path | None = None,
    ) -> None:
        """Make an output of what there is; it appears at once, when it is whole.

        Args:
            order: file names in the order of the input; the output holds those among them that are done. ``None`` takes
                all, in the order they were added.
            final: the job is over: remove the journal. Otherwise it stays for resuming.
            exporter: another one than the job's; then ``out`` is needed too, and the journal stays.
            out: where that one writes to.

        Raises:
            ExportError: a name occurs twice, with ``final`` one is neither done nor failed, or the disk refuses.
        """
        names = list(order) if order is not None else [*self._done, *self._failed]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ExportError(f"{twice} is listed twice; an output lists each image once")
        missing = [name for name in names if name not in self._done and self._reason(name) is None]
        if final and missing:
            raise ExportError(f"{missing[0]} has no result yet, so {self.out_path} cannot be finished")
        writer, target = exporter or self.exporter, out or self.out_path
        try:
            self._disk.finish()
            sources = {
                name: self._sources[name].to_json(modified=False)
                for name in names
                if name in self._done and name in self._sources
            }
            writer.open(target, self._vocabulary, {**self._header["info"], **({_SOURCES: sources} if sources else {})})
            # A handle of its own, because the journal's is where lines are appended.
            with open(journal_path(self.out_path), "rb") as lines:
                for name in names:
                    if name in self._done:
                        lines.seek(self._done[name])
                        self._export_image(writer, name, json.loads(lines.readline()))
            reasons = ((name, self._reason(name)) for name in names if name not in self._done)
            failed = [(name, reason) for name, reason in reasons if reason is not None]
            writer.close(complete=final, failed=failed)
            if final and exporter is None:
                journal_path(self.out_path).unlink(missing_ok=True)
        except OSError as error:
            raise self._stopped(error, target) from error
        except ExportError as error:
            if isinstance(error.__cause__, OSError):
                raise self._stopped(error.__cause__, target) from error
            raise
        finally:
            writer.abort()

    def close(self) -> None:
        """Force the journal to the disk and let go of it; it stays unless the output was finished."""
        if not self._file.closed:
            try:
                self._disk.finish()
            except OSError as error:
                raise self._stopped(error) from error
            finally:
                self._disk.close()
                _let_go(self._lock, self._file)

    def __enter__(self) -> Journal:
        """The journal itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the journal, whatever happened."""
        try:
            self.close()
        except ExportError:
            # What happened first is what the user has to know.
            if kind is None:
                raise

    @classmethod
    def _rebuild(
        cls, out: Path, exporter: Exporter, vocabulary: Vocabulary, header: dict[str, Any], part: Path
    ) -> None:
        """Write the journal of a finished output under another name, for a journal that is there must be whole."""
        try:
            finished = exporter.read_finished(out)
            about = dict(finished.info)
            sources = about.pop(_SOURCES, {})
            check_same_run({**header, "info": about}, header, out)
            with open(part, "w+b", buffering=0) as file:
                draft = cls(out, exporter, vocabulary, header, file)
                with closing(draft._disk):
                    draft._append(header, "the settings")
                    for name, height, width, content in finished.images:
                        line = {"image": _entry(name, height, width), "exported": content}
                        draft._append({**line, "source": sources[name]} if name in sources else line, name)
                    for name, reason in finished.failed:
                        draft._append({"failure": {"file_name": name, "reason": reason}}, name)
                    draft._disk.finish()
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
                    raise ExportError(
                        f"{journal}, line {number}: this is not a journal entry; use --overwrite to start over"
                    ) from None
                yield self._end, line
                self._end += len(raw)

    def _note(self, line: dict[str, Any], offset: int) -> None:
        """Take a line that is on disk into the index; the last line about an image counts."""
        try:
            if "image" in line:
                name = line["image"]["file_name"]
                if not is_text(name):
                    return
                self._done[name] = offset
                self._failed.pop(name, None)
                self._sources.pop(name, None)
                if "source" in line:
                    self._sources[name] = Source.from_json(line["source"])
            else:
                name = line["failure"]["file_name"]
                self._failed[name] = line["failure"]["reason"]
                # It was labeled once, then changed, and cannot be read any more.
                self._done.pop(name, None)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ExportError(
                f"{journal_path(self.out_path)}, byte {offset}: neither an image nor a failure; use --overwrite to "
                "start over"
            ) from None

    def _check_new(self, file_name: str) -> None:
        if file_name in self._done:
            raise ExportError(f"{file_name} is already in {journal_path(self.out_path)}")

    def _append(self, line: dict[str, Any], what: str) -> int:
        return self._write(_encoded(line, what))

    def _write(self, data: bytes) -> int:
        """Write one line; returns its offset."""
        offset = self._end
        try:
            # An interrupt may have left half a line behind the last whole one.
            self._file.truncate(offset)
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._end = offset + len(data)
            self._disk.written()
        except OSError as error:
            raise self._stopped(error) from error
        return offset

    def _export_image(self, writer: Exporter, name: str, line: Mapping[str, Any]) -> None:
        image = line["image"]
        height, width = image["height"], image["width"]
        if writer is self.exporter and line.get("exported") is not None:
            writer.add_again(name, height, width, line["exported"])
            return
        if "regions" not in line:
            raise ExportError(
                f"{name} comes from a finished {self.exporter.name} output, whose regions are not stored "
                "exactly; label it again to write another format"
            )
        regions = [region_from_json(entry, self._vocabulary) for entry in line["regions"]]
        writer.add(ImageRegions(name, height, width, regions))

    def _reason(self, name: str) -> str | None:
        """Why an image failed; a finished output holds its name as it can be printed."""
        return self._failed.get(name, self._failed.get(printable(name)))

    def _stopped(self, error: OSError, path: Path | None = None) -> ExportError:
        """Why the job cannot go on now, and that nothing it has is lost."""
        journal = journal_path(self.out_path)
        mend = "free some space on that disk" if is_full(error) else "see to it that it can be written"
        return ExportError(
            f"{path or journal} cannot be written: {reason_of(error)}; {mend} and resume the run (--resume), "
            f"because {journal} keeps the finished images"
        )


def image_line(image: ImageRegions, prepared: Any, source: Source | None) -> bytes:
    """The line of an image, for `Journal.add_line`.

    Args:
        image: what was found; its name is text.
        prepared: of the exporter's `prepare`.
        source: of the image's file.

    Raises:
        ExportError: the image has no area, or holds a number that is not finite.
    """
    if image.height < 1 or image.width < 1:
        raise ExportError(f"{image.file_name} has a size of {image.width}x{image.height}")
    line = {
        "image": _entry(image.file_name, image.height, image.width),
        "regions": [region_to_json(region) for region in image.regions],
        "exported": prepared,
    }
    if source is not None:
        line["source"] = source.to_json(modified=True)
    return _encoded(line, image.file_name)


def _encoded(line: dict[str, Any], what: str) -> bytes:
    try:
        return json.dumps(line, allow_nan=False).encode("ascii") + b"\n"
    except ValueError as error:
        raise ExportError(f"{what}: a number is not finite, so it cannot be written as JSON") from error
    except TypeError as error:
        raise ExportError(f"{what} cannot be written as JSON: {error}") from error


def _entry(name: str, height: int, width: int) -> dict[str, Any]:
    return {"file_name": name, "width": int(width), "height": int(height)}


def _refused(out: Path, error: OSError) -> ExportError:
    return ExportError(f"{out} cannot be written: {reason_of(error)}; {remedy_of(error)}")


def is_in_use(out_path: str | os.PathLike[str]) -> bool:
    """Whether a living run writes an output; what a dead one left does not count."""
    path = _lock_path(journal_path(out_path))
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        # Opening the journal will say what is wrong.
        return False
    lock.release()
    return False


def _lock_path(journal: Path) -> Path:
    return journal.with_name(journal.name + ".lock")


def _locked(journal: Path) -> FileLock:
    """Keep a second run from writing the same journal; the lock dies with the process."""
    lock = FileLock(_lock_path(journal), timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise ExportError(
            f"{journal} is in use by another run; wait for it to finish, or choose another name"
        ) from None
    return lock


def _let_go(lock: FileLock | None, file: IO[bytes] | None) -> None:
    """Close a journal, release its lock and remove the lock's file."""
    if file is not None:
        file.close()
    if lock is None:
        return
    if sys.platform != "win32":
        # Before the release, for afterwards the file may be another run's; Windows removes no open file.
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
