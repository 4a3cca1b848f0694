"""From a request to a plan: what has to be found in an image, and as what it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labelstudio_backend.labeling_config import Control, LabelingConfig
from labelstudio_backend.prompts import Added
from labelstudio_backend.shapes import rectangle_points
from tcl_core.errors import SettingsError

__all__ = ["Context", "Plan", "SmartBox", "read_context"]

Corners = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class SmartBox:
    """A rectangle that was drawn to be filled.

    Attributes:
        label: value of its label.
        from_name: the tag it was drawn with.
        corners: four ``(x, y)``, as shares of the upright image's width and height.
    """

    label: str
    from_name: str
    corners: Corners


@dataclass(frozen=True)
class Context:
    """What an annotator did that asks for a prediction.

    Attributes:
        text: what was typed into the prompt field, if anything.
        box: the smart rectangle that was drawn, if any.
    """

    text: str | None = None
    box: SmartBox | None = None


@dataclass(frozen=True)
class Plan:
    """What to find in an image.

    Attributes:
        config: the labels, and the tags to draw with.
        added: prompts beyond the configuration's, by label.
        label: only regions of this label are wanted; ``None`` wants all.
        prompts: these prompts stand for that label, instead of all that it has.
        box: the prediction is limited to this box, in which the label competes with nothing but the background.
        note: stands in the regions' ``meta``.
    """

    config: LabelingConfig
    added: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str | None = None
    prompts: tuple[str, ...] | None = None
    box: Corners | None = None
    note: str | None = None

    def controls(self, box: SmartBox | None) -> Sequence[Control] | None:
        """Tags to draw an answer with; the smart rectangle itself is drawn again only where nothing else can be."""
        if box is None:
            return None
        able = [control for control in self.config.controls if box.label in control.labels]
        others = [control for control in able if control.name != box.from_name and not control.skipped]
        return others or [control for control in able if control.name == box.from_name]


def freeze(added: Added) -> dict[str, tuple[str, ...]]:
    """A copy of a project's prompts that nobody changes."""
    return {label: tuple(prompts) for label, prompts in added.items()}


def read_context(context: Mapping[str, Any] | None, config: LabelingConfig) -> Context | None:
    """Understand the context of an interactive request.

    Args:
        context: ``params.context``; ``None`` or without results is a request for the default prediction.
        config: the project's labeling configuration.

    Returns:
        What was typed or drawn; empty where it is something that cannot be answered, such as a key point. ``None``
        for the default prediction.

    Raises:
        SettingsError: what was drawn is not a rectangle, or has no label.
    """
    results = (context or {}).get("result")
    if not isinstance(results, Sequence) or isinstance(results, str) or not results:
        return None
    for result in reversed(results):
        if not isinstance(result, Mapping):
            continue
        value = result.get("value")
        value = value if isinstance(value, Mapping) else {}
        kind = result.get("type")
        if kind == "textarea" and result.get("from_name") in (None, config.prompt_name):
            if (text := _last_text(value.get("text"))) is not None:
                return Context(text=text)
        if kind == "rectanglelabels":
            return Context(box=_read_box(result, value, config))
    return Context()


def _last_text(text: object) -> str | None:
    """The newest of the texts in a field."""
    texts = [text] if isinstance(text, str) else text if isinstance(text, Sequence) else []
    written = [part for part in texts if isinstance(part, str) and part.strip()]
    return written[-1] if written else None


def _read_box(result: Mapping[str, Any], value: Mapping[str, Any], config: LabelingConfig) -> SmartBox:
    labels = value.get("rectanglelabels")
    label = labels[0] if isinstance(labels, Sequence) and labels else None
    if not isinstance(label, str) or label not in config.labels:
        raise SettingsError(
            f"the rectangle has the label {label!r}, which is not predicted; choose a label before you draw"
        )
    try:
        corners = rectangle_points(value, (1, 1))
    except ValueError as error:
        raise SettingsError(f"the rectangle cannot be used: {error}") from error
    return SmartBox(label, str(result.get("from_name")), tuple((float(x), float(y)) for x, y in corners))
