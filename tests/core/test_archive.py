"""From a folder of unlabeled images to references that every front end uses as a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tcl_core.archive import building, store
from tcl_core.archive.base import Base, load_base
from tcl_core.archive.building import build_archive
from tcl_core.archive.doubt import better_names
from tcl_core.archive.page import write_page
from tcl_core.archive.pixels import middle_square
from tcl_core.archive.references import find_references, write_references
from tcl_core.archive.store import ArchiveFolder
from tcl_core.cli.archive import _beside as place_beside
from tcl_core.cli.main import run
from tcl_core.errors import SettingsError, WeightsError
from tcl_core.jobs.inputs import find_images
from tcl_core.methods.reco import ReCo
from tcl_core.models import load_model
from tcl_core.models.modelfile import read_metadata
from tcl_core.playground.export import write_scenes
from tcl_core.vocabulary import Vocabulary
from tests.chromium import chromium

LABELS = ["--label", "House=house", "--label", "sky", "--label", "grass"]
VOCABULARY = Vocabulary.from_options(["House=house", "sky", "grass"])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 12, 5, (64, 80), ground_truth=False)
    (folder / "deeper").mkdir()
    shutil.copy(folder / "scene-0001.png", folder / "deeper" / "scene-0001.png")
    return folder


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("playground", device="cpu", precision="float32")


@pytest.fixture(scope="module")
def archive(scenes: Path, base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "a"
    build_archive(base, find_images([str(scenes)]), folder)
    return folder


@pytest.fixture(scope="module")
def references(archive: Path, base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references") / "mine.safetensors"
    write_references(path, base, find_references(base, ArchiveFolder(archive), VOCABULARY, images=4))
    return path


# -- building --------------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_clip(scenes: Path, archive: Path, base: Base) -> None:
    found = ArchiveFolder(archive)
    assert len(found) == 13 and "deeper/scene-0001.png" in found.entries
    text = torch.nn.functional.normalize(torch.randn(base.method.clip.embed_dim), dim=0)
    names, values = found.similarities(text)
    pixels = np.asarray(Image.open(scenes / names[3]).convert("RGB"))
    side, (mean, std) = base.embedded_side, (base.model.preprocess.mean, base.model.preprocess.std)
    square = torch.from_numpy(middle_square(pixels, side) / 255.0).float().permute(2, 0, 1)
    square = (square - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        embedded = torch.nn.functional.normalize(base.method.clip.encode_image(square[None]), dim=-1)[0]
    assert float(embedded @ text) == pytest.approx(float(values[3]), abs=1e-5)
    nearest = found.nearest(text, 4, {names[int(values.argmax())]})
    assert [value for _, value in nearest] == sorted(values.tolist(), reverse=True)[1:5]
    # A bound that keeps nothing in memory gives the same.
    assert ArchiveFolder(archive, cache_bytes=0).nearest(text, 4, ()) == found.nearest(text, 4, ())


def test_only_new_and_changed_images_are_embedded(
    scenes: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "PART", 4)
    images = tmp_path / "images"
    shutil.copytree(scenes, images)
    first = build_archive(base, find_images([str(images)]), tmp_path / "a", batch_size=3)
    assert (first.total, first.added) == (13, 13) and len(list((tmp_path / "a").glob("part-*"))) == 4
    again = build_archive(base, find_images([str(images)]), tmp_path / "a")
    assert (again.total, again.added) == (13, 0)
    Image.new("RGB", (70, 70), (255, 0, 0)).save(images / "scene-0002.png")
    Image.new("RGB", (40, 90), (0, 0, 255)).save(images / "new.png")
    (images / "broken.png").write_bytes(b"no image")
    third = build_archive(base, find_images([str(images)]), tmp_path / "a")
    assert (third.total, third.added, list(third.failed)) == (14, 2, ["broken.png"])
    found = ArchiveFolder(tmp_path / "a")
    plain = torch.full((found.about.embed_dim,), 1.0)
    red = dict(zip(*found.similarities(plain), strict=True))["scene-0002.png"]
    assert red != pytest.approx(dict(zip(*ArchiveFolder(tmp_path / "a").similarities(plain), strict=True))["new.png"])
    assert len(found.similarities(plain)[0]) == 14
    # What was deleted or damaged is not retrieved.
    (images / "new.png").unlink()
    (images / "scene-0003.png").write_bytes((images / "scene-0003.png").read_bytes()[:200])
    assert not {"new.png", "scene-0003.png"} & {name for name, _ in found.nearest(plain, 14, ())}
    assert set(found.passed_over) == {"new.png", "scene-0003.png"}
    assert all(name in reason for name, reason in found.passed_over.items())


def test_a_stopped_build_keeps_its_parts(
    scenes: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "PART", 4)
    seen: list[str] = []

    def stop(name: str, _: str | None) -> None:
        seen.append(name)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_archive(base, find_images([str(scenes)]), tmp_path / "a", batch_size=2, on_image=stop)
    assert len(ArchiveFolder(tmp_path / "a")) == 4
    rest = build_archive(base, find_images([str(scenes)]), tmp_path / "a")
    assert (rest.total, rest.added) == (13, 9)


def test_archives_that_cannot_be_used(scenes: Path, archive: Path, base: Base, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is no archive .*archive build"):
        ArchiveFolder(tmp_path / "none")
    other = tmp_path / "a"
    shutil.copytree(archive, other)
    about = json.loads((other / "archive.json").read_text())
    (other / "archive.json").write_text(json.dumps({**about, "sha256": "0" * 64}))
    with pytest.raises(SettingsError, match="archive of another sha256"):
        build_archive(base, find_images([str(scenes)]), other)
    with pytest.raises(SettingsError, match=r"embedded by playground .*build the archive again"):
        find_references(base, ArchiveFolder(other), VOCABULARY)
    (other / "archive.json").write_text(json.dumps({**about, "side": "large"}))
    with pytest.raises(SettingsError, match=r"archive\.json: side must be a whole number"):
        ArchiveFolder(other)
    (other / "archive.json").write_text(json.dumps(about))
    part = other / "part-000000.safetensors"
    for names in (["../../etc/passwd"], ["/etc/passwd"], ["a", "b"]):
        save_file(load_file(part), part, {"images": json.dumps([[name, 1, 1] for name in names] * 13)[:-1] + "]"})
        with pytest.raises(SettingsError, match=r"part-000000.safetensors: is damaged; delete this file"):
            ArchiveFolder(other)
    part.write_bytes(b"torn")
    with pytest.raises(SettingsError, match="is damaged"):
        ArchiveFolder(other)


def test_names_that_leave_the_root_on_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not store._leads_out("deeper/a b.png") and all(map(store._leads_out, ("", ".", "a/../../b", "/b", "a\0")))
    monkeypatch.setattr(store, "PurePath", PureWindowsPath)
    assert not store._leads_out("deeper/a b.png")
    assert all(map(store._leads_out, (r"a\..\..\b", r"\b", "C:b", r"C:\b", r"\\server\share\b", "../b")))


def test_an_archive_lies_beside_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    given = [place_beside(name) for name in ("more", "more/", ".", "..", "more/..")]
    beside = [tmp_path.with_name(f"{tmp_path.name}-archive"), tmp_path / "photos-archive"]
    assert given == [Path("more-archive"), Path("more-archive"), beside[1], beside[0], beside[1]]
    with pytest.raises(SettingsError, match="pass --out DIR"):
        place_beside("/")


# -- references ------------------------------------------------------------------------------------------------------


def test_references_are_a_small_model(references: Path, base: Base, scenes: Path) -> None:
    assert references.stat().st_size < 20_000
    assert not any(name.encode() in references.read_bytes() for name in ("scene-0001", str(scenes)))
    about = read_metadata(references)
    assert about.clip["model"] == "playground" and about.extra["references"]["style"] == "ReCo-style"
    assert about.extra["references"]["correspondences"] == "the CLIP's own tokens"
    model = load_model(references, device="cpu")
    assert isinstance(model.method, ReCo) and set(model.method.config.names) == {"tree", "house", "sky", "grass"}
    found = find_references(base, ArchiveFolder(archive_of(base, scenes, references)), VOCABULARY, images=4)
    assert torch.equal(model.method.references, found.fitting.references)
    with pytest.raises(Exception, match=r"'cat'.*the model 'mine' has no reference for it"):
        model.check_prompts(["cat"])


def archive_of(base: Base, scenes: Path, beside: Path) -> Path:
    build_archive(base, find_images([str(scenes)]), beside.parent / "again")
    return beside.parent / "again"


def test_the_borrowed_clip_must_be_the_same(references: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from tcl_core.models.modelfile import read_model_file, write_model_file

    file = read_model_file(references)
    for clip, part in (
        ({"model": "playground", "sha256": "0" * 64}, "was made with the model 'playground' with SHA-256 000"),
        ({"model": "no-such", "sha256": "0" * 64}, "there is no model and no file called 'no-such'"),
        ({"model": str(references), "sha256": "0" * 64}, "borrows the CLIP of .*which has none of its own"),
    ):
        write_model_file(tmp_path / "x.safetensors", replace(file.metadata, clip=clip), file.learned)
        with pytest.raises(WeightsError, match=part):
            load_model(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="'model' with 'sha256'"):
        replace(file.metadata, clip={"model": "playground"})
    with pytest.raises(SettingsError, match="needs learned tensors.*'tcl-annotate archive fit' makes"):
        load_model("reco:playground")


def test_references_are_no_base(references: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"mine.safetensors: borrows the CLIP of playground; pass --model playground"
    ):
        load_base(str(references), device="cpu")


def test_struck_out_images_and_names_that_are_wrong(archive: Path, base: Base) -> None:
    folder = ArchiveFolder(archive)
    first = find_references(base, folder, VOCABULARY, images=3)
    house = next(word for word in first.fitting.words if word.name == "house")
    without = {"house": [house.images[0].name]}
    again = find_references(base, folder, VOCABULARY, images=3, without=without)
    names = [image.name for word in again.fitting.words if word.name == "house" for image in word.images]
    assert names[:2] == [image.name for image in house.images[1:]] and again.settings["struck_out"] == 1
    for wrong, part in (({"cat": ["x"]}, "no prompt 'cat'"), ({"house": ["no.png"]}, "no image 'no.png'")):
        with pytest.raises(SettingsError, match=part):
            find_references(base, folder, VOCABULARY, without=wrong)


def test_absent_words_are_doubted() -> None:
    """By how many other names fit the retrieved images better."""
    images, texts = torch.eye(4)[:2], torch.eye(4)
    assert better_names(images, texts, 0) == pytest.approx(1 / 6)
    assert better_names(images, texts, 3) == pytest.approx(1 / 3)
    assert better_names(images[:1], texts, 0) == 0


@pytest.mark.slow
def test_doubt_is_said(archive: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    from tcl_core.archive import doubt

    for limit, doubted in ((-1.0, {"tree", "house", "sky", "grass"}), (1.0, set())):
        monkeypatch.setattr(doubt, "MOST_BETTER", limit)
        found = find_references(base, ArchiveFolder(archive), VOCABULARY, images=4)
        assert set(found.doubtful) == doubted
        assert all("may not show it" in reason and "%" in reason for reason in found.doubtful.values())


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_images_to_every_front_end(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scenes, "photos")
    assert run(["archive", "build", "photos", "--quiet"]) == 0
    fit = ["archive", "fit", "photos-archive", *LABELS, "--out", "refs.safetensors", "--page", "page", "--quiet"]
    assert run(fit) == 0
    shown = capfd.readouterr().out
    assert "photos-archive: 13 images, 13 of them new" in shown and "refs.safetensors: 4 references" in shown
    assert "correspondences by the CLIP's own tokens (ReCo-style)" in shown
    assert run(fit) == 2 and "already exists" in capfd.readouterr().err
    Path("photos/scene-0002.png").write_bytes(b"")
    assert run([*fit, "--overwrite"]) == 0
    assert "1 image of the archive cannot be read any more and was passed over" in capfd.readouterr().err
    shutil.copyfile(scenes / "scene-0002.png", "photos/scene-0002.png")
    Path("struck.json").write_text('{"house": ["scene-0001.png"]}')
    assert run([*fit, "--overwrite", "--without", "struck.json"]) == 0
    model = ["--model", "refs.safetensors"]
    assert run(["prelabel", "photos", *LABELS, *model, "--out", "labels.json", "--quiet"]) == 0
    coco: dict[str, Any] = json.loads(Path("labels.json").read_text())
    assert len(coco["images"]) == 13 and len({a["category_id"] for a in coco["annotations"]}) > 1
    compared = ["compare", "photos/scene-0001.png", *LABELS, *model, "--model", "maskclip:playground"]
    assert run([*compared, "--preview", "compared", "--quiet"]) == 0
    capfd.readouterr()
    assert run(["segment", "photos/scene-0001.png", "--label", "cat", *model]) == 2
    found = capfd.readouterr().err
    assert found.count("\n") == 1 and "has no reference for it" in found and "archive fit" in found
    assert run(["models", "options", "refs.safetensors"]) == 0
    assert "temperature=10.0" in capfd.readouterr().out
    from labelstudio_backend.model_options import ModelOptions

    options = ModelOptions("refs.safetensors", device="cpu")
    assert '"method": "reco"' in options.identity() and options.load().method.name == "reco"


@pytest.mark.slow
def test_another_encoder(archive: Path, tmp_path: Path) -> None:
    """A file of timm's weights in the place of the CLIP's tokens; it is checked when the references are loaded."""
    import timm

    weights = tmp_path / "vit.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict(), weights)
    base = load_base("playground", device="cpu", encoder=f"vit_tiny_patch16_224={weights}")
    found = find_references(base, ArchiveFolder(archive), VOCABULARY, images=2)
    assert found.settings["correspondences"] == "vit_tiny_patch16_224"
    write_references(tmp_path / "refs.safetensors", base, found)
    model = load_model(tmp_path / "refs.safetensors", device="cpu")
    assert model.method.references.shape == (4, 192) and model.method.image is not None  # type: ignore[union-attr]
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="was made with an image encoder with SHA-256"):
        load_model(tmp_path / "refs.safetensors")
    with pytest.raises(SettingsError, match="no image encoder 'resnet'"):
        load_base("playground", device="cpu", encoder="resnet")


@pytest.mark.slow
def test_images_are_struck_out_on_the_page(archive: Path, base: Base, tmp_path: Path) -> None:
    from urllib.parse import unquote

    folder = ArchiveFolder(archive)
    found = find_references(base, folder, VOCABULARY, images=3)
    page = write_page(tmp_path / "page", folder, found, {"sky": ["scene-0003.png"]})
    with chromium(tmp_path / "profile") as browser:
        browser.get(page.as_uri())
        # Images below the window are loaded only when they are scrolled to.
        script = (
            "const done = arguments[0];"
            "Promise.all([...document.images].map((i) => { i.loading = 'eager'; return i.decode(); }))"
            ".then(() => done(true), () => done(false));"
        )
        assert browser.execute_script("return document.images.length") == 12 and browser.execute_async_script(script)
        assert len(browser.find_elements("css selector", "section")) == 4
        button = browser.find_element("css selector", 'section[data-word="house"] button')
        name = button.get_attribute("data-image")

        def saved() -> dict[str, list[str]]:
            link = browser.find_element("id", "save").get_attribute("href")
            return json.loads(unquote(link.partition(",")[2]))

        assert saved() == {"sky": ["scene-0003.png"]}
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert saved() == {"sky": ["scene-0003.png"], "house": [name]}
        assert browser.find_element("id", "count").text == "2 images struck out"
        button.click()
        assert saved() == {"sky": ["scene-0003.png"]}
