"""The counts of one image, and the journal that stores them until all images are done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from tcl_core.errors import ExportError, SettingsError, reason_of, remedy_of
from tcl_core.evaluation.boundary import BoundaryCounts, boundary_counts
from tcl_core.evaluation.confusion import confusion_matrix

__all__ = ["ImageRecord", "Journal", "JournalIndex", "fingerprint", "record_image"]

_BOUNDARY = ("predicted", "predicted_met", "true", "true_met", "band_intersect", "band_union")


@dataclass(frozen=True)
class ImageRecord:
    """The counts of one image.

    Attributes:
        name: of the image.
        size: height and width.
        pixels: number of pixels by true and predicted class; a predicted class of K means no class.
        boundary: for each class with a boundary, the six numbers of `BoundaryCounts`.
        effort: of `tcl_core.evaluation.effort`; empty if it was not measured.
    """

    name: str
    size: tuple[int, int]
    pixels: Mapping[tuple[int, int], int]
    boundary: Mapping[int, Sequence[int]]
    effort: Mapping[str, int]

    def confusion(self, classes: int) -> NDArray[np.int64]:
        """The confusion matrix, int64 ``[K, K + 1]``."""
        matrix = np.zeros((classes, classes + 1), np.int64)
        for (true, predicted), number in self.pixels.items():
            matrix[true, predicted] = number
        return matrix

    def boundary_counts(self, classes: int) -> BoundaryCounts:
        """The boundary counts of all K classes."""
        counts = np.zeros((len(_BOUNDARY), classes), np.int64)
        for number, values in self.boundary.items():
            counts[:, number] = values
        return BoundaryCounts(*counts)

    def to_json(self) -> str:
        """One line of a journal."""
        return json.dumps(
            {
                "image": self.name,
                "size": list(self.size),
                "pixels": [[*pair, number] for pair, number in self.pixels.items()],
                "boundary": {str(number): list(values) for number, values in self.boundary.items()},
                "effort": dict(self.effort),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, line: str | bytes) -> ImageRecord:
        """The inverse of `to_json`."""
        data = json.loads(line)
        height, width = data["size"]
        return cls(
            data["image"],
            (height, width),
            {(true, predicted): number for true, predicted, number in data["pixels"]},
            {int(number): values for number, values in data["boundary"].items()},
            data["effort"],
        )


def record_image(
    name: str,
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    classes: int,
    effort: Mapping[str, int] | None = None,
) -> ImageRecord:
    """Count one image.

    Args:
        name: of the image.
        truth: integers ``[H, W]``, 0 to K - 1, or -1 where a pixel is ignored.
        prediction: integers ``[H, W]``, 0 to K - 1, or -1 where no class was predicted.
        classes: number of classes K.
        effort: of `tcl_core.evaluation.effort`.
    """
    matrix = confusion_matrix(truth, prediction, classes)
    boundary = boundary_counts(truth, prediction, classes)
    table = np.stack([getattr(boundary, field) for field in _BOUNDARY])
    height, width = truth.shape
    return ImageRecord(
        name,
        (height, width),
        {(int(true), int(column)): int(matrix[true, column]) for true, column in np.argwhere(matrix)},
        {int(number): table[:, number].tolist() for number in np.flatnonzero(table.any(axis=0))},
        {} if effort is None else effort,
    )


class Journal:
    """The records of one process, appended to a file one by one.

    Args:
        folder: of the evaluation; it may contain journals of other processes or earlier runs.
        process: number of this process, from 0.
        identity: everything that a record depends on; a folder with a different identity is rejected.

    Raises:
        SettingsError: the folder contains another evaluation, or another process writes to it.
        ExportError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, process: int, identity: Mapping[str, Any]) -> None:
        self._path = folder / f"journal-{process}.jsonl"
        self._lock = FileLock(str(folder / f"journal-{process}.lock"))
        header = json.dumps({"identity": identity}, sort_keys=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SettingsError(
                f"{folder}: another evaluation is writing to this folder; wait until it ends, or use another --out"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            for path in sorted(folder.glob("journal-*.jsonl")):
                _check_header(path, identity)
            self._drop_torn_line()
            self._file = self._path.open("ab")
            if self._file.tell() == 0:
                self._write(header)
        except BaseException:
            self._lock.release()
            raise

    def add(self, record: ImageRecord) -> None:
        """Append a record.

        Raises:
            ExportError: the disk is full, or the like.
        """
        self._write(record.to_json())

    def close(self) -> None:
        """Close the file, so that other processes can write to it."""
        self._file.close()
        self._lock.release()

    def _write(self, line: str) -> None:
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ExportError:
        return ExportError(
            f"{self._path}: cannot be written ({reason_of(error)}); {remedy_of(error)} and run the command again"
        )

    def _drop_torn_line(self) -> None:
        """Remove an unfinished last line, which a killed process leaves."""
        if not self._path.exists():
            return
        with self._path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - (1 << 16))
                file.seek(start)
                place = file.read(end - start).rfind(b"\n")
                if place >= 0:
                    end = start + place + 1
                    break
                end = start
            file.truncate(end)


class JournalIndex:
    """Locations of the records of all processes, so that they need not be in memory.

    Args:
        folder: of the evaluation.
        identity: see `Journal`; journals with a different identity are rejected.
        more: lines of journals of other machines.

    Raises:
        SettingsError: the folder contains another evaluation.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], more: Sequence[str] = ()) -> None:
        self._places: dict[str, tuple[Path, int] | str] = {}
        for path in sorted(folder.glob("journal-*.jsonl")):
            _check_header(path, identity)
            with path.open("rb") as file:
                header = file.readline()
                if not header.endswith(b"\n"):
                    continue
                offset = len(header)
                for line in file:
                    # An unfinished line was cut off, or is being written.
                    if line.endswith(b"\n"):
                        self._places.setdefault(json.loads(line)["image"], (path, offset))
                    offset += len(line)
        for text in more:
            self._places.setdefault(json.loads(text)["image"], text)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    def records(self, names: Sequence[str]) -> Iterator[ImageRecord]:
        """The records of images, in the order of ``names``.

        Raises:
            KeyError: one is missing.
        """
        for name in names:
            place = self._places[name]
            if isinstance(place, str):
                yield ImageRecord.from_json(place)
                continue
            with place[0].open("rb") as file:
                file.seek(place[1])
                yield ImageRecord.from_json(file.readline())


def fingerprint(names: Sequence[str]) -> str:
    """SHA-256 of a list of names."""
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def _check_header(path: Path, identity: Mapping[str, Any]) -> None:
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        # Its process was killed, or has just begun: there is no record yet.
        return
    try:
        found = json.loads(line)["identity"]
    except (ValueError, KeyError, TypeError):
        raise SettingsError(f"{path}: is not the journal of an evaluation; use another --out") from None
    wanted = json.loads(json.dumps(identity))
    if found != wanted:
        changed = ", ".join(sorted(_changes(found, wanted)))
        raise SettingsError(
            f"{path.parent}: contains results with other settings ({changed}); add --overwrite to replace them, or use "
            "another --out"
        )


def _changes(one: Any, other: Any, place: str = "") -> list[str]:
    """Names of the settings that differ."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return [place or "all of them"] if one != other else []
    found: list[str] = []
    for key in {*one, *other}:
        found += _changes(one.get(key), other.get(key), f"{place}.{key}" if place else str(key))
    return found
