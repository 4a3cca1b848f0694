from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.requests import Context, Plan, read_context
from tcl_core.errors import SettingsError

Payload = Callable[[str], dict[str, Any]]


def test_recorded_prompt(payload: Payload) -> None:
    body = payload("predict_interactive_textarea")["body"]
    config = parse_labeling_config(body["label_config"])
    assert read_context(body["params"]["context"], config) == Context(text="green box")


def test_recorded_rectangle(payload: Payload) -> None:
    body = payload("predict_interactive_rectanglelabels")["body"]
    config = parse_labeling_config(body["label_config"])
    context = read_context(body["params"]["context"], config)
    assert context is not None and context.box is not None and context.text is None
    assert (context.box.label, context.box.from_name) == ("rect ball", "rect")
    (left, top), _, (right, bottom), _ = context.box.corners
    assert (round(left, 2), round(top, 2), round(right, 2), round(bottom, 2)) == (0.15, 0.15, 0.45, 0.6)
    # Nothing but the rectangle's own tag has its label.
    assert [control.name for control in Plan(config).controls(context.box) or ()] == ["rect"]


def test_a_rectangle_is_filled_by_other_tags(payload: Payload) -> None:
    body = payload("predict_interactive_textarea")["body"]
    config = parse_labeling_config(body["label_config"])
    value = {"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["red ball"]}
    context = read_context({"result": [{"type": "rectanglelabels", "from_name": "rect", "value": value}]}, config)
    assert context is not None and context.box is not None
    assert [control.name for control in Plan(config).controls(context.box) or ()] == ["brush", "poly"]


@pytest.mark.parametrize("context", [None, {}, {"result": []}, {"result": None}, {"result": "x"}])
def test_without_a_context_everything_is_asked_for(context: Any, payload: Payload) -> None:
    config = parse_labeling_config(payload("predict_on_task_open")["body"]["label_config"])
    assert read_context(context, config) is None


@pytest.mark.parametrize(
    "result",
    [
        {"type": "keypointlabels", "value": {"x": 1, "y": 2, "keypointlabels": ["kp ball"]}},
        {"type": "textarea", "from_name": "another", "value": {"text": ["hello"]}},
        {"type": "textarea", "from_name": "prompt", "value": {"text": [" "]}},
        {"type": "textarea", "from_name": "prompt", "value": None},
        "nonsense",
    ],
)
def test_what_cannot_be_answered_gives_nothing(result: Any, payload: Payload) -> None:
    config = parse_labeling_config(payload("predict_on_task_open")["body"]["label_config"])
    assert read_context({"result": [result]}, config) == Context()


@pytest.mark.parametrize(
    "value",
    [
        {"x": 1, "y": 1, "width": 1, "height": 1},
        {"x": 1, "y": 1, "width": 1, "height": 1, "rectanglelabels": ["dog"]},
        {"x": "wide", "y": 1, "width": 1, "height": 1, "rectanglelabels": ["red ball"]},
    ],
)
def test_rectangles_that_cannot_be_used(value: dict[str, Any], payload: Payload) -> None:
    config = parse_labeling_config(payload("predict_on_task_open")["body"]["label_config"])
    with pytest.raises(SettingsError, match="rectangle"):
        read_context({"result": [{"type": "rectanglelabels", "from_name": "rect", "value": value}]}, config)
