"""Tiles of enlarged maps, and decisions made of them, compared with the whole image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tcl_core.segmentation.enlarging as module
from tcl_core.models import load_model
from tcl_core.playground import draw_scene, scene_rng
from tcl_core.segmentation.argmax import enlarge, label_map_from_parts
from tcl_core.segmentation.enlarging import Enlarger, nearest_places, tiles
from tcl_core.segmentation.name_plane import NamePlane
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Label, Vocabulary

CPU = torch.device("cpu")
SHAPES = [(3, 1000), (11, 13), (64, 33), (128, 512)]
SIZES = [((5, 7), (85, 103)), ((40, 61), (67, 90)), ((31, 90), (31, 131)), ((1, 3), (90, 80)), ((90, 110), (70, 80))]


def maps(count: int, source: tuple[int, int], kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    drawn = torch.rand(count, *source, generator=generator)
    if kind == "ties":
        return (4 * drawn).round() / 4
    if kind == "smooth":
        return F.interpolate(torch.rand(1, count, 3, 3, generator=generator), size=source, mode="bilinear")[0]
    return drawn


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_tiles_are_what_pytorch_makes_of_the_whole(source: tuple[int, int], size: tuple[int, int]) -> None:
    score = maps(1, source, "noise")[0]
    whole = F.interpolate(score[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    enlarger = Enlarger.of(source, size, CPU)
    for shape in SHAPES:
        for tile in tiles(size, CPU, shape):
            assert torch.equal(enlarger.tile(score, tile), whole[tile])
    assert torch.equal(enlarge(score, size), whole.flatten())


def test_large_images_are_enlarged_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    score, size = maps(1, (12, 17), "noise")[0], (300, 1100)
    whole = enlarge(score, size)
    monkeypatch.setattr(module, "_ONE_TILE", 1)
    assert len(list(tiles(size, CPU))) == 9
    assert torch.equal(enlarge(score, size), whole)


@pytest.mark.parametrize(("source", "length"), [(3, 10), (7, 7), (9, 4), (5, 10), (112, 12500)])
def test_nearest_places_are_those_of_pytorch(source: int, length: int) -> None:
    found = F.interpolate(torch.arange(source).view(1, 1, -1).float(), size=length, mode="nearest")
    assert nearest_places(source, length).tolist() == found.flatten().int().tolist()


@pytest.mark.parametrize("kind", ["noise", "ties", "smooth"])
@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize(("source", "size"), SIZES)
def test_decisions_in_tiles_are_those_of_the_whole_image(
    kind: str, names: bool, source: tuple[int, int], size: tuple[int, int]
) -> None:
    scores = maps(6, source, kind)
    thresholds = [None, 0.5, 0.25, None, 0.75]
    labels = tuple(Label(f"label {k}", threshold=value) for k, value in enumerate(thresholds))
    planes = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0].numpy()
    for background in (True, False):
        vocabulary = Vocabulary(labels, background=background)
        # The rule in the module's first sentence, on whole planes.
        allowed = [np.where(plane >= (value or 0), plane, -1) for plane, value in zip(planes, thresholds, strict=False)]
        behind = np.full(size, 0.4 if background else -1, np.float32)
        if names:
            behind = np.maximum(behind, planes[5])
        competing = np.stack([behind, *allowed])
        expected = competing.argmax(axis=0) * (competing.max(axis=0) > -1)
        for shape in (None, *SHAPES):
            parts = [scores[:2], scores[2:5]]
            label_map, score_map = label_map_from_parts(
                iter(parts), vocabulary, 0.4, size, scores[5:] if names else scores[:0], shape
            )
            assert np.array_equal(label_map, expected)
            assert np.array_equal(score_map, np.where(expected > 0, competing.max(axis=0), 0))


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("threshold", [None, 0.45, 0.6])
def test_a_segmenter_decides_the_same_in_tiles(
    refine: bool, threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = draw_scene(scene_rng(3, 0), size=(143, 211)).image
    vocabulary = Vocabulary((Label("Cat", ("cat",)), Label("Plant", ("tree", "flower"), threshold=threshold)))
    segmenter = Segmenter(load_model("playground"), refine=refine)
    features = segmenter.encode(image)
    for names in ((), ("grass", "water", "brick")):
        chosen = replace(vocabulary, background_names=names)
        whole, others = segmenter.explain(features, chosen)
        for shape in ((17, 31), (100, 37)):
            with monkeypatch.context() as patch:
                patch.setattr(module, "_ONE_TILE", 0)
                patch.setattr(module, "_TILE_ROWS", shape[0])
                patch.setattr(module, "_TILE_COLUMNS", shape[1])
                tiled, other = segmenter.explain(features, chosen)
                assert other.names == others.names and np.array_equal(other.winner, others.winner)
            assert np.array_equal(tiled.label_map, whole.label_map)
            assert np.array_equal(tiled.score_map, whole.score_map)


def test_names_are_found_once_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = NamePlane.of(["sky", "sea"], maps(2, (5, 6), "noise"))
    asked: list[str] = []
    found = NamePlane._won
    monkeypatch.setattr(NamePlane, "_won", lambda *given: asked.append("winners") or found(*given))
    unlabeled = plane.unlabeled(plane.best[0], 0.3, np.zeros((50, 60), np.int32))
    assert asked == []
    best, winner = plane.best[None], plane.winner[None, None].float()
    over = F.interpolate(best, size=(50, 60), mode="bilinear")[0, 0].numpy() > 0.3
    near = F.interpolate(winner, size=(50, 60), mode="nearest")[0, 0].numpy().astype(int)
    assert unlabeled.names == ("sky", "sea")
    assert np.array_equal(unlabeled.winner, np.where(over, near + 1, 0))
    assert sum(unlabeled.shares().values()) == pytest.approx(over.mean())
    assert asked == ["winners"]
