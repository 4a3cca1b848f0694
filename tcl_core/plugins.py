"""What other packages bring by entry points: found without importing anything, loaded when it is asked for."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tcl_core.errors import SettingsError

__all__ = ["installed", "load", "package_of"]


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name; nobody takes a name from this package."""
    # The last of two of one name wins.
    found = sorted(entry_points(group=group), key=lambda point: point.module.startswith("tcl_core."))
    return {point.name: point for point in found}


def package_of(point: EntryPoint) -> str:
    """Name of the package that brings an entry point, for messages."""
    return point.dist.name if point.dist is not None else point.value


def load(point: EntryPoint, what: str, kind: type, *, subclass: bool = False) -> Any:
    """Import what an entry point names.

    Args:
        point: from `installed`.
        what: what it brings, for messages, such as ``The method``.
        kind: what it has to be an instance of, or a sub-class.
        subclass: whether a class is wanted.

    Raises:
        SettingsError: it cannot be imported, or is something else; the message names the package.
    """
    package = package_of(point)
    try:
        found = point.load()
    # Whatever a foreign package raises while it is imported, the user has to know which package it is.
    except Exception as error:
        text = " ".join(str(error).split())
        raise SettingsError(
            f"{what} {point.name!r} of the package {package} cannot be loaded ({type(error).__name__}: {text}); "
            "update or uninstall the package."
        ) from error
    fits = isinstance(found, type) and issubclass(found, kind) if subclass else isinstance(found, kind)
    if not fits:
        wanted = f"sub-class of {kind.__name__}" if subclass else f"{kind.__name__}"
        raise SettingsError(
            f"{what} {point.name!r} of the package {package} is not a {wanted}; update or uninstall the package."
        )
    return found
