"""One set of labels (``Labels``) for tools of several shapes: read, drawn, asked with, exported and replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely.affinity

from labelstudio_backend.config_writer import SHAPES, Shape, labeling_config_xml
from labelstudio_backend.export import export_tasks
from labelstudio_backend.known_regions import KnownRegions, results_of_task
from labelstudio_backend.labeled_shapes import join_labels
from labelstudio_backend.labeling_config import parse_labeling_config, parse_project_config
from labelstudio_backend.requests import Plan, read_context
from labelstudio_backend.results import region_results
from labelstudio_backend.shapes import cropped_mask, mask_of_value
from tcl_core.errors import SettingsError
from tcl_core.polygons.rasterize import polygon_to_mask
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Vocabulary

SIZE = (40, 60)
XML = """<View>
  <TextArea name="prompt" toName="image"/>
  <Labels name="labels" toName="image"><Label value="Cat" alias="c" predicted_values="cat, kitten"/>
    <Label value="Sofa" model_score_threshold="0.5"/></Labels>
  <Rectangle name="box" toName="image" smart="true" smartOnly="true"/>
  <KeyPoint name="point" toName="image" smart="true"/>
  <Polygon name="polygon" toName="image"/>
  <Brush name="brush" toName="image"/>
  <Image name="image" value="$image"/>
