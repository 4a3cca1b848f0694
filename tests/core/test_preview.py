"""The preview page: escaped, offline, in pages, resumable, and drawn where the regions are."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapely import Point, Polygon, box

from tcl_core.errors import SettingsError
from tcl_core.preview.drawing import draw_overlay, draw_unlabeled, muted_color, regions_to_svg, thumbnail
from tcl_core.preview.page import PreviewWriter, check_preview_folder
from tcl_core.types import Region, Segmentation, Unlabeled
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
    with pytest.raises(SettingsError, match="contains other files"):
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
    paths = re.findall(r'<path class="r l(\d)" [^>]*?\bd="([^"]*)">', svg)
    assert [label for label, _ in paths] == ["2", "1"]
    rings = [
        [tuple(map(float, point.split())) for point in ring.split("L")]
        for ring in re.findall(r"M([^Z]*)Z", paths[0][1])
    ]
    assert Polygon(rings[0], rings[1:]).equals(shape)
    assert paths[1][1] == "M2 3L6 3L6 8L2 8Z"
    assert "<script" not in svg and "· 0.83 · 20 px" in svg


def test_outlines_say_what_a_table_of_regions_needs() -> None:
    shape = box(10, 10, 30, 20).difference(box(12, 12, 14, 14))
    svg = regions_to_svg([region(2, shape), region(1, None, (7, 8, 9, 1))])
    data = [dict(re.findall(r'data-(\w+)="([^"]*)"', path)) for path in svg.split("</path>")[:-1]]
    assert data == [
        {"score": "0.83", "area": "20", "box": "2 3 4 5", "vertices": "8"},
        {"score": "0.83", "area": "9", "box": "7 8 9 1", "vertices": "4"},
    ]


def test_small_drawings_keep_all_vertices_while_they_are_few() -> None:
    angles = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    outline = Polygon(np.c_[500 + 400 * np.cos(angles), 500 + 400 * np.sin(angles)])
    assert regions_to_svg([region(1, outline)], scale=0.1).count("L") == 299
    assert regions_to_svg([region(1, outline)] * 17, scale=0.1).count("L") < 17 * 100


def test_cards_of_one_image_stand_side_by_side(tmp_path: Path) -> None:
    names, columns = ["a.png", "b.png", "c.png"], [EVIL, "two"]
    with PreviewWriter(tmp_path / "p", VOCABULARY, page_size=5) as writer:
        for column in columns:
            for name in names:
                writer.add_image(name, image(), [region(1, box(1, 1, 5, 5))], column=column, note=f"{name} in {column}")
        index = writer.finish("t", {}, names, columns)
    first, second = Page(index), Page(index.with_name("page-2.html"))
    assert first.open == [] and first.tags.count("script") == 1
    assert [page.tags.count("figure") for page in (first, second)] == [4, 2]
    text = index.read_text(encoding="utf-8")
    assert re.findall(r"grid-column:(\d)", text.split("<main")[1]) == ["1", "2", "1", "2"]
    places = [first.words.index(f"{name} in {column}") for name in names[:2] for column in columns]
    assert places == sorted(places)
    assert "3 images" not in first.words and "images3" in first.words.replace("\n", "")
    # Regions of several models are not added up.
    assert "Sofa6" not in first.words


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


def halves(height: int = 40, width: int = 60, names: tuple[str, str] = ("wall", "floor")) -> Unlabeled:
    """The first name above, the second below, and the leftmost quarter of the columns without either."""
    winner = np.ones((height, width), dtype=np.int32)
    winner[height // 2 :] = 2
    winner[:, : width // 4] = 0
    return Unlabeled(names, winner)


def overlays(folder: Path) -> list[Path]:
    return sorted((folder / "img").glob("*-names.png"))


def test_shares_are_those_of_the_pixels_largest_first() -> None:
    assert Unlabeled(("a", "b"), np.array([[2, 2, 1, 0]], np.int32)).shares() == {"b": 0.5, "a": 0.25}
    assert list(Unlabeled(("a", "b"), np.array([[2, 2, 1, 0]], np.int32)).shares()) == ["b", "a"]
    assert Unlabeled((), np.zeros((2, 2), np.int32)).shares() == {}
    assert Unlabeled(("never",), np.zeros((2, 2), np.int32)).shares() == {}


def test_names_that_won_pixels_are_a_layer_over_the_image_and_below_the_masks(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    with PreviewWriter(folder, VOCABULARY) as writer:
        writer.add_image("a.png", image(), [region(1, box(1, 1, 5, 5))], halves())
        writer.add_image("plain.png", image(), [])
        index = writer.finish("t", {}, ["a.png", "plain.png"])
    page, text = Page(index), index.read_text(encoding="utf-8")
    (overlay,) = overlays(folder)
    assert page.targets[1] == f"img/{overlay.name}" and len(page.targets) == 3
    assert text.index('data-layer="unlabeled"') < text.index(overlay.name) < text.index("<path")
    assert re.search(r'data-layer="unlabeled" data-key="n" aria-pressed="false"', text)
    assert "not annotated: wall 38% floor 38%" in page.words
    assert text.count('class="tags unlabeled"') == 1
    with Image.open(overlay) as drawn:
        pixels = np.asarray(drawn)
    assert pixels.shape == (40, 60, 4)
    assert (pixels[:, :15, 3] == 0).all() and (pixels[:, 15:, 3] == 255).all()
    for name, row in (("wall", 0), ("floor", 39)):
        assert "#{:02x}{:02x}{:02x}".format(*pixels[row, 30]) in re.findall(
            rf"--c:(#\w+)[^>]*><i[^>]*></i>{name}", text
        )


def test_background_names_are_text_never_markup(tmp_path: Path) -> None:
    with PreviewWriter(tmp_path / "p", VOCABULARY) as writer:
        writer.add_image("a.png", image(), [], halves(names=(EVIL, "floor")))
        page = Page(writer.finish("t", {}, ["a.png"]))
    assert page.tags.count("script") == 1 and page.open == []
    assert f"{EVIL} 38%" in page.words


def test_without_names_there_is_no_layer(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    with PreviewWriter(folder, VOCABULARY) as writer:
        writer.add_image("a.png", image(), [region(1, box(1, 1, 5, 5))])
        writer.add_image("b.png", image(), [], Unlabeled((), np.zeros((40, 60), np.int32)))
        page = Page(writer.finish("t", {}, ["a.png", "b.png"]))
    assert overlays(folder) == []
    assert "not annotated" not in page.words.lower()
    assert len(list((folder / "img").iterdir())) == 2


def test_the_layer_can_be_switched_on_every_page_of_a_job_that_has_one(tmp_path: Path) -> None:
    with PreviewWriter(tmp_path / "p", VOCABULARY, page_size=1) as writer:
        writer.add_image("a.png", image(), [])
        writer.add_image("b.png", image(), [], halves())
        first = Page(writer.finish("t", {}, ["a.png", "b.png"]))
        assert "Not annotated" in first.words
        assert "Not annotated" not in Page(writer.finish("t", {}, ["a.png"])).words


def test_long_lists_of_names_are_cut_until_the_image_is_enlarged(tmp_path: Path) -> None:
    names = tuple(f"thing {number}" for number in range(11))
    winner = np.repeat(np.arange(1, 12, dtype=np.int32), 4).reshape(4, 11)
    with PreviewWriter(tmp_path / "p", VOCABULARY) as writer:
        writer.add_image("a.png", image(4, 11), [], Unlabeled(names, winner))
        index = writer.finish("t", {}, ["a.png"])
    assert "thing 10 9% and 3 more" in Page(index).words
    assert index.read_text(encoding="utf-8").count('class="tag extra"') == 3


def test_a_share_is_never_rounded_to_none_or_all(tmp_path: Path) -> None:
    winner = np.ones((30, 30), dtype=np.int32)
    winner[0, 0] = 2
    with PreviewWriter(tmp_path / "p", VOCABULARY) as writer:
        writer.add_image("a.png", image(30, 30), [], Unlabeled(("wall", "floor"), winner))
        writer.add_image("b.png", image(30, 30), [], Unlabeled(("sky",), np.ones((30, 30), np.int32)))
        words = Page(writer.finish("t", {}, ["a.png", "b.png"])).words
    assert "wall >99% floor <1%" in words and "sky 100%" in words


def test_names_survive_a_resumed_run_and_keep_their_colors(tmp_path: Path) -> None:
    swapped = Unlabeled(("lawn", "floor"), halves().winner)

    def write(folder: Path, *, interrupted: bool) -> str:
        writer = PreviewWriter(folder, VOCABULARY)
        writer.add_image("a.png", image(), [], halves())
        if interrupted:
            writer.close()
            writer = PreviewWriter(folder, VOCABULARY, keep=True)
            assert writer.names() == {"a.png"} and len(overlays(folder)) == 1
        writer.add_image("b.png", image(), [], swapped)
        text = writer.finish("t", {}, ["a.png", "b.png"]).read_text(encoding="utf-8")
        writer.close()
        return text

    text = write(tmp_path / "p", interrupted=True)
    assert text == write(tmp_path / "q", interrupted=False)
    colors = dict.fromkeys(re.findall(r"--c:(#\w+)\"><i class=.dot.></i>(\w+)", text))
    assert sorted(name for _, name in colors) == ["floor", "lawn", "wall"]


def test_overlays_go_with_their_cards_and_nothing_else_does(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    with PreviewWriter(folder, VOCABULARY) as writer:
        writer.add_image("a.png", image(), [], halves())
        assert len(overlays(folder)) == 1
        writer.add_image("a.png", image(), [])
        assert overlays(folder) == []
        writer.add_image("a.png", image(), [], halves())
    mine = folder / "img" / "my-names.png"
    mine.touch()
    PreviewWriter(folder, VOCABULARY).close()
    assert list((folder / "img").iterdir()) == [mine]


def test_cards_written_before_there_were_overlays_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    with PreviewWriter(folder, VOCABULARY) as writer:
        writer.add_image("a.png", image(), [], halves())
        writer.add_image("b.png", image(), [])
    header, *cards = [json.loads(line) for line in (folder / "cards.jsonl").read_text().splitlines()]
    assert header == {"preview": "tcl-annotate", "format": 1, "job": ""}
    assert cards[1].keys() == cards[0].keys() - {"overlay", "unlabeled"}
    with PreviewWriter(folder, VOCABULARY, keep=True) as writer:
        assert writer.names() == {"a.png", "b.png"}


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 1), (1, 1)), ((3, 500), (500, 3)), ((500, 3), (3, 500)), ((1, 4000), (800, 1))]
)
def test_overlays_are_as_large_as_the_thumbnail(tmp_path: Path, shape: tuple[int, int], size: tuple[int, int]) -> None:
    unlabeled = Unlabeled(("wall",), np.ones(shape, np.int32))
    with PreviewWriter(tmp_path / "p", VOCABULARY) as writer:
        writer.add_image("a.png", image(*shape), [], unlabeled)
        assert "wall 100%" in Page(writer.finish("t", {}, ["a.png"])).words
    with Image.open(overlays(tmp_path / "p")[0]) as drawn:
        assert drawn.size == size
        assert (np.asarray(drawn) == (*muted_color(0), 255)).all()


def test_overlays_made_smaller_have_no_color_but_those_of_the_names() -> None:
    winner = np.random.default_rng(0).integers(0, 3, (90, 130), dtype=np.int32)
    drawn = np.asarray(draw_unlabeled(Unlabeled(("a", "b"), winner), {"a": (9, 9, 9), "b": (200, 0, 0)}, (31, 20)))
    assert drawn.shape == (20, 31, 4)
    assert {tuple(pixel) for pixel in drawn.reshape(-1, 4).tolist()} == {
        (0, 0, 0, 0),
        (9, 9, 9, 255),
        (200, 0, 0, 255),
    }
