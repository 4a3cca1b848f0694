"""A vocabulary as a labeling configuration for a new project."""

from __future__ import annotations

from typing import Literal, get_args
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from tcl_core.errors import SettingsError, VocabularyError
from tcl_core.vocabulary import Vocabulary

__all__ = ["SHAPES", "Shape", "labeling_config_xml"]

Shape = Literal["polygon", "brush", "box"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


_HEIGHT = "calc(100vh - 165px)"
"""What Label Studio's own bars leave of the window, so that nothing has to be scrolled to see the image."""
_WIDTH = "calc(100% - 44px)"
"""Leaves room for the toolbar. Without it Label Studio scales the image to a width that it takes back when the toolbar
appears, and the margins of the image are cut off."""
_ASIDE = "flex: 0 0 205px; max-height: {height}; display: flex; flex-direction: column"
_TOOLS: dict[Shape, tuple[tuple[str, str, dict[str, str]], ...]] = {
    "polygon": (("Polygon", "polygon", {"pointSize": "small"}),),
    "brush": (("Brush", "brush", {"smart": "false"}),),
    "box": (("Rectangle", "box", {"smart": "false"}),),
}
_ASK = "With Auto-Annotation on: type a prompt; or choose a label and the last tool, and"
_HINT = "To draw over a region, hold Ctrl (Cmd on a Mac). Deselect any label before you accept an answer to a prompt."
_ASKING: dict[Shape, tuple[tuple[str, str], ...]] = {
    "polygon": (("Rectangle", "smart-box"), ("KeyPoint", "smart-point")),
    "brush": (("Rectangle", "smart-box"), ("KeyPoint", "smart-point")),
    # A second kind of rectangle would be one too many to tell apart.
    "box": (("KeyPoint", "smart-point"),),
}


def labeling_config_xml(vocabulary: Vocabulary, shape: Shape = "polygon") -> str:
    """Write a configuration with one set of labels, one tool to draw with, and smart tools to ask with.

    * ``polygon``: regions are polygons; a hole is kept by a bridge.
    * ``brush``: regions are exact masks.
    * ``box``: regions are boxes.

    Labels and the prompt field stand beside the image, so that the image is seen whole in a small window, however many
    labels there are. Colors are written where the vocabulary has them; the others, and the hotkeys, are Label Studio's.

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
    columns = SubElement(view, "View", style="display: flex; gap: 12px; align-items: flex-start")
    aside = SubElement(columns, "View", style=_ASIDE.format(height=_HEIGHT))
    field = SubElement(aside, "View", style="flex: 0 0 auto; max-height: 40%; overflow-y: auto")
    SubElement(
        field,
        "TextArea",
        name="prompt",
        toName="image",
        rows="1",
        showSubmitButton="false",
        placeholder="Type a prompt, press Enter",
    )
    labels = SubElement(aside, "View", style="flex: 1 1 auto; overflow-y: auto")
    _add_labels(labels, vocabulary)
    main = SubElement(columns, "View", style="flex: 1 1 auto; min-width: 0")
    for tag, name, attributes in _TOOLS[shape]:
        SubElement(main, tag, {"name": name, "toName": "image", **attributes})
    for tag, name in _ASKING[shape]:
        SubElement(main, tag, name=name, toName="image", smart="true", smartOnly="true")
    SubElement(
        main,
        "Image",
        name="image",
        value="$image",
        zoom="true",
        zoomControl="true",
        maxWidth=_WIDTH,
        maxHeight=_HEIGHT,
    )
    last_tool = "click on an object." if shape == "box" else "draw a box around an object."
    for line in (f"{_ASK} {last_tool}", _HINT):
        SubElement(main, "Header", value=line, size="6", style="margin: 4px 0; font-size: 13px; line-height: 17px")
    indent(view)
    return tostring(view, encoding="unicode")


def _add_labels(view: Element, vocabulary: Vocabulary) -> None:
    # Regions take their style from here, and not from the tool that they are drawn with.
    control = SubElement(view, "Labels", name="labels", toName="image", strokeWidth="2", opacity="0.3")
    for label in vocabulary.labels:
        element = SubElement(control, "Label", value=label.name)
        if label.color is not None:
            element.set("background", "#{:02x}{:02x}{:02x}".format(*label.color))
        if label.prompts != (label.name,):
            if with_comma := [prompt for prompt in label.prompts if "," in prompt]:
                raise VocabularyError(
                    f"label {label.name!r}: the prompt {with_comma[0]!r} contains a comma, which separates prompts in "
                    "a labeling configuration; rewrite it"
                )
            element.set("predicted_values", ", ".join(label.prompts))
        if label.threshold is not None:
            element.set("model_score_threshold", f"{label.threshold:g}")
