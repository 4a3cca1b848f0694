"""The tags of a labeling configuration: which ones draw what, and what their labels say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal
from xml.etree.ElementTree import Element, ParseError, SubElement

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from labelstudio_backend.image_source import value_of
from tcl_core.errors import SettingsError

__all__ = [
    "DRAWING_TAGS",
    "KIND_OF_SHAPE",
    "KIND_OF_TAG",
    "POINTING_TAGS",
    "Kind",
    "fill_dynamic_labels",
    "has_dynamic_labels",
    "is_false",
    "is_true",
    "labels_of",
    "parse_xml",
    "prompts_of",
    "tag_of",
    "targets_of",
    "threshold_of",
    "value_of_label",
]

Kind = Literal["polygon", "brush", "rectangle"]

KIND_OF_TAG: dict[str, Kind] = {
    "polygonlabels": "polygon",
    "brushlabels": "brush",
    "rectanglelabels": "rectangle",
}
"""Tags that have labels of their own."""
KIND_OF_SHAPE: dict[str, Kind] = {"polygon": "polygon", "brush": "brush", "rectangle": "rectangle"}
"""Tags that draw the labels of the ``Labels`` on the same image."""
POINTING_TAGS = frozenset({*KIND_OF_TAG, "keypointlabels", "ellipselabels", "bitmasklabels", "labels"})
"""Tags whose labels can stand in what an annotator draws."""
DRAWING_TAGS = frozenset({*KIND_OF_SHAPE, "keypoint", "ellipse"})
"""Tags without labels whose regions take them from a ``Labels``."""

_MAX_CHARACTERS = 1 << 20
_LABEL_ATTRIBUTES = ("value", "alias", "predicted_values", "model_score_threshold", "model_skip")


def has_dynamic_labels(root: Element) -> bool:
    """Whether labels of the configuration come from each task's data, as in ``<Labels value="$labels">``."""
    return any(map(_dynamic_source, root.iter()))


def fill_dynamic_labels(root: Element, data: Mapping[str, object]) -> None:
    """Put the labels in that a task's data names: a list of values, or of mappings with the attributes of a label.

    Args:
        root: the configuration; it is changed.
        data: of the task.

    Raises:
        SettingsError: the data has no such list, or it has an entry that is no label.
    """
    for tag in list(root.iter()):
        source = _dynamic_source(tag)
        if not source:
            continue
        listed = value_of(source, data)
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise SettingsError(f"the task has no list {source[1:]!r} of labels in its data; add one")
        for entry in listed:
            written = entry if isinstance(entry, Mapping) else {"value": entry}
            if not isinstance(written.get("value"), str):
                raise SettingsError(
                    f"the task's list {source[1:]!r} has the entry {entry!r}, which is no label; give texts, or "
                    "mappings with a value"
                )
            found = {name: str(written[name]) for name in _LABEL_ATTRIBUTES if written.get(name) is not None}
            SubElement(tag, "Label", found)
        del tag.attrib["value"]


def _dynamic_source(tag: Element) -> str:
    value = (tag.get("value") or "").strip()
    return value if tag_of(tag) in POINTING_TAGS and value.startswith("$") and len(value) > 1 else ""


def parse_xml(xml: str) -> Element:
    """Read a configuration's XML.

    Raises:
        SettingsError: it is no XML, or too long.
    """
    if len(xml) > _MAX_CHARACTERS:
        raise SettingsError("the labeling configuration is longer than a million characters")
    try:
        # A document type could define entities; Label Studio's configurations have none.
        return defusedxml.ElementTree.fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise SettingsError(f"the labeling configuration is not valid XML ({error})") from error


def tag_of(element: Element) -> str:
    """A tag's name in small letters, as Label Studio compares it."""
    return element.tag.lower() if isinstance(element.tag, str) else ""


def targets_of(element: Element) -> list[str]:
    """Names of the tags that a tag points to."""
    return [name.strip() for name in element.get("toName", "").split(",")]


def labels_of(control: Element) -> Iterator[Element]:
    """The labels inside a tag."""
    for element in control.iter():
        if tag_of(element) == "label" and value_of_label(element):
            yield element


def value_of_label(label: Element) -> str:
    """What people read: the value; an alias is a key for programs, and may differ from tag to tag."""
    return (label.get("value") or label.get("alias") or "").strip()


def prompts_of(label: Element) -> tuple[str, ...]:
    """The prompts of a label, each once."""
    written = tuple(dict.fromkeys(part.strip() for part in label.get("predicted_values", "").split(",")))
    return tuple(prompt for prompt in written if prompt)


def threshold_of(element: Element, where: str, attribute: str = "model_score_threshold") -> float | None:
    """A threshold in an attribute; ``None`` where there is none.

    Args:
        element: the tag.
        where: what the message calls it.
        attribute: its name.

    Raises:
        SettingsError: it is no number from 0 to 1.
    """
    text = element.get(attribute)
    if text is None or not text.strip():
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise SettingsError(
            f"the labeling configuration: {where} has the {attribute} {text!r}; give a number from 0 to 1"
        )
    return number


def is_true(element: Element, attribute: str) -> bool:
    """Whether an attribute says so; Label Studio does not tell ``smartOnly`` from ``smartonly``."""
    return _says(element, attribute, "true")


def is_false(element: Element, attribute: str) -> bool:
    """Whether an attribute says no, which is not the same as nothing."""
    return _says(element, attribute, "false")


def _says(element: Element, attribute: str, word: str) -> bool:
    return any(
        name.lower() == attribute.lower() and text.strip().lower() == word for name, text in element.attrib.items()
    )
