"""The download folder: each file is whole, has the right hash, and appears at once.

Where the manifest has no SHA-256, the hash of the first download is written beside the file (``NAME.pin.json``); a
file that later differs from it is an error, whether it changed on the server or on the disk.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from tcl_core.errors import WeightsError
from tcl_core.models.manifest import RemoteFile
from tcl_core.models.paths import download_folder, file_sha256, mirrored, write_atomically
from tcl_core.models.reasons import TransferError
from tcl_core.models.sources import copy_file, from_hub, from_web
from tcl_core.models.transfer_progress import TransferProgress, passing_on

__all__ = ["NotPublishedError", "check_file", "fetch_file", "pin_path"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


class NotPublishedError(WeightsError):
    """The server answers, and has no file of this name."""


def pin_path(file: RemoteFile, folder: Path | None = None) -> Path:
    """Where the hash of the first download of ``file`` is kept."""
    return (folder or download_folder()) / f"{file.filename}.pin.json"


def fetch_file(file: RemoteFile, folder: Path | None = None, *, progress: TransferProgress = True) -> Path:
    """Give the path of a file, downloading it if it is not there yet.

    An interrupted download from the Hugging Face hub continues at the next call; one from elsewhere starts anew.
    Several processes may ask for the same file: one downloads, the others wait. A file that was put into the folder by
    hand is checked and taken.

    Args:
        file: what to get.
        folder: where to keep it; :func:`tcl_core.models.paths.download_folder` if ``None``.
        progress: see `tcl_core.models.transfer_progress.TransferProgress`.

    Returns:
        Path of the whole and checked file.

    Raises:
        WeightsError: the file cannot be had (the message names it, its address and the folder to put it in), has the
            wrong size or hash, or cannot be written.
        NotPublishedError: there is no such file where it should be.
    """
    folder = folder or download_folder()
    final = folder / file.filename
    with passing_on(), _locked(final):
        if final.exists():
            check_file(file, folder)
            return final
        part = folder / f"{file.filename}.part"
        source = mirrored(file.url)
        try:
            if isinstance(source, Path):
                copy_file(source, part, progress=progress)
            # A mirror is a plain web server, which says nothing about commits.
            elif file.hub is not None and source == file.url:
                from_hub(file.hub, part, folder / f".{file.filename}.hub", progress=progress)
            else:
                from_web(source, part, size=file.size, progress=progress)
            _check(file, folder, part, f"the download from {source}")
            os.replace(part, final)
        except TransferError as error:
            kind = NotPublishedError if error.missing else WeightsError
            raise kind(_unavailable(file, source, folder, str(error))) from error
        except OSError as error:
            raise WeightsError(f"{final}: cannot be written: {error.strerror}") from error
        finally:
            # What failed is worth nothing; the beginning of a file of the hub is kept elsewhere.
            part.unlink(missing_ok=True)
        return final


def check_file(file: RemoteFile, folder: Path | None = None) -> str:
    """Check a downloaded file against the manifest or its pin; a first file without either becomes the pin.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        WeightsError: the file is missing or differs.
    """
    folder = folder or download_folder()
    final = folder / file.filename
    if not final.exists():
        raise WeightsError(
            f"{file.filename} is not in {folder}; run 'tcl-annotate models fetch {file.name}', or get it from "
            f"{file.url} and put it there under this name"
        )
    return _check(file, folder, final, str(final))


def _check(file: RemoteFile, folder: Path, path: Path, what: str) -> str:
    try:
        size, sha256 = path.stat().st_size, file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    if file.size is not None and size != file.size:
        raise WeightsError(
            f"{file.filename}: {what} has {size} bytes instead of {file.size}; delete it and run the command again"
        )
    if file.sha256 is not None:
        if sha256 != file.sha256:
            raise WeightsError(
                f"{file.filename}: {what} has SHA-256 {sha256} instead of {file.sha256}, so it is damaged or a "
                "different file; delete it and run the command again"
            )
        return sha256
    pin = pin_path(file, folder)
    pinned = _read_pin(pin)
    if pinned is None:
        _check_kind(file, path, what)
        content = json.dumps({"sha256": sha256, "size": size, "url": file.url, "name": file.name}, indent=1)
        write_atomically(pin, content.encode())
    elif sha256 != pinned:
        raise WeightsError(
            f"{file.filename}: {what} has SHA-256 {sha256}, but the first download had {pinned}; if you trust the new "
            f"file, delete {pin} and the file, and run the command again"
        )
    return sha256


def _read_pin(pin: Path) -> str | None:
    try:
        value = json.loads(pin.read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{pin}: the pinned hash cannot be read ({error}); restore or delete this file") from error
    return str(value)


def _check_kind(file: RemoteFile, path: Path, what: str) -> None:
    """A hash that is pinned blindly would make an error page the truth."""
    if file.filename.endswith(".safetensors"):
        try:
            # Opening compares the header with the file's length.
            with safe_open(path, framework="np"):
                right = True
        except SafetensorError:
            right = False
    elif file.filename.endswith(".json"):
        try:
            right = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        except (OSError, ValueError):
            right = False
    else:
        right = zipfile.is_zipfile(path) or _is_legacy_checkpoint(path)
    if not right:
        raise WeightsError(
            f"{file.filename}: {what} is not a {_kind(file.filename)} (perhaps an error page or an incomplete file); "
            "delete it and run the command again"
        )


def _is_legacy_checkpoint(path: Path) -> bool:
    """Whether a file begins as torch.save wrote it before version 1.6: with a number of its own, pickled."""
    with open(path, "rb") as handle:
        start = handle.read(32)
    # Protocol and frame of the pickle vary; the number is 0x1950a86a20f9469cfc6c, as a long of ten bytes.
    return start.startswith(b"\x80") and b"\x8a\x0a" + _LEGACY_MAGIC in start


def _kind(filename: str) -> str:
    kinds = {".safetensors": "safetensors file", ".json": "JSON file"}
    return kinds.get(Path(filename).suffix, "PyTorch checkpoint")


def _unavailable(file: RemoteFile, source: str | Path, folder: Path, reason: str) -> str:
    via = f" through the mirror {source}" if str(source) != file.url else ""
    return (
        f"{file.filename} could not be downloaded from {file.url}{via}: {reason}; if this machine has no network "
        f"access, download the file on another machine, save it as {folder / file.filename}, and run the command again"
    )


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    # The system frees this lock when its holder dies, so that a killed download never blocks the next one.
    lock = final.with_name(f".{final.name}.lock")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        held.acquire()
    except OSError as error:
        raise WeightsError(
            f"{final.parent}: the download folder cannot be used: {error.strerror or error}; set TCL_ANNOTATE_HOME to "
            "a writable folder"
        ) from error
    try:
        yield
    finally:
        held.release()