</View>"""
PROJECT = parse_project_config(XML)
(CONFIG,) = PROJECT.images


def block(left: int, top: int, right: int, bottom: int) -> Region:
    label_map = np.zeros(SIZE, dtype=np.int32)
    label_map[top:bottom, left:right] = 1
    scores = np.full(SIZE, 0.5, dtype=np.float32)
    (region,) = label_map_to_regions(Segmentation(label_map, scores, Vocabulary.from_options(["Cat"])))
    return region


def shape(kind: str, number: str, value: dict[str, Any], labels: list[str] | None = None) -> list[dict[str, Any]]:
    """What Label Studio sends for a region: the shape, and its label."""
    common = {"id": number, "to_name": "image", "original_width": SIZE[1], "original_height": SIZE[0]}
    found = [{**common, "type": kind, "from_name": {"rectangle": "box", "keypoint": "point"}[kind], "value": value}]
    if labels:
        found.append({**common, "type": "labels", "from_name": "labels", "value": {**value, "labels": labels}})
    return found


def test_labels_are_read_once_and_one_shape_is_predicted() -> None:
    assert CONFIG.values == ("Cat", "Sofa") and CONFIG.labels["Cat"] == (("cat", "kitten"), None)
    assert CONFIG.labels["Sofa"][1] == 0.5
    (control,) = CONFIG.drawing
    assert (control.name, control.kind, control.labels_name) == ("polygon", "polygon", "labels")
    both = XML.replace('<Brush name="brush"', '<Brush name="brush" model_skip="false"')
    assert [each.name for each in parse_labeling_config(both).drawing] == ["polygon", "brush"]
    other = XML.replace('<Polygon name="polygon"', '<Polygon name="polygon" model_skip="true"')
    assert [each.name for each in parse_labeling_config(other).drawing] == ["brush"]


def test_tags_with_labels_of_their_own_come_first() -> None:
    """As before there were others: who has both gets no further regions."""
    own = '<RectangleLabels name="r" toName="image"><Label value="Dog"/></RectangleLabels></View>'
    config = parse_labeling_config(XML.replace("</View>", own))
    assert config.values == ("Dog",) and [each.name for each in config.drawing] == ["r"]


@pytest.mark.parametrize("kind", SHAPES)
def test_what_setup_writes_has_every_label_once(kind: Shape) -> None:
    xml = labeling_config_xml(Vocabulary.from_options(["Sofa=sofa,couch", "cat"]), kind)
    assert xml.count("<Label ") == 2 and "background=" not in xml
    config = parse_labeling_config(xml)
    (control,) = config.drawing
    assert control.kind == {"polygon": "polygon", "brush": "brush", "box": "rectangle"}[kind]


def test_a_region_is_a_shape_and_its_label() -> None:
    shape_result, label = region_results(CONFIG, [("Cat", block(3, 4, 30, 20))], SIZE)
    assert (shape_result["type"], shape_result["from_name"]) == ("polygon", "polygon")
    assert (label["type"], label["from_name"], label["value"]["labels"]) == ("labels", "labels", ["c"])
    assert shape_result["id"] == label["id"]
    (joined,) = join_labels([shape_result, label])
    mask = mask_of_value(joined["type"], joined["value"], SIZE)
    assert mask.sum() == 27 * 16 and mask[4:20, 3:30].all()


def test_a_hole_stays_in_one_region() -> None:
    label_map = np.zeros(SIZE, dtype=np.int32)
    label_map[5:35, 5:50] = 1
    label_map[15:25, 20:30] = 0
    scores = np.full(SIZE, 0.5, dtype=np.float32)
    regions = label_map_to_regions(Segmentation(label_map, scores, Vocabulary.from_options(["Cat"])))
    results = join_labels(region_results(CONFIG, [("Cat", region) for region in regions], SIZE))
    assert [result["type"] for result in results] == ["polygonlabels"]
    assert np.array_equal(mask_of_value("polygonlabels", results[0]["value"], SIZE), label_map > 0)


def test_a_simplified_polygon_is_not_replaced_by_the_pixels_outline() -> None:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    label_map = (np.hypot(rows - 20, columns - 30) < 15 + 2 * np.sin(columns)).astype(np.int32)
    scores = np.full(SIZE, 0.5, dtype=np.float32)
    segmentation = Segmentation(label_map, scores, Vocabulary.from_options(["Cat"]))
    (region,) = label_map_to_regions(segmentation, min_area=20, tolerance="easy-to-edit")
    points = region_results(CONFIG, [("Cat", region)], SIZE)[0]["value"]["points"]
    assert region.polygon is not None and len(points) == len(region.polygon.exterior.coords) - 1


def test_a_smart_box_has_the_label_of_its_twin() -> None:
    value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}
    asked = read_context({"result": shape("rectangle", "a", value, ["c"])}, PROJECT)
    assert asked is not None and asked.context.drawn is not None
    drawn = asked.context.drawn
    assert (drawn.label, drawn.kind, drawn.from_name) == ("Cat", "rectangle", "box")
    assert [each.name for each in Plan(CONFIG, label="Cat", drawn=drawn).controls()] == ["polygon"]
    point = read_context({"result": shape("keypoint", "b", {"x": 1, "y": 2, "width": 1}, ["Sofa"])}, PROJECT)
    assert point is not None and point.context.drawn is not None and point.context.drawn.label == "Sofa"
    with pytest.raises(SettingsError, match="has no label; choose one"):
        read_context({"result": shape("rectangle", "a", value)}, PROJECT)


@pytest.mark.parametrize("kind", ["labels", "polygonlabels"])
def test_a_prompt_that_was_given_a_label_is_still_a_prompt(kind: str) -> None:
    """Label Studio gives accepted texts the label that is selected."""
    text = {"id": "t", "type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": ["a", "b"]}}
    label = {"id": "t", "type": kind, "from_name": "labels", "to_name": "image", "value": {kind: ["c"]}}
    asked = read_context({"result": [text, label]}, PROJECT)
    assert asked is not None and asked.context.text == "b"


def test_ids_may_be_anything() -> None:
    for number in (None, [1], {"a": 1}, 5, "x" * 10_000):
        results = [{"id": number, "type": "labels", "value": 3}, {"id": number, "type": ["polygon"]}, 7]
        assert len(join_labels(results)) == 2
        assert len(results_of_task([{"result": results}], [{"result": 5}], 5, None)) <= 2


def test_what_is_drawn_already_is_replaced() -> None:
    """A region that shares half of the smaller one takes over its id, once; a label's regions are its own."""
    old = region_results(CONFIG, [("Cat", block(0, 0, 20, 20)), ("Sofa", block(30, 0, 50, 20))], SIZE)
    known = results_of_task([{"result": old}], None, [{"result": old[:1]}])
    cat, sofa = (result["id"] for result in old[::2])
    replaced = KnownRegions(known, CONFIG, SIZE)
    new = [
        ("Cat", block(2, 2, 25, 22)),
        ("Cat", block(0, 0, 20, 20)),
        ("Cat", block(30, 0, 50, 20)),
        ("Sofa", block(29, 0, 52, 20)),
    ]
    ids = [result["id"] for result in region_results(CONFIG, new, SIZE, known=replaced)[::2]]
    # Of two that fit, the first one takes the place.
    assert ids[0] == cat and ids[3] == sofa and len(set(ids)) == 4


