"""What a resumed job must have in common with the one before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcl_core.errors import ExportError

__all__ = ["check_same_run"]


def check_same_run(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Compare the first line of a journal with that of the run that would resume it.

    Args:
        found: the first line that is there.
        wanted: the first line that the run would write.
        path: the file that holds it, for the message.

    Raises:
        ExportError: they differ; the message names the first difference and both values. Or ``found`` is no journal's
            first line.
    """
    if "journal" not in found:
        raise ExportError(
            f"{path} is not a journal of tcl-annotate; use --overwrite to replace it, or choose another name"
        )
    difference = _first_difference(found, wanted, "")
    if difference is not None:
        place, before, now = difference
        raise ExportError(
            f"{path} was made with {place} {before}, now it is {now}; "
            "use the same settings to resume, or --overwrite to start over"
        )


def _first_difference(found: Any, wanted: Any, place: str) -> tuple[str, str, str] | None:
    """Place and both values of the first difference between two JSON values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            inner = f"{place}.{key}" if place else str(key)
            if key not in found or key not in wanted:
                return inner, _shown(found.get(key)), _shown(wanted.get(key))
            difference = _first_difference(found[key], wanted[key], inner)
            if difference is not None:
                return difference
        return None
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            difference = _first_difference(one, other, f"{place}[{index}]")
            if difference is not None:
                return difference
        return None
    return None if found == wanted else (place, _shown(found), _shown(wanted))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
