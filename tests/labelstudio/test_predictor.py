from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import measure

from labelstudio_backend.brush_rle import encode_brush
from labelstudio_backend.interactive import Question, answer
from labelstudio_backend.labeling_config import LabelingConfig, parse_labeling_config
from labelstudio_backend.model_options import ModelOptions, model_version
from labelstudio_backend.predictor import Predictor
from labelstudio_backend.requests import Context, Drawn, Plan, Stroke
from labelstudio_backend.shapes import mask_of_value
from tcl_core.errors import ImageError, SettingsError, VocabularyError
from tcl_core.images import load_image
from tcl_core.polygons.rasterize import mask_iou
from tcl_core.segmentation.session import ImageSession
from tcl_core.segmentation.specks import without_specks
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary

SIZE = (96, 128)


def config(labels: str, **view: str) -> LabelingConfig:
    attributes = "".join(f' {name}="{value}"' for name, value in view.items())
    return parse_labeling_config(
        f'<View{attributes}><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
        f'<BrushLabels name="brush" toName="image">{labels}</BrushLabels>'
        f'<RectangleLabels name="rect" toName="image" model_skip="true">{labels}</RectangleLabels></View>'
    )


PLAIN = config('<Label value="Sofa" predicted_values="sofa,couch"/><Label value="cat"/><Label value="sky"/>')


@pytest.fixture(scope="module")
def image() -> bytes:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize((SIZE[1], SIZE[0]), Image.Resampling.NEAREST).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def predictor(model_path: Path) -> Predictor:
    options = ModelOptions(str(model_path), min_area=0)
    return Predictor(options.load(), options, cache_bytes=64 << 20)


def label_map(results: list[dict[str, Any]], names: Mapping[str, int]) -> NDArray[np.int32]:
    """What brush results cover, by label."""
    found = np.zeros(SIZE, dtype=np.int32)
    for result in results:
        (label,) = result["value"]["brushlabels"]
        found[mask_of_value("brushlabels", result["value"], SIZE)] = names[label]
    return found


NAMES = {"Sofa": 1, "cat": 2, "sky": 3}


def direct(predictor: Predictor, image: bytes, wanted: LabelingConfig) -> Segmentation:
    return predictor.segmenter.segment_image(load_image(image), wanted.vocabulary())


def test_default_prediction_is_what_the_segmenter_says(predictor: Predictor, image: bytes) -> None:
    found = predictor.predict(image, Plan(PLAIN))
    expected = direct(predictor, image, PLAIN).label_map
    assert found.size == SIZE and set(np.unique(expected)) > {0}
    assert np.array_equal(label_map(found.results, NAMES), expected)
    assert 0 < found.score <= 1 and found.notes == ()


def test_cached_features_and_planes_give_the_same(predictor: Predictor, image: bytes) -> None:
    fresh = Predictor(predictor.segmenter, predictor.options, cache_bytes=0)
    again = predictor.predict(image, Plan(PLAIN)).results
    anew = fresh.predict(image, Plan(PLAIN)).results
    assert np.array_equal(label_map(again, NAMES), label_map(anew, NAMES))


def test_a_selected_label_competes_but_comes_alone(predictor: Predictor, image: bytes) -> None:
    everything = label_map(predictor.predict(image, Plan(PLAIN)).results, NAMES)
    found = answer(predictor, Question(PLAIN, {}, Context(text="sofa")), image)
    assert np.array_equal(label_map(found.prediction.results, NAMES), np.where(everything == 1, 1, 0))
    assert found.learned is None


def test_polygons_lie_where_the_masks_are(predictor: Predictor, image: bytes) -> None:
    """Regions are found in a part of the image and moved to their place."""
    polygons = parse_labeling_config(
        '<View><Image name="image" value="$image"/><PolygonLabels name="p" toName="image"><Label value="cat"/>'
        '</PolygonLabels><BrushLabels name="b" toName="image"><Label value="cat"/></BrushLabels></View>'
    )
    few = Predictor(predictor.segmenter, replace(predictor.options, min_area=150, tolerance="fine"), cache_bytes=0)
    results = few.predict(image, Plan(polygons, label="cat")).results
    drawn = {kind: [r["value"] for r in results if r["type"] == kind] for kind in ("polygonlabels", "brushlabels")}
    masks = [mask_of_value("brushlabels", value, SIZE) for value in drawn["brushlabels"]]
    assert drawn["polygonlabels"]
    for value in drawn["polygonlabels"]:
        outline = mask_of_value("polygonlabels", value, SIZE)
        assert max(mask_iou(outline, mask) for mask in masks) >= 0.98


