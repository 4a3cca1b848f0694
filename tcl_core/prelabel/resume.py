"""What a resumed run must have in common with the run before it, and how a finished file becomes a journal again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tcl_core
from tcl_core.errors import CocoError
from tcl_core.export.coco.annotations import categories_of

if TYPE_CHECKING:
    from tcl_core.vocabulary import Vocabulary

__all__ = ["check_same_run", "journal_header", "lines_of_finished"]

_FORMAT = 1


def journal_header(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> dict[str, Any]:
    """First line of a journal; what it says must not change during a run.

    Args:
        vocabulary: gives the categories.
        settings: everything else the results depend on, fit for JSON.

    Returns:
        The journal's format, the file's ``info`` but for what is known only at the end, and its ``categories``.

    Raises:
        CocoError: the settings cannot be written as JSON.
    """
    header = {
        "journal": _FORMAT,
        "info": {
            "description": "Pre-labels made by tcl-annotate from text prompts",
            "version": tcl_core.__version__,
            "settings": dict(settings),
            "vocabulary": vocabulary.to_dict(),
            "vocabulary_fingerprint": vocabulary.fingerprint(),
        },
        "categories": categories_of(vocabulary),
    }
    try:
        # Tuples become lists, as they will be when the line is read back to be compared.
        return json.loads(json.dumps(header, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CocoError(f"the settings cannot be written as JSON: {error}") from error


def check_same_run(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Compare the first line of a journal with that of the run that would resume it.

    Args:
        found: the first line that is there.
        wanted: the first line that the run would write.
        path: the file that holds it, for the message.

    Raises:
        CocoError: they differ; the message names the first difference and both values. Or ``found`` is no journal's
            first line.
    """
    if "journal" not in found:
        raise CocoError(f"{path} is not a journal of tcl-annotate; ask to overwrite it, or choose another name")
    difference = _first_difference(found, wanted, "")
    if difference is not None:
        place, before, now = difference
        raise CocoError(
            f"{path} was made with {place} {before}, now it is {now}; "
            "use the same settings to resume, or ask to overwrite it"
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


def lines_of_finished(path: Path, header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A finished file of ours as journal lines, so that it can be resumed like an interrupted run.

    Args:
        path: the COCO file.
        header: the first line that the run would write.

    Yields:
        One line for each image and each failure.

    Raises:
        CocoError: the file was not written by this program, or with other settings.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        info = {key: value for key, value in data["info"].items() if key not in ("complete", "failed")}
        check_same_run({"journal": _FORMAT, "info": info, "categories": data["categories"]}, header, path)
        annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            plain = {key: value for key, value in annotation.items() if key not in ("id", "image_id")}
            annotations[annotation["image_id"]].append(plain)
        for image in data["images"]:
            plain = {key: value for key, value in image.items() if key != "id"}
            yield {"image": plain, "annotations": annotations[image["id"]]}
        for failure in data["info"]["failed"]:
            yield {"failure": failure}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CocoError(
            f"{path} was not written by tcl-annotate, so it cannot be resumed; choose another name"
        ) from None
