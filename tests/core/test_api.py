"""What ``tcl_core`` offers by itself: the same masks, files and settings as the command line's."""

from __future__ import annotations

import ast
import inspect
import io
import json
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tcl_core
from tcl_core.api import loaded
from tcl_core.cli.main import run
from tcl_core.export.coco import CocoExporter
from tcl_core.segmentation.segmenter import Segmenter as PlainSegmenter
from tests.tiny_model import write_tiny_model

SEATS = {"Seat": ["sofa", "couch"], "Pet": ["cat", "dog"], "sky": "sky"}
OPTIONS = ["--label", "Seat=sofa,couch", "--label", "Pet=cat,dog", "--label", "sky=sky"]


@pytest.fixture(autouse=True)
def no_models_kept() -> None:
    tcl_core.clear_cache()


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Files of three sizes, one in a folder below, on which the tiny model finds several regions."""
    rng = np.random.default_rng(5)
    paths = []
    for name, shape in (("a.png", (6, 9)), ("b.png", (5, 5)), ("deep/a.png", (6, 9))):
        blocks = rng.integers(0, 256, (*shape, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks).save(path)
        paths.append(path)
    return paths


def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter loads for a statement, without those of the standard library."""
    program = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    return {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}


def test_importing_the_package_loads_nothing_else() -> None:
    assert loaded_by("import tcl_core") == {"tcl_core"}
    assert loaded_by("from tcl_core import prelabel, segment, errors") == {
        "tcl_core",
        "tcl_core.api",
        "tcl_core.api.prelabeling",
        "tcl_core.api.segmenting",
        "tcl_core.errors",
    }


def test_labels_and_images_are_had_without_the_networks_library() -> None:
    assert not {"torch", "open_clip"} & loaded_by("from tcl_core import Vocabulary, load_image, validate_coco")


def test_public_names_are_all_there_and_no_module_hides_one() -> None:
    for name in tcl_core.__all__:
        assert getattr(tcl_core, name) is not None
    assert set(tcl_core.__all__) <= set(dir(tcl_core))
    assert not {"Any", "TYPE_CHECKING", "importlib"} & set(dir(tcl_core))
    modules = {module.name for module in pkgutil.iter_modules(tcl_core.__path__)}
    assert modules & set(tcl_core.__all__) == {"errors"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tcl_core.nothing  # type: ignore[attr-defined]


def test_type_checkers_see_the_names_that_are_looked_up() -> None:
    tree = ast.parse(inspect.getsource(tcl_core))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {(node.module, alias.name) for node in imports for alias in node.names}
    assert seen - {("tcl_core", "errors")} == {(module, name) for name, module in tcl_core._MODULES.items()}
    assert {name for _, name in seen} == set(tcl_core.__all__)


def test_one_image_is_what_the_command_makes_of_it(photos: list[Path], tiny_model_path: Path, tmp_path: Path) -> None:
    words = ["segment", photos[0], *OPTIONS, "--model", tiny_model_path, "--json", tmp_path / "command.json"]
    assert run([str(word) for word in words]) == 0
    result = tcl_core.segment(photos[0], SEATS, model=tiny_model_path)
    assert len(result.regions()) > 3
    result.save_coco(tmp_path / "call.json")
    assert (tmp_path / "call.json").read_bytes() == (tmp_path / "command.json").read_bytes()
    assert tcl_core.validate_coco(tmp_path / "call.json", photos[0].parent) == []


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_images_are_what_the_job_makes_of_them(
    photos: list[Path], tiny_model_path: Path, tmp_path: Path, batch_size: int
) -> None:
    by_job, by_call, by_results = (tmp_path / name for name in ("job.json", "call.json", "results.json"))
    words = ["prelabel", tmp_path / "photos", *OPTIONS, "--model", tiny_model_path, "--out", by_job, "--quiet"]
    assert run([str(word) for word in [*words, "--batch-size", batch_size, "--geometry", "rle"]]) == 0
    exporter = CocoExporter("rle")
    given: dict[str, Any] = {"model": tiny_model_path, "batch_size": batch_size}
    summary = tcl_core.prelabel(tmp_path / "photos", SEATS, by_call, exporter=exporter, **given)
    assert (summary.done, summary.failed) == (3, {})
    assert by_call.read_bytes() == by_job.read_bytes()

    results = tcl_core.segment(photos, SEATS, **given)
    tcl_core.save_coco(results, by_results, geometry="rle")
    job, own = (json.loads(path.read_text()) for path in (by_job, by_results))
    for key in ("images", "annotations", "categories"):
        assert own[key] == job[key]
    assert own["info"]["settings"].items() <= job["info"]["settings"].items()
    assert own["info"]["vocabulary_fingerprint"] == job["info"]["vocabulary_fingerprint"]


def test_what_was_asked_before_changes_no_result(photos: list[Path], tiny_model_path: Path) -> None:
    first = tcl_core.segment(photos[0], SEATS, model=tiny_model_path)
    tcl_core.clear_cache()
    tcl_core.segment(photos, SEATS, model=tiny_model_path)
    for word in ("couch", "cat", "tree"):
        tcl_core.segment(photos[0], [word], model=tiny_model_path)
    again = tcl_core.segment(photos[0], SEATS, model=tiny_model_path)
    assert np.array_equal(first.score_map, again.score_map) and np.array_equal(first.label_map, again.label_map)


def test_a_model_is_read_once_until_its_file_changes(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_model(tmp_path / "m.safetensors")
    read: list[Any] = []
    real = loaded.load_model
    monkeypatch.setattr(loaded, "load_model", lambda *a, **k: read.append(a) or real(*a, **k))
    tcl_core.segment(photos[0], SEATS, model=path)
    tcl_core.segment(photos[0], ["tree"], model=path, refine=False)
    tcl_core.segment(photos[:2], SEATS, model=str(path))
    assert len(read) == 1
    write_tiny_model(path, seed=1)
    other = tcl_core.segment(photos[0], SEATS, model=path)
    assert len(read) == 2
    tcl_core.clear_cache()
    assert np.array_equal(tcl_core.segment(photos[0], SEATS, model=path).score_map, other.score_map)
    assert len(read) == 3


def test_models_that_are_kept_are_few(photos: list[Path], tmp_path: Path) -> None:
    for seed in range(4):
        path = write_tiny_model(tmp_path / f"{seed}.safetensors", seed)
        tcl_core.segment(photos[1], SEATS, model=path)
    assert [key[0] for key in loaded._kept] == [str(tmp_path / f"{seed}.safetensors") for seed in (2, 3)]


def test_files_arrays_and_images_of_pillow_are_alike(photos: list[Path], tiny_model_path: Path) -> None:
    pixels = tcl_core.load_image(photos[0])
    given = [photos[0], str(photos[0]), pixels, Image.open(photos[0]), Image.fromarray(pixels).convert("RGBA")]
    results = [tcl_core.segment(one, SEATS, model=tiny_model_path) for one in given]
    assert [result.file_name for result in results] == ["a.png", "a.png", *["image-0001.png"] * 3]
    for result in results[1:]:
        assert np.array_equal(result.image, pixels) and np.array_equal(result.label_map, results[0].label_map)
    several = tcl_core.segment((photos[0], pixels), SEATS, model=tiny_model_path)
    assert [result.file_name for result in several] == ["a.png", "image-0002.png"]
    assert tcl_core.segment([], SEATS, model=tiny_model_path) == []


def test_transparent_images_of_pillow_lie_on_white_as_files_do(tmp_path: Path, tiny_model_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 4), dtype=np.uint8))
    image.save(tmp_path / "t.png")
    result = tcl_core.segment(image, ["cat"], model=tiny_model_path)
    from_file = tcl_core.load_image(tmp_path / "t.png").astype(int)
    assert np.abs(result.image.astype(int) - from_file).max() <= 1


