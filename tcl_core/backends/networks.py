"""Exported networks on disk, by a hash of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["NetworkStore"]

_MOST_BYTES = 4 << 30
_VERSION = 1
_ABANDONED_SECONDS = 3600
_PART = "part-"


class NetworkStore:
    """A folder of networks that is bounded in bytes; it can be deleted at any time.

    A network appears only when it is complete. One whose files are not of the size at which they were written, or that
    cannot be read, is removed and exported anew.

    Args:
        folder: it need not exist.
        most: bytes of all networks together; those that were not used for the longest time are removed.
    """

    def __init__(self, folder: Path, most: int = _MOST_BYTES) -> None:
        self._folder = folder
        self._most = most

    def read(self, identity: str, read: Callable[[Path], Any]) -> Any:
        """What ``read`` makes of a network's file, ``None`` where there is no whole one.

        Args:
            identity: everything that it depends on.
            read: raises RuntimeError where the file is damaged.
        """
        place = self._place(identity)
        try:
            sizes = json.loads((place / "sizes.json").read_text())
            if not sizes or any((place / name).stat().st_size != size for name, size in sizes.items()):
                raise ValueError("a file was cut off")
            found = read(place / "network.xml")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError, RuntimeError):
            shutil.rmtree(place, ignore_errors=True)
            return None
        try:
            os.utime(place)
        except OSError:
            pass
        return found

    def write(self, identity: str, write: Callable[[Path], Any]) -> None:
        """Keep a network; where that is not possible a warning says so.

        Args:
            identity: everything that it depends on.
            write: writes a file of this name, and perhaps others beside it; raises RuntimeError or OSError.
        """
        try:
            self._put(self._place(identity), write)
        except (OSError, RuntimeError) as error:
            if self._place(identity).exists():
                # Another process was faster.
                return
            reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            warnings.warn(
                f"{self._folder}: the exported network cannot be cached ({reason}), so every run exports it again; "
                "free some space",
                stacklevel=2,
            )

    def replace(self, identity: str, write: Callable[[Path], Any]) -> None:
        """Keep a network, also in the place of one that is there.

        Args:
            identity: everything that it depends on.
            write: see `write`.

        Raises:
            OSError: it cannot be written.
            RuntimeError: likewise.
        """
        self._put(self._place(identity), write, instead=True)

    def adopt(self, folder: Path) -> None:
        """Keep copies of all networks of another such folder.

        Raises:
            OSError: one cannot be written.
        """
        for entry in folder.iterdir():
            self._put(self._folder / entry.name, partial(_copy, entry))

    def _put(self, place: Path, write: Callable[[Path], Any], instead: bool = False) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=_PART, ignore_cleanup_errors=True) as part:
            inner = Path(part) / "network"
            inner.mkdir()
            write(inner / "network.xml")
            sizes = {path.name: path.stat().st_size for path in inner.iterdir()}
            (inner / "sizes.json").write_text(json.dumps(sizes))
            if instead and place.exists():
                os.replace(place, Path(part) / "old")
            if not place.exists():
                os.replace(inner, place)
        self._bound(place)

    def paths(self, name: str) -> list[Path]:
        """The files of this name of all networks, in no order; those that are being written are not among them."""
        return [path for path in self._folder.glob(f"*/{name}") if not path.parent.name.startswith(_PART)]

    def _place(self, identity: str) -> Path:
        return self._folder / hashlib.sha256(f"{_VERSION} {identity}".encode()).hexdigest()[:32]

    def _bound(self, newest: Path) -> None:
        entries = []
        for path in self._folder.iterdir():
            try:
                used = path.stat().st_mtime
                if path.name.startswith(_PART):
                    if used < time.time() - _ABANDONED_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
                    continue
                entries.append((used, path, sum(file.stat().st_size for file in path.iterdir())))
            except (FileNotFoundError, NotADirectoryError):
                continue
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= self._most:
                return
            if path != newest:
                shutil.rmtree(path, ignore_errors=True)
                total -= size


def _copy(entry: Path, network: Path) -> None:
    """Copy the files of an entry; those that are there are whole, and their sizes are written anew."""
    for path in entry.iterdir():
        if path.name != "sizes.json":
            shutil.copyfile(path, network.parent / path.name)