def test_regions_of_other_labels_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image with a hundred regions was made into a hundred masks of its size for every prompt."""
    size, made = (6000, 8000), []

    def counted(kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> tuple[tuple[int, int], Any]:
        corner, mask = cropped_mask(kind, value, size)
        made.append(mask.size)
        return corner, mask

    monkeypatch.setattr("labelstudio_backend.known_regions.cropped_mask", counted)
    square = block(0, 0, 20, 20)
    assert square.polygon is not None
    squares = [
        replace(square, bbox=(50 * at, 0, 20, 20), polygon=shapely.affinity.translate(square.polygon, 50 * at))
        for at in range(1, 100)
    ]
    old = region_results(CONFIG, [("Cat", square), *(("Sofa", each) for each in squares)], size)
    replaced = KnownRegions(results_of_task([{"result": old}]), CONFIG, size)
    assert replaced.take(CONFIG.drawing[0], "Cat", block(2, 2, 25, 22)) == old[0]["id"]
    assert len(made) == 1 and made[0] <= 22 * 22
    # Each is read once, whatever is asked for.
    for each in squares[::10]:
        assert replaced.take(CONFIG.drawing[0], "Sofa", each) is not None
    assert len(made) == len(squares) + 1


def test_a_cropped_mask_is_a_part_of_the_whole_one() -> None:
    """Compared with a frame of the image's size, also for polygons that leave the image or cross themselves."""
    rng = np.random.default_rng(5)
    size = (60, 90)
    for trial in range(200):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
        radius = rng.uniform(2, 60, len(angles))
        points = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1) + rng.uniform(-20, 120, 2)
        if trial % 5 == 0:
            points = np.concatenate([points, points[:1], points[:1] + 1])
        value = {"points": points.tolist()}
        polygon = shapely.Polygon(points / 100 * (size[1], size[0]))
        if polygon.is_valid:
            inside = shapely.get_parts(shapely.intersection(polygon, shapely.box(0, 0, size[1], size[0])))
        else:
            inside = [shapely.Polygon(np.clip(np.asarray(polygon.exterior.coords), 0, (size[1], size[0])))]
        wanted = np.zeros(size, dtype=bool)
        for part in inside:
            if isinstance(part, shapely.Polygon):
                wanted |= polygon_to_mask(part, size)
        assert np.array_equal(mask_of_value("polygonlabels", value, size), wanted)
        (left, top), part = cropped_mask("polygonlabels", value, size)
        assert part.sum() == wanted.sum() and left >= 0 and top >= 0
    assert cropped_mask("polygonlabels", {"points": [[200, 200], [210, 200], [210, 210]]}, size)[1].size == 0


def test_regions_of_another_page_are_not_replaced() -> None:
    paged = replace(CONFIG, item_index=1)
    old = region_results(replace(CONFIG, item_index=0), [("Cat", block(0, 0, 20, 20))], SIZE)
    taken = KnownRegions(results_of_task([{"result": old}]), paged, SIZE)
    assert taken.take(CONFIG.drawing[0], "Cat", block(0, 0, 20, 20)) is None


def test_labels_of_the_task() -> None:
    project = parse_project_config(XML.replace(XML[XML.index("<Labels") : XML.index("</Labels>")], DYNAMIC), 10)
    data = {"image": "a.png", "names": ["Cat", {"value": "Dog", "predicted_values": "dog,puppy", "background": "red"}]}
    ((config, url),) = project.images_of(data)
    assert url == "a.png" and config.values == ("Cat", "Dog") and config.labels["Dog"][0] == ("dog", "puppy")
    assert [each.name for each in config.drawing] == ["polygon"]
    box = shape("rectangle", "a", {"x": 1, "y": 1, "width": 5, "height": 5}, ["Dog"])
    asked = read_context({"result": box}, project.for_task(data))
    assert asked is not None and asked.context.drawn is not None and asked.context.drawn.label == "Dog"


DYNAMIC = '<Labels name="labels" toName="image" value="$names">'


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "no list 'names'"),
        ("Cat", "no list 'names'"),
        ([], "no label to predict"),
        ([5], "the entry 5, which is no label"),
        (["Cat"] * 11, "more than 10"),
    ],
)
def test_labels_that_the_task_lacks(names: object, message: str) -> None:
    project = parse_project_config(XML.replace(XML[XML.index("<Labels") : XML.index("</Labels>")], DYNAMIC), 10)
    ((_, error),) = project.images_of({"image": "a.png", "names": names})
    assert isinstance(error, SettingsError) and message in str(error)


def test_export_reads_both_results(tmp_path: Path) -> None:
    import json

    results = region_results(CONFIG, [("Cat", block(3, 4, 30, 20))], SIZE)
    task = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"id": 1, "result": results}]}
    summary = export_tasks([task], PROJECT, tmp_path / "coco.json", size_of=lambda _: SIZE)
    assert (summary.annotations, summary.left_out, summary.failed) == (1, {}, {})
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert coco["annotations"][0]["area"] == 27 * 16
    assert {each["id"]: each["name"] for each in coco["categories"]}[coco["annotations"][0]["category_id"]] == "Cat"
