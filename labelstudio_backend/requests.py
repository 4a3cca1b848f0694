"""From a request to a plan: what has to be found in an image, and as what it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from labelstudio_backend.labeled_shapes import join_labels, value_of_result
from labelstudio_backend.labeling_config import Control, LabelingConfig, ProjectConfig
from labelstudio_backend.prompts import Added
from labelstudio_backend.shapes import (
    ellipse_points,
    finite_number,
    image_size_of,
    polygon_of_value,
    rectangle_points,
)
from tcl_core.errors import SettingsError

__all__ = ["Asked", "Context", "Corners", "Drawn", "Plan", "Stroke", "freeze", "read_context"]

Corners = tuple[tuple[float, float], ...]

_AREAS = ("rectangle", "ellipse", "polygon")
_MARKS = ("keypoint", "brush")
_WORDS = {
    "rectangle": "rectangle",
    "ellipse": "ellipse",
    "polygon": "polygon",
    "keypoint": "key point",
    "brush": "brush stroke",
}
_BARE = (*_AREAS, *_MARKS, "vector", "bitmask")
"""Types of regions without a label."""
_MAX_CORNERS = 10_000


@dataclass(frozen=True)
class Stroke:
    """Pixels that were brushed.

    Attributes:
        rle: in Label Studio's own encoding.
        size: ``(height, width)`` that it was drawn at.
    """

    rle: tuple[int, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Drawn:
    """What was drawn with a smart tool.

    Attributes:
        label: value of its label.
        from_name: the tag it was drawn with.
        kind: ``"rectangle"``, ``"ellipse"`` or ``"polygon"``, inside which the label is looked for; or ``"keypoint"``
            or ``"brush"``, which mark the regions that are wanted.
        outline: of an area, ``(x, y)`` as shares of the upright image's width and height.
        points: key points, in the same way.
        strokes: of a brush.
    """

    label: str
    from_name: str
    kind: str
    outline: Corners = ()
    points: Corners = ()
    strokes: tuple[Stroke, ...] = ()

    @property
    def word(self) -> str:
        """What people call it."""
        return _WORDS[self.kind]


@dataclass(frozen=True)
class Context:
    """What an annotator did that asks for a prediction: one of the two, or neither where nothing is asked for.

    Attributes:
        text: what was typed into the prompt field.
        drawn: what was drawn with a smart tool.
    """

    text: str | None = None
    drawn: Drawn | None = None


@dataclass(frozen=True)
class Asked:
    """What an annotator did, and on which image.

    Attributes:
        context: what was typed or drawn.
        config: of that image.
        item_index: the page, where the image's tag has several; ``None`` where it has not, or does not say.
        crowded: whether other texts stand in the prompt field beside the one that was typed: earlier prompts, and what
            was said about them.
    """

    context: Context
    config: LabelingConfig
    item_index: int | None = None
    crowded: bool = False


@dataclass(frozen=True)
class Plan:
    """What to find in an image.

    Attributes:
        config: the labels, and the tags to draw with.
        added: prompts beyond the configuration's, by label.
        label: only regions of this label are wanted; ``None`` wants all.
        prompts: these prompts stand for that label, instead of all that it has.
        drawn: the label is looked for there: inside an area, in which it competes with nothing but the background, or
            under marks.
        note: stands in the regions' ``meta``.
        known: results that the task has already; regions of the same label in the same place take over their ids.
    """

    config: LabelingConfig
    added: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str | None = None
    prompts: tuple[str, ...] | None = None
    drawn: Drawn | None = None
    note: str | None = None
    known: tuple[Mapping[str, Any], ...] = ()

    def controls(self) -> Sequence[Control]:
        """Tags to draw the answer with; what was drawn is drawn again only where nothing else can be."""
        if self.drawn is None:
            return self.config.drawing
        able = [control for control in self.config.controls if self.drawn.label in control.labels]
        others = [control for control in able if control.name != self.drawn.from_name and not control.skipped]
        if any(not control.holes_only for control in others):
            return others
        own = [replace(control, holes_only=False) for control in able if control.name == self.drawn.from_name]
        return own or [replace(control, holes_only=False) for control in others or able]


def freeze(added: Added) -> dict[str, tuple[str, ...]]:
    """A copy of a project's prompts that nobody changes."""
    return {label: tuple(prompts) for label, prompts in added.items()}