@pytest.mark.parametrize("min_area", ["auto", 150, 600])
def test_specks_of_a_part_are_those_of_the_image(predictor: Predictor, image: bytes, min_area: int | str) -> None:
    """Regions are found in a part of the image, beside which there is background that is no speck."""
    label_map = np.zeros(SIZE, dtype=np.int32)
    label_map[10:40, 20:50] = 1
    label_map[11:14, 22:25] = label_map[30:40, 30:50] = 2
    label_map[10, 20] = label_map[14, 60] = 3
    maps = Segmentation(label_map, (label_map > 0).astype(np.float32), PLAIN.vocabulary())
    few = Predictor(predictor.segmenter, replace(predictor.options, min_area=min_area), cache_bytes=0)
    found = np.zeros(SIZE, dtype=np.int32)
    for region in few._regions(maps, None):
        found[region.full_mask(SIZE)] = region.label_id
    expected = without_specks(maps, predictor.segmenter.model, min_area).label_map
    assert np.array_equal(found, expected) and not np.array_equal(expected, label_map)


def test_a_typed_prompt_is_learned_by_its_label(predictor: Predictor, image: bytes) -> None:
    found = answer(predictor, Question(PLAIN, {}, Context(text="cat: red dog")), image)
    assert found.learned == ("cat", "red dog")
    labels = list(PLAIN.vocabulary().labels)
    labels[1] = replace(labels[1], prompts=("red dog",))
    vocabulary = replace(PLAIN.vocabulary(), labels=tuple(labels))
    expected = predictor.segmenter.segment_image(load_image(image), vocabulary).label_map
    assert np.array_equal(label_map(found.prediction.results, NAMES), np.where(expected == 2, 2, 0))


def test_the_nearest_label_takes_a_free_prompt_and_says_so(predictor: Predictor, image: bytes) -> None:
    found = answer(predictor, Question(PLAIN, {}, Context(text="blue ball")), image)
    assert found.learned is not None
    label, prompt = found.learned
    prompts = [("Sofa", "sofa"), ("Sofa", "couch"), ("cat", "cat"), ("sky", "sky")]
    vectors = predictor.segmenter.embed_prompts(["blue ball", *(text for _, text in prompts)]).tensors()["text"]
    assert label == prompts[int((vectors[1:] @ vectors[0]).argmax())][0] and prompt == "blue ball"
    for result in found.prediction.results:
        assert result["value"]["brushlabels"] == [label]
        assert "blue ball" in result["meta"]["text"][0] and label in result["meta"]["text"][0]


def test_learned_prompts_count_for_the_next_image(predictor: Predictor, image: bytes) -> None:
    added = {"cat": ["green tree"]}
    found = answer(predictor, Question(PLAIN, added), image).prediction
    vocabulary = PLAIN.vocabulary(added)
    expected = predictor.segmenter.segment_image(load_image(image), vocabulary).label_map
    assert np.array_equal(label_map(found.results, NAMES), expected)


WIDE = config('<Label value="sky"/><Label value="cat"/>', model_background="false")
"""Without background, as many configurations are."""
CENTER = ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))


def expected_alone(predictor: Predictor, image: bytes, wanted: LabelingConfig, label: str) -> NDArray[np.bool_]:
    """Where a label wins against the background and nothing else: all others are never strong enough."""
    labels = [
        each if value == label else replace(each, threshold=1.0)
        for value, each in zip(wanted.values, wanted.vocabulary().labels, strict=True)
    ]
    segmentation = predictor.segmenter.segment_image(load_image(image), Vocabulary(tuple(labels)))
    return segmentation.label_map == wanted.values.index(label) + 1


