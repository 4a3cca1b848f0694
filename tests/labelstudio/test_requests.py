from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from labelstudio_backend.brush_rle import encode_brush
from labelstudio_backend.labeling_config import ProjectConfig, parse_project_config
from labelstudio_backend.requests import Asked, Context, Drawn, Plan, read_context
from tcl_core.errors import SettingsError

Payload = Callable[[str], dict[str, Any]]

CONFIG = parse_project_config(
    '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
    '<Choices name="kind" toName="image"><Choice value="indoor"/></Choices>'
    '<PolygonLabels name="poly" toName="image"><Label value="cat" alias="c"/><Label value="dog"/></PolygonLabels>'
    '<BrushLabels name="brush" toName="image" model_regions="holes"><Label value="cat" alias="k"/></BrushLabels>'
    '<RectangleLabels name="rect" toName="image" smart="true" model_skip="true"><Label value="cat"/></RectangleLabels>'
    '<KeyPointLabels name="kp" toName="image" smart="true"><Label value="cat" alias="1"/><Label value="owl"/>'
    "</KeyPointLabels></View>"
)


def drawn(kind: str, value: dict[str, Any], from_name: str = "x", **more: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": from_name, "to_name": "image", "value": value, **more}


def asked(*results: Any, config: ProjectConfig = CONFIG) -> Asked:
    found = read_context({"result": list(results)}, config)
    assert found is not None
    return found


def drawing(*results: Any) -> Drawn:
    found = asked(*results).context.drawn
    assert found is not None
    return found


def test_recorded_prompt(payload: Payload) -> None:
    body = payload("predict_interactive_textarea")["body"]
    config = parse_project_config(body["label_config"])
    found = read_context(body["params"]["context"], config)
    assert found is not None and found.context == Context(text="green box") and found.config == config.images[0]


def test_recorded_rectangle(payload: Payload) -> None:
    body = payload("predict_interactive_rectanglelabels")["body"]
    config = parse_project_config(body["label_config"])
    found = read_context(body["params"]["context"], config)
    assert found is not None and found.context.drawn is not None and found.context.text is None
    area = found.context.drawn
    assert (area.label, area.from_name, area.kind) == ("rect ball", "rect", "rectangle")
    (left, top), _, (right, bottom), _ = area.outline
    assert (round(left, 2), round(top, 2), round(right, 2), round(bottom, 2)) == (0.15, 0.15, 0.45, 0.6)
    # Nothing but the rectangle's own tag has its label.
    assert [control.name for control in Plan(found.config, drawn=area).controls()] == ["rect"]


def test_what_was_drawn_is_filled_by_other_tags() -> None:
    value = {"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["cat"]}
    plan = Plan(CONFIG.images[0], drawn=drawing(drawn("rectanglelabels", value, "rect")))
    assert [(control.name, control.holes_only) for control in plan.controls()] == [("poly", False), ("brush", True)]


def test_a_tag_for_holes_alone_draws_everything_that_was_asked_for() -> None:
    """Where no other tag has the label, a smart stroke must not come to nothing."""
    config = parse_project_config(
        '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image" model_regions="holes">'
        '<Label value="cat"/></BrushLabels></View>'
    )
    stroke = Drawn("cat", "brush", "brush")
    assert [(each.name, each.holes_only) for each in Plan(config.images[0], drawn=stroke).controls()] == [
        ("brush", False)
    ]


def test_an_ellipse_and_a_polygon_are_areas() -> None:
    ellipse = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 90, "ellipselabels": ["cat"]}
    found = drawing(drawn("ellipselabels", ellipse))
    xs, ys = zip(*found.outline, strict=True)
    # Turned by a right angle on a square of percents, the radii change places.
    assert (min(xs), max(xs), min(ys), max(ys)) == pytest.approx((0.4, 0.6, 0.3, 0.7), abs=1e-6)
    points = {"points": [[0, 0], [50, 0], [50, 100]], "polygonlabels": ["c"]}
    assert drawing(drawn("polygonlabels", points, "poly")).outline[:3] == ((0, 0), (0.5, 0), (0.5, 1))


def test_all_marks_of_one_label_count() -> None:
    marks = [
        drawn("keypointlabels", {"x": 10, "y": 20, "width": 1, "keypointlabels": ["1"]}, "kp"),
        drawn("keypointlabels", {"x": 30, "y": 40, "width": 1, "keypointlabels": ["cat"]}, "kp"),
    ]
    found = drawing(*marks)
    assert found.label == "cat" and found.points == ((0.1, 0.2), (0.3, 0.4))
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 3:5] = True
    value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["k"]}
    (stroke,) = drawing(drawn("brushlabels", value, "brush", original_width=8, original_height=6)).strokes
    assert stroke.size == (6, 8) and list(stroke.rle) == value["rle"]


