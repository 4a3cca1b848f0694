"""Where downloads are kept and come from, hashes of files, and files that appear only when they are complete."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from platformdirs import user_cache_path

from tcl_core.errors import SettingsError, WeightsError

__all__ = [
    "HOME_VARIABLE",
    "MIRROR_VARIABLE",
    "TEXT_CACHE_VARIABLE",
    "download_folder",
    "file_sha256",
    "home_folder",
    "mirrored",
    "models_folder",
    "networks_folder",
    "texts_folder",
    "write_atomically",
]

HOME_VARIABLE = "TCL_ANNOTATE_HOME"
MIRROR_VARIABLE = "TCL_ANNOTATE_MIRROR"
TEXT_CACHE_VARIABLE = "TCL_ANNOTATE_TEXT_CACHE"


def home_folder() -> Path:
    """The folder of everything that was downloaded or imported; it need not exist yet.

    ``TCL_ANNOTATE_HOME`` if it is set, else ``tcl-annotate`` in the user's cache folder: ``$XDG_CACHE_HOME`` if it is
    set, else ``~/.cache`` on Linux and ``~/Library/Caches`` on macOS; ``%LOCALAPPDATA%`` on Windows.
    """
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return user_cache_path("tcl-annotate", appauthor=False, opinion=False).absolute()


def download_folder() -> Path:
    """Files as they were downloaded."""
    return home_folder() / "downloads"


def models_folder() -> Path:
    """Model files by name, made from downloads or imported."""
    return home_folder() / "models"


def networks_folder() -> Path:
    """Networks that were exported for a backend, which may be deleted at any time."""
    return home_folder() / "networks"


def texts_folder() -> Path | None:
    """Embedded prompts and lists of names, which may be deleted at any time.

    ``None`` where ``TCL_ANNOTATE_TEXT_CACHE`` is ``off``.

    Raises:
        SettingsError: the variable is neither ``on`` nor ``off``.
    """
    switch = os.environ.get(TEXT_CACHE_VARIABLE) or "on"
    if switch not in ("on", "off"):
        raise SettingsError(f"{TEXT_CACHE_VARIABLE} is {switch!r}; set it to on or off, or leave it out.")
    return home_folder() / "texts" if switch == "on" else None


def mirrored(url: str) -> str | Path:
    """Where to read ``url`` from: itself, or the same path below ``TCL_ANNOTATE_MIRROR``.

    The mirror is the base address of a web server or a folder; it replaces scheme and host, and the path stays, so
    that ``https://host/a/b.pth`` is read from ``MIRROR/a/b.pth``.

    Args:
        url: http or https address.

    Returns:
        An address, or a path where the mirror is a folder.

    Raises:
        SettingsError: the mirror is an address of another kind than http or https.
    """
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return url
    parts = urlsplit(url)
    if "://" not in mirror:
        return Path(mirror).expanduser().joinpath(*unquote(parts.path).lstrip("/").split("/"))
    if not mirror.lower().startswith(("http://", "https://")) or not urlsplit(mirror).hostname:
        raise SettingsError(f"{MIRROR_VARIABLE} must be an http or https URL or a folder, not {mirror!r}")
    query = f"?{parts.query}" if parts.query else ""
    return mirror.rstrip("/") + parts.path + query


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete, in a folder that is made if need be.

    Raises:
        WeightsError: it cannot be written; an older file of that name is then untouched.
    """
    part: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
        part = None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None:
            Path(part).unlink(missing_ok=True)
