from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from skimage.measure import label as connected

from tcl_core.playground import (
    CLASS_NAMES,
    COLORS,
    KINDS,
    PATTERNS,
    STUFF_NAMES,
    caption,
    caption_words,
    draw_scene,
    is_held_out,
    scene_rng,
)
from tcl_core.playground.export import sample_scene, world_vocabulary, write_scenes
from tcl_core.playground.shapes import SHAPES
from tcl_core.playground.textures import crop_texture, texture_bank
from tcl_core.playground.world import SYNONYMS
from tcl_core.towers.tokenizer import WordTokenizer, split_words
from tcl_core.vocabulary import Vocabulary
from tcl_core.vocabulary.templates import get_templates

WORD_TO_KIND = {word: kind for kind in KINDS for word in (kind, *SYNONYMS.get(kind, ()))}


def test_the_world_is_as_large_as_promised() -> None:
    assert len(KINDS) >= 40 and len(COLORS) == 12 and len(PATTERNS) == 6 and len(STUFF_NAMES) >= 10
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES)


def test_a_fifth_is_held_out_and_every_kind_and_color_keeps_partners() -> None:
    held = np.array([[is_held_out(kind, color) for color in COLORS] for kind in KINDS])
    assert 0.19 < held.mean() < 0.21
    assert (~held).sum(axis=0).min() >= 0.7 * len(KINDS)
    assert (~held).sum(axis=1).min() >= 0.7 * len(COLORS)
    assert held.any(axis=0).all() and held.any(axis=1).all()


def test_scenes_are_the_same_for_the_same_seed_and_differ_otherwise() -> None:
    first, again, other = (draw_scene(scene_rng(3, index)) for index in (5, 5, 6))
    assert (first.image == again.image).all() and (first.label_map == again.label_map).all()
    assert first.objects == again.objects
    assert not (first.image == other.image).all()


@pytest.mark.parametrize("combinations", ["seen", "held-out"])
def test_combinations_are_respected(combinations: str) -> None:
    for index in range(25):
        for thing in draw_scene(scene_rng(0, index), combinations=combinations).objects:  # type: ignore[arg-type]
            assert is_held_out(thing.kind, thing.color) == (combinations == "held-out")


@pytest.mark.slow
def test_training_captions_never_say_a_held_out_combination_of_one_object() -> None:
    templates = get_templates("full")
    for index in range(150):
        scene = draw_scene(scene_rng(1, index), combinations="seen")
        text = caption(scene_rng(1, index, 9), scene, templates)
        for phrase in re.split(r"\band\b|\bnext to\b|\bbeside\b|\bwith\b|\bnear\b", text):
            words = split_words(phrase)
            kinds = [WORD_TO_KIND[w] for w in words if w in WORD_TO_KIND]
            colors = [w for w in words if w in COLORS]
            if len(kinds) == 1 and len(colors) == 1:
                assert not is_held_out(kinds[0], colors[0]), text


@pytest.mark.slow
def test_captions_name_only_what_is_there_and_not_everything() -> None:
    partial = 0
    for index in range(200):
        scene = draw_scene(scene_rng(2, index))
        words = split_words(caption(scene_rng(2, index, 9), scene))
        named = {WORD_TO_KIND[w] for w in words if w in WORD_TO_KIND}
        present = {thing.kind for thing in scene.objects}
        assert named <= present
        assert {w for w in words if w in STUFF_NAMES and w not in ("brick", "wood")} <= set(scene.stuff)
        partial += named < present
    assert partial > 100


def test_captions_vary() -> None:
    scene = draw_scene(scene_rng(0, 0))
    assert len({caption(scene_rng(0, i, 5), scene) for i in range(100)}) > 40


@pytest.mark.slow
def test_the_tokenizer_knows_every_caption_and_every_template() -> None:
    templates = get_templates("full")
    tokenizer = WordTokenizer(caption_words(templates), 24)
    for index in range(100):
        scene = draw_scene(scene_rng(4, index), plain=0.3)
        assert tokenizer.unknown_words(caption(scene_rng(4, index, 1), scene, templates)) == []
    for name in CLASS_NAMES:
        for set_name in ("custom", "simple", "full", "identity"):
            for template in get_templates(set_name):
                assert tokenizer.unknown_words(template.format(name)) == []
    assert tokenizer.unknown_words("a zebra") == ["zebra"]


