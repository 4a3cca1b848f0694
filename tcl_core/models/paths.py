"""Where downloads are kept, and where they come from when a mirror is set."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tcl_core.errors import SettingsError

__all__ = ["HOME_VARIABLE", "MIRROR_VARIABLE", "download_folder", "home_folder", "mirrored", "models_folder"]

HOME_VARIABLE = "TCL_ANNOTATE_HOME"
MIRROR_VARIABLE = "TCL_ANNOTATE_MIRROR"


def home_folder() -> Path:
    """The folder of everything that was downloaded or imported; it need not exist yet.

    ``TCL_ANNOTATE_HOME`` if it is set, else ``tcl-annotate`` in the user's cache folder: ``$XDG_CACHE_HOME`` or
    ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows.
    """
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        # The XDG specification says that a relative path is to be ignored.
        xdg = Path(os.environ.get("XDG_CACHE_HOME") or "")
        base = xdg if xdg.is_absolute() else Path.home() / ".cache"
    return base / "tcl-annotate"


def download_folder() -> Path:
    """Files as they were downloaded."""
    return home_folder() / "downloads"


def models_folder() -> Path:
    """Model files by name, made from downloads or imported."""
    return home_folder() / "models"


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
        raise SettingsError(f"{MIRROR_VARIABLE} must be an http or https address or a folder, not {mirror!r}")
    query = f"?{parts.query}" if parts.query else ""
    return mirror.rstrip("/") + parts.path + query