def test_a_segmenter_is_taken_with_its_own_settings(photos: list[Path], tiny_model_path: Path) -> None:
    own = tcl_core.Segmenter.from_pretrained(tiny_model_path, refine=False)
    assert isinstance(own, PlainSegmenter)
    result = tcl_core.segment(photos[0], SEATS, model=own)
    assert result.settings == own.settings() and result.settings["refine"] is False
    by_name = tcl_core.segment(photos[0], SEATS, model=tiny_model_path, refine=False)
    assert np.array_equal(result.label_map, by_name.label_map)
    with pytest.raises(tcl_core.SettingsError, match="refine, device: the segmenter .* has its own settings"):
        tcl_core.segment(photos[0], SEATS, model=own, refine=False, device="cpu")


def test_regions_masks_and_label_map_are_of_one_piece(photos: list[Path], tiny_model_path: Path) -> None:
    result = tcl_core.segment(photos[0], SEATS, model=tiny_model_path, min_area=300)
    assert (result.label_map != result.segmentation.label_map).any()
    painted = np.zeros(result.size, np.int32)
    for region in result.regions(None):
        painted[region.full_mask(result.size)] = region.label_id
    assert np.array_equal(painted, result.label_map)
    assert np.array_equal(result.mask("Pet"), painted == 2)
    with pytest.raises(tcl_core.SettingsError, match="no label 'pet'; the labels are: Seat, Pet, sky"):
        result.mask("pet")
    for share in result.shares():
        assert share.share == pytest.approx(result.mask(share.name).mean())
    exact = tcl_core.segment(photos[0], SEATS, model=tiny_model_path, min_area=0)
    assert np.array_equal(exact.label_map, exact.segmentation.label_map)