@pytest.mark.parametrize("label", ["sky", "cat"])
def test_a_label_competes_with_the_background_inside_an_area(predictor: Predictor, image: bytes, label: str) -> None:
    """Also where the vocabulary has no background: what was drawn is not the answer."""
    box = Drawn(label, "rect", "rectangle", outline=CENTER)
    found = answer(predictor, Question(WIDE, {}, Context(drawn=box)), image).prediction
    inside = np.zeros(SIZE, dtype=bool)
    inside[24:72, 32:96] = True
    expected = expected_alone(predictor, image, WIDE, label) & inside
    assert np.array_equal(label_map(found.results, NAMES) == NAMES[label], expected)
    assert not np.array_equal(expected, inside) and bool(found.results) == expected.any() == (not found.reason)


def test_an_outline_that_crosses_itself_is_an_area(predictor: Predictor, image: bytes) -> None:
    bow = ((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
    found = answer(predictor, Question(WIDE, {}, Context(drawn=Drawn("sky", "p", "polygon", outline=bow))), image)
    map_of_bow = label_map(found.prediction.results, NAMES) > 0
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    y, x = (rows + 0.5) / SIZE[0], (columns + 0.5) / SIZE[1]
    inside = np.abs(y - 0.5) < np.abs(x - 0.5)
    assert np.array_equal(map_of_bow, expected_alone(predictor, image, WIDE, "sky") & inside)


def pieces(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    return measure.label(mask, connectivity=1)


def mark(kind: str, label: str, place: NDArray[np.bool_]) -> Drawn:
    """A key point or a stroke at the first pixel of a mask."""
    y, x = (int(axis[0]) for axis in np.nonzero(place))
    if kind == "keypoint":
        return Drawn(label, "kp", kind, points=(((x + 0.5) / SIZE[1], (y + 0.5) / SIZE[0]),))
    stroke = np.zeros(SIZE, dtype=bool)
    stroke[y, x] = True
    return Drawn(label, "brush", kind, strokes=(Stroke(tuple(encode_brush(stroke)), SIZE),))


@pytest.mark.parametrize("kind", ["keypoint", "brush"])
def test_marks_pick_the_regions_under_them(predictor: Predictor, image: bytes, kind: str) -> None:
    everything = label_map(predictor.predict(image, Plan(PLAIN)).results, NAMES)
    numbers = {label: pieces(everything == NAMES[label]) for label in NAMES}
    label = max(NAMES, key=lambda name: int(numbers[name].max()))
    assert numbers[label].max() >= 2
    for number in (1, 2):
        drawn = mark(kind, label, numbers[label] == number)
        found = answer(predictor, Question(PLAIN, {}, Context(drawn=drawn)), image).prediction
        assert np.array_equal(label_map(found.results, NAMES) > 0, numbers[label] == number)


def test_a_mark_in_another_label_finds_what_there_would_be_without_it(predictor: Predictor, image: bytes) -> None:
    everything = label_map(predictor.predict(image, Plan(PLAIN)).results, NAMES)
    alone = {label: expected_alone(predictor, image, PLAIN, label) for label in NAMES}
    taken = {label: alone[label] & (everything != NAMES[label]) for label in NAMES}
    label = max(NAMES, key=lambda name: int(taken[name].sum()))
    assert taken[label].any()
    drawn = mark("keypoint", label, taken[label])
    found = answer(predictor, Question(PLAIN, {}, Context(drawn=drawn)), image).prediction
    numbers = pieces(alone[label])
    expected = numbers == numbers[taken[label]][0]
    assert np.array_equal(label_map(found.results, NAMES) > 0, expected)


def test_a_mark_where_nothing_is_says_so(predictor: Predictor, image: bytes) -> None:
    strict = config('<Label value="sky" model_score_threshold="1"/>')
    for mark in (
        Drawn("sky", "kp", "keypoint", points=((0.5, 0.5), (7.0, 0.5))),
        Drawn("sky", "rect", "rectangle", outline=CENTER),
    ):
        found = answer(predictor, Question(strict, {}, Context(drawn=mark)), image).prediction
        assert found.results == [] and found.reason.startswith("no region of 'sky' was found")
    other = Drawn("sky", "b", "brush", strokes=(Stroke(tuple(encode_brush(np.ones((3, 4), bool))), (3, 4)),))
    with pytest.raises(SettingsError, match="4 x 3 pixels, but this one has 128 x 96"):
        answer(predictor, Question(strict, {}, Context(drawn=other)), image)
    broken = Drawn("sky", "b", "brush", strokes=(Stroke((1, 2, 3), SIZE),))
    with pytest.raises(SettingsError, match="stroke cannot be used"):
        answer(predictor, Question(strict, {}, Context(drawn=broken)), image)


def test_an_empty_prediction_says_why(predictor: Predictor, image: bytes) -> None:
    strict = config('<Label value="sky" model_score_threshold="1"/><Label value="giraffe"/>')
    found = predictor.predict(image, Plan(strict))
    assert found.results == [] and "'sky'" in found.reason and "'giraffe'" in found.reason
    found = answer(predictor, Question(strict, {}, Context(text="sky: red dog")), image).prediction
    assert found.results == [] and "'sky' was not found with 'red dog'" in found.reason
    hidden = parse_labeling_config(
        '<View><Image name="image" value="$image"/><BrushLabels name="b" toName="image" model_skip="true">'
        '<Label value="sky"/></BrushLabels></View>'
    )
    assert "no tag of the labeling configuration draws them" in predictor.predict(image, Plan(hidden)).reason
    assert predictor.predict(image, Plan(PLAIN)).reason == ""


def test_background_is_drawn_where_no_label_wins(predictor: Predictor, image: bytes) -> None:
    shown = '"Background" model_skip="false"'
    labels = f'<Label value="sky"/><Label value={shown} model_score_threshold="0.5"/>'
    found = predictor.predict(image, Plan(config(labels)))
    assert found.results[0]["value"]["brushlabels"] == ["Background"]
    names = {"sky": 1, "Background": 2}
    expected = direct(predictor, image, config(labels)).label_map
    assert np.array_equal(label_map(found.results, names), np.where(expected == 1, 1, 2))
    assert all(0 <= result["score"] <= 1 for result in found.results)
    # Nobody wants to draw around it, and it would catch the clicks on everything else.
    skipped = config(labels.replace(shown, '"Background"'))
    assert {r["value"]["brushlabels"][0] for r in predictor.predict(image, Plan(skipped)).results} <= {"sky"}


def test_words_that_the_model_does_not_know_cost_only_themselves(predictor: Predictor, image: bytes) -> None:
    mixed = config('<Label value="giraffe"/><Label value="Sofa" predicted_values="settee,sofa"/>')
    found = predictor.predict(image, Plan(mixed))
    assert {result["value"]["brushlabels"][0] for result in found.results} == {"Sofa"}
    assert len(found.notes) == 2 and "'giraffe'" in found.notes[0] and "'settee'" in found.notes[1]
    with pytest.raises(VocabularyError, match="giraffe"):
        predictor.predict(image, Plan(config('<Label value="giraffe"/>')))
    with pytest.raises(VocabularyError, match="zebra"):
        answer(predictor, Question(PLAIN, {}, Context(text="zebra")), image)


def test_small_regions_are_left_out(predictor: Predictor, image: bytes) -> None:
    strict = Predictor(predictor.segmenter, replace(predictor.options, min_area=200), cache_bytes=0)
    results = strict.predict(image, Plan(PLAIN)).results
    assert results
    for result in results:
        assert mask_of_value("brushlabels", result["value"], SIZE).sum() >= 200


def test_an_image_that_claims_too_many_pixels_is_not_decoded(predictor: Predictor) -> None:
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0", b"IDAT"):
        png += (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    with pytest.raises(ImageError, match="60000 x 60000"):
        predictor.predict(png, Plan(PLAIN))


@pytest.mark.parametrize("kind", ["PNG", "late PNG", "WEBP"])
def test_an_orientation_that_browsers_ignore_is_refused(predictor: Predictor, kind: str) -> None:
    """Chromium shows a WebP, and a PNG whose EXIF block is late, as they are stored; regions would be turned there."""
    plan = Plan(config('<Label value="cat"/>'))
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        encoded = io.BytesIO()
        Image.new("RGB", (40, 20)).save(encoded, kind.removeprefix("late "), exif=exif, lossless=True)
        data = encoded.getvalue()
        if kind == "late PNG":
            start = data.index(b"eXIf") - 4
            end = start + 12 + int.from_bytes(data[start : start + 4], "big")
            data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
        if kind == "PNG" or orientation == 1:
            assert predictor.predict(data, plan).size == ((40, 20) if orientation == 6 else (20, 40))
        else:
            with pytest.raises(ImageError, match="EXIF orientation that browsers ignore"):
                predictor.predict(data, plan)


def test_what_is_no_image(predictor: Predictor) -> None:
    with pytest.raises(ImageError, match="the image"):
        predictor.predict(b"not an image", Plan(PLAIN))


def test_version_follows_weights_vocabulary_and_settings(model_path: Path, tiny_model_path: Path) -> None:
    options = ModelOptions(str(model_path))
    versions = {
        model_version(options, PLAIN, {}),
        model_version(replace(options, min_area=5), PLAIN, {}),
        model_version(replace(options, refine=False), PLAIN, {}),
        model_version(options, PLAIN, {"cat": ["kitten"]}),
        model_version(options, config('<Label value="cat"/>'), {}),
        model_version(replace(options, model=str(tiny_model_path)), PLAIN, {}),
    }
    assert len(versions) == 6
    assert model_version(options, PLAIN, {"cat": []}) == model_version(options, PLAIN, {})
    assert all(version.startswith(("words-", "tiny-")) for version in versions)


# -- a method that normalizes over names -----------------------------------------------------------------------------

ONE = config('<Label value="cat"/>')


@pytest.fixture(scope="module")
def softmax_predictor(model_path: Path) -> Predictor:
    options = ModelOptions(f"naclip:{model_path}", min_area=0, options={"scale": 1000})
    return Predictor(options.load(), options, cache_bytes=64 << 20)


def test_one_label_does_not_cover_the_image(softmax_predictor: Predictor, image: bytes) -> None:
    found = label_map(softmax_predictor.predict(image, Plan(ONE)).results, {"cat": 1})
    assert {0, 1} == set(np.unique(found))
    # Without names of the background it would.
    alone = config('<Label value="cat"/>', model_background_names="none")
    assert label_map(softmax_predictor.predict(image, Plan(alone)).results, {"cat": 1}).all()


@pytest.mark.parametrize("wanted", [ONE, PLAIN], ids=["one label", "three labels"])
def test_typed_prompt_and_box_keep_all_names_competing(
    softmax_predictor: Predictor, image: bytes, wanted: LabelingConfig
) -> None:
    """A single typed name, and a box in which a label competes with the background alone."""
    everywhere = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    typed = softmax_predictor.predict(image, Plan(wanted, label="cat", prompts=("dog",)))
    box = Drawn("cat", "rect", "rectangle", outline=everywhere)
    boxed = softmax_predictor.predict(image, Plan(wanted, label="cat", drawn=box))
    for found in (typed, boxed):
        assert not label_map(found.results, {"cat": 1}).all()
    labels = wanted.vocabulary()
    place = wanted.values.index("cat")
    segmenter = softmax_predictor.segmenter
    features = segmenter.encode(load_image(image))
    scores = segmenter.score_maps(features, labels)
    assert len(scores) == len(labels.labels) + 1
    session = ImageSession(segmenter, features)
    expected = session.segment_label(labels, place, rivals=False).label_map > 0
    assert np.array_equal(label_map(boxed.results, {"cat": 1}) > 0, expected)


def test_names_of_the_background_in_the_configuration() -> None:
    assert config('<Label value="cat"/>').vocabulary().background_names is None
    assert config('<Label value="cat"/>', model_background_names="auto").vocabulary().background_names is None
    named = config('<Label value="cat"/>', model_background_names="sky, wall").vocabulary()
    assert named.background_names == ("sky", "wall")
    with pytest.raises(VocabularyError, match="background names: prompts.1.: the prompt is empty"):
        config('<Label value="cat"/>', model_background_names="sky,").vocabulary()