@pytest.mark.parametrize("context", [None, {}, {"result": None}, {"result": "x"}])
def test_without_a_context_everything_is_asked_for(context: Any) -> None:
    assert read_context(context, CONFIG) is None


def test_after_submit_nothing_is_asked() -> None:
    """Label Studio's page then sends an empty list; all regions would be suggested a second time."""
    assert read_context({"result": []}, CONFIG) == Asked(Context(), CONFIG.images[0])


def test_the_newest_of_several_texts_counts() -> None:
    found = asked(drawn("textarea", {"text": ["zebra", "what was said about it", "cat", " "]}, "prompt"))
    assert found.context == Context(text="cat") and found.crowded
    assert not asked(drawn("textarea", {"text": ["cat"]}, "prompt")).crowded
    assert asked(drawn("textarea", {"text": []}, "prompt")).context == Context()


@pytest.mark.parametrize(
    "result",
    [
        {"type": "textarea", "from_name": "another", "value": {"text": ["hello"]}},
        {"type": "textarea", "from_name": "prompt", "value": {"text": [" "]}},
        {"type": "textarea", "from_name": "prompt", "value": None},
        {"type": "choices", "from_name": "kind", "value": {"choices": ["indoor"]}},
    ],
)
def test_what_asks_for_nothing(result: Any) -> None:
    """Label Studio tells of every note and choice that is made while Auto-Annotation is on."""
    assert asked(result).context == Context()


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("nonsense", "nothing that was typed or drawn"),
        (drawn("rectanglelabels", {"x": 1, "y": 1, "width": 1, "height": 1}), "no label; choose one"),
        (drawn("rectangle", {"x": 1, "y": 1, "width": 1, "height": 1}), "no label; choose one"),
        (drawn("rectanglelabels", {"rectanglelabels": ["dogs"]}), "'dogs', for which no region can be drawn"),
        (drawn("keypointlabels", {"x": 1, "y": 2, "keypointlabels": ["owl"]}, "kp"), "'owl', for which no region"),
        (drawn("keypointlabels", {"x": 1, "keypointlabels": ["cat"]}, "kp"), "lacks x or y"),
        (drawn("keypointlabels", {"x": 1, "y": "nan", "keypointlabels": ["cat"]}, "kp"), "not a finite number"),
        (drawn("rectanglelabels", {"x": "wide", "y": 1, "rectanglelabels": ["cat"]}), "rectangle cannot be used"),
        (drawn("ellipselabels", {"x": 1, "ellipselabels": ["cat"]}), "ellipse cannot be used"),
        (drawn("polygonlabels", {"points": [[1, 1]], "polygonlabels": ["cat"]}), "fewer than three points"),
        (drawn("brushlabels", {"brushlabels": ["cat"]}), "brush stroke cannot be used: it has no rle"),
        (drawn("brushlabels", {"rle": [1], "brushlabels": ["cat"]}), "size of its image is missing"),
        (drawn("vectorlabels", {"vectorlabels": ["cat"]}), "'vectorlabels' cannot be answered"),
        (drawn("bitmasklabels", {"bitmasklabels": ["cat"]}), "'bitmasklabels' cannot be answered"),
    ],
)
def test_what_cannot_be_answered_says_why(result: Any, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        read_context({"result": [result]}, CONFIG)


def test_the_image_that_was_worked_on() -> None:
    pages = parse_project_config(
        '<View><Repeater on="$pages" indexFlag="{{idx}}"><Image name="page_{{idx}}" value="$pages[{{idx}}]"/>'
        '<RectangleLabels name="box_{{idx}}" toName="page_{{idx}}"><Label value="car"/></RectangleLabels></Repeater>'
        '<Image name="last" valueList="$more"/><PolygonLabels name="p" toName="last"><Label value="moon"/>'
        "</PolygonLabels></View>"
    )
    value = {"x": 1, "y": 1, "width": 1, "height": 1, "rectanglelabels": ["car"]}
    found = asked({**drawn("rectanglelabels", value, "box_12"), "to_name": "page_12"}, config=pages)
    assert found.config.image_name == "page_12" and found.config.controls[0].name == "box_12"
    area = {"points": [[0, 0], [1, 0], [1, 1]], "polygonlabels": ["moon"]}
    found = asked({**drawn("polygonlabels", area, "p"), "to_name": "last", "item_index": 2}, config=pages)
    assert (found.config.image_name, found.item_index) == ("last", 2)
