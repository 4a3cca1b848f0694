"""The preview page: escaped, offline, in pages, resumable, and drawn where the regions are."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapely import Point, Polygon, box

from tcl_core.errors import SettingsError
from tcl_core.preview.drawing import draw_overlay, regions_to_svg, thumbnail
from tcl_core.preview.page import PreviewWriter, check_preview_folder
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Label, Vocabulary

EVIL = "<script>alert(1)</script>\"'&"
VOCABULARY = Vocabulary((Label("Sofa", ("sofa", "couch")), Label(EVIL), Label("Lamp", color=(1, 2, 3))))


def region(label_id: int, polygon: Polygon | None, bbox: tuple[int, int, int, int] = (2, 3, 4, 5)) -> Region:
    mask = np.ones((bbox[3], bbox[2]), dtype=bool)
    return Region(label_id, VOCABULARY.names[label_id - 1], 0.834, int(mask.sum()), bbox, mask, polygon)


def image(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Page(HTMLParser):
    """Tags that open, attributes that point somewhere, and all text."""

    VOID = {"meta", "img", "input", "link", "br"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.targets: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "poster")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_names_are_text_never_markup(tmp_path: Path) -> None:
    with PreviewWriter(tmp_path / "p", VOCABULARY) as writer:
        writer.add_image(f"a b/{EVIL}.png", image(), [region(2, box(1, 1, 5, 5))])
        writer.add_failure(f"{EVIL}2.png", f"broken {EVIL}")
        index = writer.finish(EVIL, {EVIL: EVIL}, [f"a b/{EVIL}.png", f"{EVIL}2.png"])
    page = Page(index)
    assert page.tags.count("script") == 1
    assert page.open == []
    assert page.words.count(EVIL) >= 7


def test_page_needs_nothing_but_its_own_images(tmp_path: Path) -> None:
    with PreviewWriter(tmp_path / "p", VOCABULARY) as writer:
        writer.add_image("a.png", image(), [region(1, box(1, 1, 5, 5)), region(3, box(6, 6, 9, 9))])
        writer.add_image("big.jpg", image(900, 1700), [])
        index = writer.finish("Holiday", {"model": "tiny"}, ["a.png", "big.jpg"])
    page, text = Page(index), index.read_text(encoding="utf-8")
    assert len(page.targets) == 2
    for target in page.targets:
        with Image.open(tmp_path / "p" / target) as copy:
            assert max(copy.size) <= 800
    assert "://" not in text and "@import" not in text and "fetch(" not in text
    with Image.open(tmp_path / "p" / page.targets[0]) as copy:
        assert np.array_equal(np.asarray(copy), image())
    assert ".l3{--c:#010203}" in text
    for word in ("Holiday", "tiny", "a.png", "nothing found", "2 regions", "1,700 × 900"):
        assert word in page.words
    assert "unfinished" not in page.words


def test_legend_counts_over_all_pages_and_pages_link_to_each_other(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(7)]
    with PreviewWriter(tmp_path / "p", VOCABULARY, page_size=3) as writer:
        for name in names:
            writer.add_image(name, image(4, 4), [region(1, box(0, 0, 2, 2))] * 2)
        writer.finish("t", {}, names)
        pages = [Page(tmp_path / "p" / file) for file in ("index.html", "page-2.html", "page-3.html")]
        assert [page.tags.count("figure") for page in pages] == [3, 3, 1]
        assert all("Sofa14" in page.words for page in pages)
        assert {"page-2.html", "page-3.html"} <= set(pages[0].targets)
        assert {"index.html", "page-2.html"} <= set(pages[2].targets)
        writer.finish("t", {}, names[:2])
    assert not (tmp_path / "p" / "page-2.html").exists()


def test_order_is_that_of_the_job_and_a_later_card_replaces_an_earlier_one(tmp_path: Path) -> None:
    with PreviewWriter(tmp_path / "p", VOCABULARY) as writer:
        writer.add_failure("b.png", "was broken")
        writer.add_image("a.png", image(4, 4), [])
        writer.add_image("b.png", image(4, 4), [])
        index = writer.finish("t", {}, ["b.png", "a.png", "c.png"])
    words = Page(index).words
    assert "was broken" not in words
    assert words.index("b.png") < words.index("a.png")
    assert "unfinished: 2 of 3 images" in words


def test_resuming_after_a_kill_that_tore_the_last_line(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    with PreviewWriter(folder, VOCABULARY) as writer:
        writer.add_image("a.png", image(4, 4), [])
        writer.add_failure("bad.png", "no")
        writer.add_image("b.png", image(4, 4), [])
    cards = folder / "cards.jsonl"
    cards.write_bytes(cards.read_bytes()[:-10])
    with PreviewWriter(folder, VOCABULARY, keep=True) as writer:
        assert writer.names() == {"a.png"}
        writer.add_image("b.png", image(4, 4), [])
        assert writer.names() == {"a.png", "b.png"}
        assert Page(writer.finish("t", {}, ["a.png", "bad.png", "b.png"])).tags.count("figure") == 3
    with PreviewWriter(folder, VOCABULARY, keep=False) as writer:
        assert writer.names() == set()
    assert not (folder / "index.html").exists() and not list((folder / "img").iterdir())


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    assert check_preview_folder(tmp_path / "new") is False
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cards.jsonl").write_text("{}\n")
    with pytest.raises(SettingsError, match="holds other files"):
        PreviewWriter(other, VOCABULARY)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SettingsError, match="is not a folder"):
        PreviewWriter(file, VOCABULARY)
    PreviewWriter(tmp_path / "new", VOCABULARY).close()
    assert check_preview_folder(tmp_path / "new") is True


def test_svg_paths_are_the_polygons_with_their_holes() -> None:
    shape = box(10, 10, 30, 20).difference(box(12, 12, 14, 14))
    svg = regions_to_svg([region(2, shape), region(1, None)])
    paths = re.findall(r'<path class="r l(\d)" d="([^"]*)">', svg)
    assert [label for label, _ in paths] == ["2", "1"]
    rings = [
        [tuple(map(float, point.split())) for point in ring.split("L")]
        for ring in re.findall(r"M([^Z]*)Z", paths[0][1])
    ]
    assert Polygon(rings[0], rings[1:]).equals(shape)
    assert paths[1][1] == "M2 3L6 3L6 8L2 8Z"
    assert "<script" not in svg and "· 0.83 · 20 px" in svg


def test_a_very_detailed_polygon_stays_light_when_drawn_small() -> None:
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    radii = 4000 + 3 * np.sin(3000 * angles)
    outline = Polygon(np.c_[5000 + radii * np.cos(angles), 5000 + radii * np.sin(angles)])
    svg = regions_to_svg([region(1, outline)], scale=0.08)
    assert len(svg) < 60_000
    ring = [tuple(map(float, point.split())) for point in re.findall(r"M([^Z]*)Z", svg)[0].split("L")]
    drawn, wanted = Polygon(ring), Point(400, 400).buffer(320, quad_segs=256)
    assert drawn.intersection(wanted).area / drawn.union(wanted).area > 0.99
    assert len(regions_to_svg([region(1, box(0, 0, 1, 1))] * 3000).split("<path")) == 501
    assert regions_to_svg([region(1, box(0, 0, 1, 1))], scale=0.01).count("M") == 1


@pytest.mark.parametrize(("shape", "size"), [((1, 1), (1, 1)), ((1, 4000), (800, 1)), ((3000, 1500), (400, 800))])
def test_thumbnails(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert thumbnail(image(*shape)).size == size


def test_overlay_tints_labels_and_leaves_the_rest() -> None:
    label_map = np.zeros((50, 200), dtype=np.int32)
    label_map[10:40, 20:60] = 3
    image = np.full((50, 200, 3), 200, dtype=np.uint8)
    overlay = np.asarray(draw_overlay(image, Segmentation(label_map, label_map / 3.0, VOCABULARY), opacity=0.5))
    assert overlay.shape[0] > 50 and overlay.shape[1] == 200
    assert (overlay[45, 100] == 200).all()
    assert overlay[10, 20].tolist() == [1, 2, 3]
    assert np.allclose(overlay[25, 40], (np.array([1, 2, 3]) + 200) / 2, atol=1)
    nothing = Segmentation(np.zeros_like(label_map), np.zeros(label_map.shape, np.float32), VOCABULARY)
    assert np.array_equal(np.asarray(draw_overlay(image, nothing)), image)
    tiny = Segmentation(np.ones((1, 1), np.int32), np.ones((1, 1), np.float32), VOCABULARY)
    assert draw_overlay(image[:1, :1], tiny).width == 160