def test_a_notebook_shows_the_image_and_a_table(photos: list[Path], tiny_model_path: Path) -> None:
    result = tcl_core.segment(photos[0], {"<b>Cat</b>": "cat", "dog": "dog"}, model=tiny_model_path)
    shown = result._repr_html_()
    assert "&lt;b&gt;Cat&lt;/b&gt;" in shown and "<b>" not in shown
    assert "data:image/png;base64," in shown
    png = Image.open(io.BytesIO(result._repr_png_()))
    assert np.array_equal(np.asarray(png), np.asarray(result.plot()))
    assert png.size > result.size[::-1]
    large = replace(result, image=np.zeros((900, 1800, 3), np.uint8), segmentation=_blank(result, (900, 1800)))
    assert max(Image.open(io.BytesIO(large._repr_png_())).size) == 800
    assert "<table" in shown and "Not found" not in shown
    assert "Not found: &lt;b&gt;Cat&lt;/b&gt;, dog" in large._repr_html_() and "<table" not in large._repr_html_()
    assert repr(large) == "Result('a.png', 1800 x 900 pixels: nothing found)"
    assert "144 x 96 pixels: " in repr(result)
    with pytest.raises(tcl_core.SettingsError, match="opacity is 2"):
        result.plot(2)


def _blank(result: tcl_core.Result, size: tuple[int, int]) -> tcl_core.Segmentation:
    return tcl_core.Segmentation(np.zeros(size, np.int32), np.zeros(size, np.float32), result.vocabulary)


def test_files_are_not_replaced_and_not_mixed(photos: list[Path], tiny_model_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    one, two = (tcl_core.segment(photos[0], labels, model=tiny_model_path) for labels in (SEATS, ["cat"]))
    one.save_coco(out)
    with pytest.raises(tcl_core.CocoError, match="o.json already exists"):
        one.save_coco(out)
    one.save_coco(out, overwrite=True)
    with pytest.raises(tcl_core.ExportError, match="a.png was segmented with other labels"):
        tcl_core.save_coco([one, two], tmp_path / "mixed.json")
    with pytest.raises(tcl_core.ExportError, match="no results"):
        tcl_core.save_coco([], tmp_path / "none.json")
    before = photos[0].read_bytes()
    for target in (photos[0], photos[0].parent):
        with pytest.raises(tcl_core.TclError):
            tcl_core.prelabel(photos, SEATS, target, model=tiny_model_path, overwrite=True)
    assert photos[0].read_bytes() == before


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        ("missing.png", ["cat"], "missing.png: no such file"),
        (3, ["cat"], "expected an image as a path, an RGB array .* found int"),
        (np.zeros((4, 4), np.uint8), ["cat"], "must be an RGB array"),
        (Image.new("I;16", (4, 4)), ["cat"], "mode I;16"),
        ("a.png", "cat", "expected a dict such as"),
        ("a.png", {}, "the list is empty"),
        ("a.png", {"labels": ["cat"], "background": False}, "use Vocabulary.from_dict"),
        (
            "a.png",
            {"Cat": ["cat"], "Dog": {"prompts": ["dog"], "colour": "#ffffff"}},
            r"labels\['Dog'\].colour: unknown",
        ),
        ("a.png", {"Cat": "cat, dog"}, r"labels\['Cat'\].prompts: expected a list"),
        ("a.png", ["giraffe"], "does not know the word 'giraffe'"),
    ],
)
def test_mistakes_are_named(image: Any, labels: Any, message: str, tiny_model_path: Path) -> None:
    with pytest.raises(tcl_core.TclError, match=message):
        tcl_core.segment(image, labels, model=tiny_model_path)


def test_a_models_own_templates_are_no_remedy_for_an_unknown_word() -> None:
    image = Image.new("RGB", (64, 64))
    with pytest.raises(tcl_core.TclError, match="word 'lawns'; use another prompt or model$"):
        tcl_core.segment(image, ["lawn"], model="playground")


def test_labels_are_those_of_a_label_file() -> None:
    made = tcl_core.Vocabulary.from_labels(
        {
            "Seat": ["chair", "sofa"],
            "Grass": "grass",
            "Lamp": {"prompts": "lamp", "threshold": 0.5, "color": "#102030"},
        },
        background_threshold=0.4,
        background_names=["floor"],
    )
    entries = [
        {"name": "Seat", "prompts": ["chair", "sofa"]},
        {"name": "Grass", "prompts": ["grass"]},
        {"name": "Lamp", "prompts": ["lamp"], "threshold": 0.5, "color": "#102030"},
    ]
    data = {"labels": entries, "background": {"threshold": 0.4, "names": ["floor"]}}
    assert made == tcl_core.Vocabulary.from_dict(data)
    label = tcl_core.Label("Seat", ("chair",))
    assert tcl_core.Vocabulary.from_labels([label, "cat", {"name": "dog"}]).names == ("Seat", "cat", "dog")


def test_16_bit_arrays_are_refused_with_a_sentence(tiny_model_path: Path) -> None:
    image: NDArray[Any] = np.zeros((8, 8, 3), np.uint16)
    with pytest.raises(tcl_core.ImageError, match="uint16"):
        tcl_core.segment(image, ["cat"], model=tiny_model_path)
