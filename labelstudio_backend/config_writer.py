"""A vocabulary as a labeling configuration for a new project."""

from __future__ import annotations

from typing import Literal, get_args
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from tcl_core.errors import SettingsError, VocabularyError
from tcl_core.vocabulary import Vocabulary

__all__ = ["SHAPES", "Shape", "labeling_config_xml"]

Shape = Literal["polygon", "brush", "box"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


def labeling_config_xml(vocabulary: Vocabulary, shape: Shape = "polygon") -> str:
    """Write a configuration with which every region is drawn once, and prompts can be typed.

    * ``polygon``: polygons, and brush masks for what has a hole.
    * ``brush``: brush masks.
    * ``box``: boxes.

    But for ``box``, a rectangle can be drawn to have a label found inside it.

    Args:
        vocabulary: labels, prompts, thresholds and colors.
        shape: what predictions are drawn as.

    Returns:
        XML for :func:`labelstudio_backend.labeling_config.parse_labeling_config` and for Label Studio.

    Raises:
        VocabularyError: a prompt holds a comma, which separates prompts.
        SettingsError: an unknown shape.
    """
    if shape not in SHAPES:
        raise SettingsError(f"shape is {shape!r}; give one of {', '.join(SHAPES)}")
    view = Element("View")
    if not vocabulary.background:
        view.set("model_background", "false")
    elif vocabulary.background_threshold is not None:
        view.set("model_background", f"{vocabulary.background_threshold:g}")
    if vocabulary.background_names is not None:
        view.set("model_background_names", ",".join(vocabulary.background_names) or "none")
    SubElement(
        view,
        "TextArea",
        name="prompt",
        toName="image",
        editable="true",
        rows="1",
        showSubmitButton="true",
        placeholder="Type a prompt for a label, such as  Label: other words",
    )
    if shape == "polygon":
        _add_labels(view, "PolygonLabels", "polygons", vocabulary, strokeWidth="2", opacity="0.4")
        _add_labels(view, "BrushLabels", "brushes", vocabulary, model_regions="holes")
    elif shape == "brush":
        _add_labels(view, "BrushLabels", "brushes", vocabulary)
    boxes = {} if shape == "box" else {"smart": "true", "model_skip": "true"}
    _add_labels(view, "RectangleLabels", "boxes", vocabulary, **boxes)
    SubElement(view, "Image", name="image", value="$image", zoom="true", zoomControl="true", maxWidth="900px")
    indent(view)
    return tostring(view, encoding="unicode")


def _add_labels(view: Element, tag: str, name: str, vocabulary: Vocabulary, **attributes: str) -> None:
    control = SubElement(view, tag, {"name": name, "toName": "image", **attributes})
    for label, color in zip(vocabulary.labels, vocabulary.colors, strict=True):
        element = SubElement(control, "Label", value=label.name, background="#{:02x}{:02x}{:02x}".format(*color))
        if label.prompts != (label.name,):
            if with_comma := [prompt for prompt in label.prompts if "," in prompt]:
                raise VocabularyError(
                    f"label {label.name!r}: the prompt {with_comma[0]!r} contains a comma, which separates prompts in "
                    "a labeling configuration; rewrite it"
                )
            element.set("predicted_values", ", ".join(label.prompts))
        if label.threshold is not None:
            element.set("model_score_threshold", f"{label.threshold:g}")