def read_context(context: Mapping[str, Any] | None, project: ProjectConfig) -> Asked | None:
    """Understand the context of an interactive request.

    Args:
        context: ``params.context``; ``None`` or without ``result`` is a request for the default prediction. With an
            empty list, as Label Studio's page sends it after *Submit*, nothing is asked for.
        project: the project's labeling configuration.

    Returns:
        What was typed or drawn, and where; ``None`` for the default prediction.

    Raises:
        SettingsError: what was drawn is of a kind that cannot be answered, cannot be read, or has no label.
    """
    results = (context or {}).get("result")
    if not isinstance(results, Sequence) or isinstance(results, str):
        return None
    if not results:
        return Asked(Context(), project.images[0])
    known = _without_labeled_texts(join_labels(results))
    if not known:
        raise SettingsError("the request holds nothing that was typed or drawn")
    last = known[-1]
    config = project.image_of(last.get("to_name"), last.get("from_name"))
    page = last.get("item_index")
    item_index = page if isinstance(page, int) and not isinstance(page, bool) else None
    tag = str(last.get("type"))
    if tag == "textarea" and last.get("from_name") in (None, config.prompt_name):
        texts = _texts(value_of_result(last).get("text"))
        return Asked(Context(text=texts[-1] if texts else None), config, item_index, crowded=len(texts) > 1)
    if not tag.endswith("labels") and tag not in _BARE:
        # A choice or a note of the annotator's own: Label Studio tells of these too, but nothing is asked.
        return Asked(Context(), config, item_index)
    return Asked(Context(drawn=_read_drawn(known, config)), config, item_index)


def _without_labeled_texts(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the labels of texts: Label Studio gives whatever it accepts the label that is selected at the time."""
    texts = {str(result.get("id")) for result in results if result.get("type") == "textarea"}
    return [result for result in results if result.get("type") == "textarea" or str(result.get("id")) not in texts]


def _texts(text: object) -> list[str]:
    """The texts in a field, the newest last."""
    texts = [text] if isinstance(text, str) else text if isinstance(text, Sequence) else []
    return [part for part in texts if isinstance(part, str) and part.strip()]


def _read_drawn(results: Sequence[Mapping[str, Any]], config: LabelingConfig) -> Drawn:
    """The newest area, or all marks of the newest mark's kind and label."""
    last = results[-1]
    tag = str(last.get("type"))
    kind = tag.removesuffix("labels")
    if kind not in (*_AREAS, *_MARKS):
        raise SettingsError(
            f"a result of the type {tag!r} cannot be answered; type a prompt, or use a rectangle, an ellipse, a "
            "polygon, a key point or a brush stroke"
        )
    label = _label(last, tag, config)
    from_name = str(last.get("from_name"))
    try:
        if kind in _AREAS:
            return Drawn(label, from_name, kind, outline=_outline(kind, value_of_result(last)))
        marks = [each for each in results if each.get("type") == tag and _label(each, tag, config) == label]
        if kind == "keypoint":
            return Drawn(label, from_name, kind, points=tuple(_point(value_of_result(each)) for each in marks))
        return Drawn(label, from_name, kind, strokes=tuple(_stroke(each) for each in marks))
    except ValueError as error:
        raise SettingsError(f"the {_WORDS[kind]} cannot be used: {error}") from error


def _label(result: Mapping[str, Any], tag: str, config: LabelingConfig) -> str:
    labels = value_of_result(result).get(tag)
    written = labels[0] if isinstance(labels, Sequence) and not isinstance(labels, str) and labels else None
    what = _WORDS[tag.removesuffix("labels")]
    if not isinstance(written, str):
        raise SettingsError(f"the {what} has no label; choose one before you draw")
    label = config.label_of(result.get("from_name"), written)
    if label is None or label not in config.labels:
        raise SettingsError(
            f"the {what} has the label {written!r}, for which no region can be drawn; choose one that a PolygonLabels, "
            "BrushLabels or RectangleLabels of this image has"
        )
    return label


def _outline(kind: str, value: Mapping[str, Any]) -> Corners:
    if kind == "rectangle":
        corners = rectangle_points(value, (1, 1))
    elif kind == "ellipse":
        corners = ellipse_points(value, (1, 1))
    else:
        points = value.get("points")
        if isinstance(points, Sequence) and len(points) > _MAX_CORNERS:
            raise ValueError(f"it has more than {_MAX_CORNERS} corners")
        corners = polygon_of_value("polygonlabels", value, (1, 1)).exterior.coords
    return tuple((float(x), float(y)) for x, y in corners)


def _point(value: Mapping[str, Any]) -> tuple[float, float]:
    try:
        return finite_number(value["x"]) / 100, finite_number(value["y"]) / 100
    except KeyError:
        raise ValueError("it lacks x or y") from None
    except ValueError:
        raise ValueError("it contains something that is not a finite number") from None


def _stroke(result: Mapping[str, Any]) -> Stroke:
    rle = value_of_result(result).get("rle")
    if not isinstance(rle, Sequence) or isinstance(rle, str) or not all(isinstance(byte, int) for byte in rle):
        raise ValueError("it has no rle")
    return Stroke(tuple(rle), image_size_of(result))