def test_truth_is_where_the_objects_are() -> None:
    """An object alone on a plain backdrop differs from the backdrop exactly where the label map says so."""
    for index in range(20):
        scene = draw_scene(scene_rng(6, index), (96, 96), objects=(1, 1), radius=(20, 30), plain=1.0)
        if not scene.objects:
            continue
        assert set(np.unique(scene.label_map)) <= {0, KINDS.index(scene.objects[0].kind) + 1}
        background = np.median(scene.image[scene.label_map == 0].astype(int), axis=0)
        # The outline is drawn in a contrasting tone, so the border of the truth is where the image changes.
        distance = np.abs(scene.image.astype(int) - background).sum(axis=2)
        assert np.median(distance[scene.label_map == 0]) < 45


def test_earlier_objects_stay_visible() -> None:
    for index in range(30):
        for thing in draw_scene(scene_rng(8, index), objects=(5, 6)).objects:
            assert thing.visible >= 0.45


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_one_visible_thing(kind: str) -> None:
    from tcl_core.playground.scenes import _draw_object

    _, coverage = _draw_object(np.random.default_rng(0), kind, "red", "plain", 28.0)
    solid = coverage > 0.5
    assert solid.sum() > 300
    assert connected(solid).max() <= 2
    assert not solid[0].any() and not solid[:, 0].any() and not solid[-1].any() and not solid[:, -1].any()
    assert all(np.abs(part.points).max() < 1.25 for part in SHAPES[kind])


@pytest.mark.parametrize("name", STUFF_NAMES)
def test_textures_are_fixed_and_have_structure(name: str) -> None:
    bank = texture_bank(name)
    assert bank.dtype == np.uint8 and bank.std() > 3
    patch = crop_texture(np.random.default_rng(0), name, 30, 50, zoom=2.5)
    assert patch.shape == (30, 50, 3) and patch.min() >= 0 and patch.max() <= 255


def test_textures_of_different_stuff_differ() -> None:
    means = np.array([texture_bank(name).mean(axis=(0, 1)) for name in STUFF_NAMES])
    spread = np.array([texture_bank(name).std() for name in STUFF_NAMES])
    for a in range(len(means)):
        for b in range(a):
            assert np.abs(means[a] - means[b]).sum() + abs(spread[a] - spread[b]) > 6, (STUFF_NAMES[a], STUFF_NAMES[b])


def test_export_writes_images_labels_and_truth(tmp_path) -> None:
    paths = write_scenes(tmp_path / "new folder", 3, 5, (60, 90), ground_truth=True)
    assert [Image.open(path).size for path in paths] == [(90, 60)] * 3
    vocabulary = Vocabulary.from_file(tmp_path / "new folder" / "labels.yaml")
    assert vocabulary.background is False
    assert yaml.safe_load((tmp_path / "new folder" / "labels.yaml").read_text())["labels"]
    coco = COCO(str(tmp_path / "new folder" / "ground_truth.json"))
    ids = {entry["name"]: entry["id"] for entry in coco.loadCats(coco.getCatIds())}
    for index, image in enumerate(coco.loadImgs(coco.getImgIds())):
        truth = sample_scene(5, index, (60, 90)).label_map
        drawn = np.zeros((60, 90), np.int32)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            drawn[coco.annToMask(annotation) > 0] = annotation["category_id"]
        expected = np.zeros_like(drawn)
        for value in np.unique(truth):
            if value:
                expected[truth == value] = ids[CLASS_NAMES[value - 1]]
        assert (drawn == expected).all()
    assert json.loads((tmp_path / "new folder" / "ground_truth.json").read_text())["info"]


def test_world_vocabulary_carries_synonyms() -> None:
    vocabulary = world_vocabulary(("sofa", "grass"))
    assert vocabulary.labels[0].prompts == ("sofa", "couch")
