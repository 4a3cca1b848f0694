"""The main job: which images are found, what is written, and that no interruption changes it."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_core.errors import ExportError, ImageError, SettingsError, TclError
from tcl_core.export.coco import CocoExporter
from tcl_core.export.coco.validate.validate import validate_coco
from tcl_core.images import ResizedImage, content_hash, load_image
from tcl_core.jobs.inputs import ImageList, find_images
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.job import PrelabelSettings, PrelabelSummary
from tcl_core.jobs.journal import journal_path
from tcl_core.jobs.progress import Progress
from tcl_core.models import Model, load_model
from tcl_core.preview.page import PreviewWriter
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.types import Segmentation, Unlabeled
from tcl_core.vocabulary import Vocabulary
from tests.core.prelabel_helpers import run_prelabel

VOCABULARY = Vocabulary.from_options(["Cat=cat,dog", "Sofa=sofa,red couch", "Tree=tree"])


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 48)) -> None:
    blocks = np.random.default_rng(seed).integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3))
    pixels = np.kron(blocks, np.ones((8, 8, 1)))[: size[0], : size[1]].astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# -- which images ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.png", "a.PNG", "z/c d.jpg", "z/ä/猫.png", ".hidden.png", ".cache/x.png", "results/img/copy.png"):
        save_image(tmp_path / "pics" / name)
    (tmp_path / "pics" / "notes.txt").write_text("no image")
    save_image(tmp_path / "more" / "b.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_searched_in_order_of_names(tree: Path) -> None:
    found = find_images(["pics"], exclude=[Path("pics/results")])
    assert found.root == tree / "pics"
    assert found.file_names == ("a.PNG", "b.png", "z/c d.jpg", "z/ä/猫.png")
    assert found.path(3).is_file() and len(found) == 4


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["pics/b.png"], ["b.png"]),
        (["more", "pics/b.png", "pics/z"], ["more/b.png", "pics/b.png", "pics/z/c d.jpg", "pics/z/ä/猫.png"]),
        (["pics/b.png", "./pics/b.png", "more/../pics/b.png", "pics/[b]*.png"], ["b.png"]),
        (["pics/z/**/*.png"], ["猫.png"]),
        (["pics/z/*"], ["c d.jpg", "ä/猫.png"]),
        (["*/b.png"], ["more/b.png", "pics/b.png"]),
        (["pics/notes.txt", "pics/b.png"], ["notes.txt", "b.png"]),
        (["pics/.hidden.png"], [".hidden.png"]),
    ],
)
def test_files_folders_and_patterns(tree: Path, inputs: list[str], names: list[str]) -> None:
    assert list(find_images(inputs).file_names) == names


def test_names_are_relative_to_the_root_that_is_set(tree: Path) -> None:
    assert find_images(["pics/z/c d.jpg"], root=tree).file_names == ("pics/z/c d.jpg",)
    with pytest.raises(SettingsError, match="is outside --root"):
        find_images(["more"], root=tree / "pics")
    with pytest.raises(SettingsError, match="is not a folder"):
        find_images(["more"], root=tree / "pics" / "b.png")


def test_a_name_with_brackets_is_a_name_first(tree: Path) -> None:
    save_image(tree / "more" / "x[1].png")
    assert find_images(["more/x[1].png"]).file_names == ("x[1].png",)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["pics/*.tif"], r"pics/\*.tif: the pattern matches no file"),
        (["empty"], "empty: no images found"),
        ([""], "an input is empty"),
        (["pics", "nowhere.png"], "nowhere.png: no such file"),
    ],
)
def test_inputs_without_images_are_errors(tree: Path, inputs: list[str], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        find_images(inputs)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_once_and_keep_their_names(tree: Path) -> None:
    (tree / "more" / "linked").symlink_to(tree / "pics" / "z")
    (tree / "more" / "loop").symlink_to(tree / "more")
    (tree / "more" / "broken.png").symlink_to(tree / "gone.png")
    assert find_images(["more"]).file_names == ("b.png", "broken.png", "linked/c d.jpg", "linked/ä/猫.png")


def test_an_older_preview_in_the_folder_is_not_labeled(tree: Path) -> None:
    with PreviewWriter(tree / "more" / "preview", VOCABULARY) as writer:
        writer.add_image("b.png", load_image(tree / "more" / "b.png"), [])
    assert list((tree / "more" / "preview" / "img").iterdir())
    assert find_images(["more"]).file_names == ("b.png",)


# -- the job -----------------------------------------------------------------------------------------------------------


class TroubledSegmenter(Segmenter):
    """A real segmenter to which something happens: before segmenting call ``at``, or with one image."""

    at = -1
    trouble: Callable[[], None] = staticmethod(lambda: None)
    poison = ""
    calls = 0
    company: list[tuple[str, ...]]

    def encode_batch(  # type: ignore[override]
        self, images: list[ResizedImage], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ImageFeatures]:
        if self.poison in [self.feature_key(image).content for image in images]:
            raise RuntimeError("poisoned\nimage")
        features = super().encode_batch(images, on_progress)
        self.company = [*getattr(self, "company", []), tuple(f.key.content for f in features)]
        return features

    def explain(self, features: ImageFeatures, vocabulary: Vocabulary) -> tuple[Segmentation, Unlabeled]:
        self.call()
        return super().explain(features, vocabulary)

    def segment(self, features: ImageFeatures, vocabulary: Vocabulary) -> Segmentation:
        self.call()
        return super().segment(features, vocabulary)

    def call(self) -> None:
        if self.calls == self.at:
            self.trouble()
        self.calls += 1


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path, device="cpu")


@pytest.fixture
def segmenter(model: Model) -> TroubledSegmenter:
    return TroubledSegmenter(model, refine=False, batch_size=4)


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    folder = tmp_path / "my images"
    for number in range(14):
        save_image(folder / f"{number:02d} ü.png", number, (40, 48) if number % 3 else (33, 21))
    return find_images([str(folder)])


@pytest.fixture
def bad_images(images: ImageList) -> ImageList:
    whole = (images.path(0)).read_bytes()
    (images.root / "01 truncated.png").write_bytes(whole[: len(whole) // 2])
    (images.root / "05 empty.png").touch()
    (images.root / "05 text.jpg").write_text("I am no image")
    (images.root / "99 corrupt.png").write_bytes(whole[:30] + bytes(reversed(whole[30:])))
    return find_images([str(images.root)])


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_image_is_listed_with_the_segmenters_regions(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    out = tmp_path / "out.json"
    exact = PrelabelSettings(min_area=0)
    summary = run_prelabel(images, segmenter, VOCABULARY, out, exporter=CocoExporter("rle"), settings=exact)
    assert summary == PrelabelSummary(14, 14, {}, False)
    assert validate_coco(out, images.root) == []
    data = read(out)
    assert [image["file_name"] for image in data["images"]] == list(images.file_names)
    assert [category["name"] for category in data["categories"]] == ["Cat", "Sofa", "Tree"]
    assert data["info"]["settings"]["model"] == "tiny" and data["info"]["complete"] is True
    for image in data["images"]:
        pixels = load_image(images.root / image["file_name"])
        label_map = segmenter.segment_image(pixels, VOCABULARY).label_map
        own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        areas = np.bincount([a["category_id"] for a in own], [a["area"] for a in own], minlength=4)
        # A batch of other images may move a tie at a border, never more.
        assert np.abs(areas[1:] - np.bincount(label_map.ravel(), minlength=4)[1:]).max() <= 2
    assert len(data["annotations"]) > 40
    assert not journal_path(out).exists()


def test_bad_images_cost_only_themselves(tmp_path: Path, bad_images: ImageList, segmenter: TroubledSegmenter) -> None:
    out = tmp_path / "out.json"
    summary = run_prelabel(bad_images, segmenter, VOCABULARY, out, preview=tmp_path / "preview")
    assert (summary.total, summary.done) == (18, 14)
    assert set(summary.failed) == {"01 truncated.png", "05 empty.png", "05 text.jpg", "99 corrupt.png"}
    assert "the file is empty" in summary.failed["05 empty.png"]
    assert not any(str(tmp_path) in reason for reason in summary.failed.values())
    assert [f["file_name"] for f in read(out)["info"]["failed"]] == sorted(summary.failed)
    assert len(read(out)["images"]) == 14
    page = (tmp_path / "preview" / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 18 and page.count('data-kind="failed"') == 4


def test_specks_join_their_surroundings_unless_all_are_asked_for(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    areas = {}
    for min_area in ("auto", 0):
        out = tmp_path / f"{min_area}.json"
        settings = PrelabelSettings(min_area=min_area)  # type: ignore[arg-type]
        run_prelabel(images, segmenter, VOCABULARY, out, exporter=CocoExporter("rle"), settings=settings)
        sizes = {image["id"]: (image["height"], image["width"]) for image in read(out)["images"]}
        assert read(out)["info"]["settings"]["min_area"] == min_area
        areas[min_area] = [
            (annotation["area"], segmenter.speck_area(sizes[annotation["image_id"]]))
            for annotation in read(out)["annotations"]
        ]
    assert any(area < least for area, least in areas[0])
    assert areas["auto"] and all(area >= least for area, least in areas["auto"])


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["polygon", "rle"])
def test_interrupted_and_resumed_gives_the_same_bytes(
    tmp_path: Path, bad_images: ImageList, model: Model, geometry: str
) -> None:
    exporter = CocoExporter(geometry)  # type: ignore[arg-type]
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    undisturbed = TroubledSegmenter(model, refine=False, batch_size=4)
    run_prelabel(bad_images, undisturbed, VOCABULARY, whole, exporter=exporter, preview=tmp_path / "p1")

    first = TroubledSegmenter(model, refine=False, batch_size=4)
    first.at, first.trouble = 5, lambda: os.kill(os.getpid(), signal.SIGTERM)
    summary = run_prelabel(bad_images, first, VOCABULARY, parts, exporter=exporter, preview=tmp_path / "p2")
    assert summary.interrupted and summary.done == 5
    assert validate_coco(parts, bad_images.root) == []
    assert len(read(parts)["images"]) == 5 and read(parts)["info"]["complete"] is False
    assert "unfinished" in (tmp_path / "p2" / "index.html").read_text(encoding="utf-8")

    second = TroubledSegmenter(model, refine=False, batch_size=4)
    second.at, second.trouble = 3, lambda: os.kill(os.getpid(), signal.SIGINT)
    assert (
        run_prelabel(
            bad_images, second, VOCABULARY, parts, exporter=exporter, preview=tmp_path / "p2", resume=True
        ).done
        == 8
    )

    last = TroubledSegmenter(model, refine=False, batch_size=4)
    summary = run_prelabel(bad_images, last, VOCABULARY, parts, exporter=exporter, preview=tmp_path / "p2", resume=True)
    assert not summary.interrupted and summary.done == 14 and last.calls == 6
    assert parts.read_bytes() == whole.read_bytes()
    for page in ("index.html", "cards.jsonl"):
        one, two = ((tmp_path / p / page).read_text(encoding="utf-8") for p in ("p1", "p2"))
        assert sorted(set(one.splitlines())) == sorted(set(two.replace("parts", "whole").splitlines()))
    # Everything went through the network in the same company as in the undisturbed run.
    assert set(first.company) | set(second.company) | set(last.company) == set(undisturbed.company)


@pytest.mark.slow
def test_killed_without_any_warning(tmp_path: Path, images: ImageList, model: Model) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    run_prelabel(images, TroubledSegmenter(model, refine=False, batch_size=4), VOCABULARY, whole)
    killed = TroubledSegmenter(model, refine=False, batch_size=4)
    killed.at, killed.trouble = 7, die
    with pytest.raises(Killed):
        run_prelabel(images, killed, VOCABULARY, parts)
    journal = journal_path(parts)
    # What SIGKILL leaves: no COCO file, and a journal whose last line may be torn.
    assert not parts.exists()
    journal.write_bytes(journal.read_bytes()[:-40])
    with pytest.raises(ExportError, match="resume"):
        run_prelabel(images, killed, VOCABULARY, parts)
    summary = run_prelabel(images, TroubledSegmenter(model, refine=False, batch_size=4), VOCABULARY, parts, resume=True)
    assert summary.done == 14 and parts.read_bytes() == whole.read_bytes()


def test_an_unexpected_error_costs_one_image_of_a_batch(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    segmenter.poison = content_hash(load_image(images.path(6)))
    summary = run_prelabel(images, segmenter, VOCABULARY, tmp_path / "out.json")
    assert summary.failed == {images.file_names[6]: "internal error, RuntimeError: poisoned image; please report it"}
    segmenter.poison = ""
    summary = run_prelabel(images, segmenter, VOCABULARY, tmp_path / "out.json", resume=True)
    assert summary.failed == {} and summary.done == 14
    assert [image["file_name"] for image in read(tmp_path / "out.json")["images"]] == list(images.file_names)


@pytest.mark.slow
def test_a_preview_asked_for_later_is_filled_in(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    out, preview = tmp_path / "out.json", tmp_path / "preview"
    run_prelabel(images, segmenter, VOCABULARY, out)
    before = out.read_bytes()
    summary = run_prelabel(images, segmenter, VOCABULARY, out, preview=preview, resume=True)
    assert summary.preview == preview / "index.html"
    assert summary.preview.read_text(encoding="utf-8").count("<figure") == 14
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(vocabulary=Vocabulary.from_options(["Cat=hippo"])), "does not know the word 'hippo'"),
        (dict(vocabulary=Vocabulary.from_options(["Cat=cat"], templates="custom")), "templates 'custom'"),
    ],
)
def test_what_is_wrong_with_the_job_is_found_before_it_begins(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter, change: dict, message: str
) -> None:
    arguments = {"vocabulary": VOCABULARY, "out": tmp_path / "out.json", **change}
    with pytest.raises(TclError, match=message):
        run_prelabel(images, segmenter, **arguments)
    assert segmenter.calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["my images"]


@pytest.mark.slow
def test_places_that_hold_something_are_left_alone(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    out, preview = tmp_path / "out.json", tmp_path / "preview"
    run_prelabel(images, segmenter, VOCABULARY, out, preview=preview)
    before = out.read_bytes()
    with pytest.raises(ExportError, match="exists"):
        run_prelabel(images, segmenter, VOCABULARY, out)
    with pytest.raises(SettingsError, match="already contains a preview"):
        run_prelabel(images, segmenter, VOCABULARY, tmp_path / "other.json", preview=preview)
    with pytest.raises(SettingsError, match="contains other files"):
        run_prelabel(images, segmenter, VOCABULARY, out, preview=images.root, overwrite=True)
    with pytest.raises(ExportError, match="was made with"):
        run_prelabel(images, segmenter, VOCABULARY, out, exporter=CocoExporter("rle"), resume=True)
    elsewhere = ImageList(tmp_path, tuple(f"my images/{name}" for name in images.file_names))
    with pytest.raises(SettingsError, match="same --root to resume"):
        run_prelabel(elsewhere, segmenter, VOCABULARY, out, resume=True)
    assert out.read_bytes() == before
    run_prelabel(images, segmenter, VOCABULARY, out, preview=preview, overwrite=True)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "values",
    [{"small": "keep"}, {"min_area": -1}, {"max_pixels": 0}, {"tolerance": "high"}],
    ids=str,
)
def test_settings_out_of_range(values: dict) -> None:
    with pytest.raises(SettingsError, match=next(iter(values)).replace("_", "-")):
        PrelabelSettings(**values)


def test_an_image_over_the_limit_is_skipped(tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter) -> None:
    summary = run_prelabel(images, segmenter, VOCABULARY, tmp_path / "o.json", PrelabelSettings(max_pixels=33 * 21))
    assert len(summary.failed) == 9 and "more than the limit" in min(summary.failed.values())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text(tmp_path: Path, segmenter: TroubledSegmenter) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    save_image(tmp_path / "pics" / name)
    save_image(tmp_path / "pics" / "ok.png")
    (tmp_path / "pics" / os.fsdecode(b"\xff.png")).touch()
    summary = run_prelabel(
        find_images([str(tmp_path / "pics")]), segmenter, VOCABULARY, tmp_path / "o.json", preview=tmp_path / "p"
    )
    assert summary.done == 1
    assert {image["file_name"] for image in read(tmp_path / "o.json")["images"]} == {"ok.png"}
    assert "caf\\udce9.png" in json.dumps(read(tmp_path / "o.json")["info"]["failed"], ensure_ascii=False).replace(
        "\\\\", "\\"
    )


# -- signals and progress ----------------------------------------------------------------------------------------------


def test_a_signal_waits_for_the_end_of_writing_and_comes_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    steps: list[str] = []
    with InterruptGuard() as guard:
        with pytest.raises(KeyboardInterrupt):
            with guard.writing():
                os.kill(os.getpid(), signal.SIGINT)
                with guard.writing():
                    steps.append("inner")
                steps.append("outer")
        assert steps == ["inner", "outer"]
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_elsewhere_interrupts_at_once_and_not_after_the_work() -> None:
    with InterruptGuard():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    with InterruptGuard() as guard:
        guard.hold()
        os.kill(os.getpid(), signal.SIGINT)


def test_progress_says_rate_time_left_and_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("tcl_core.jobs.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    progress = Progress(1210, already=10, stream=stream)
    for _ in range(40):
        clock[0] += 0.5
        progress.advance()
    progress.skip("bad.png: broken")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "30 of 1,210 images, 2.0 a second, about 9 min 50 s left"
    assert "bad.png: broken" in lines[-1]
    assert len(lines) == 3


def test_images_that_were_stored_together_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, the first of them would seem to have taken the time of all."""
    clock = [100.0]
    monkeypatch.setattr("tcl_core.jobs.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    progress = Progress(100, stream=stream)
    clock[0] += 40
    progress.advance(20)
    assert stream.getvalue() == "20 of 100 images, 2.0 seconds each, about 2 min 40 s left\n"


def test_progress_names_the_bottleneck(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("tcl_core.jobs.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    progress = Progress(40, stream=stream)
    progress.bottleneck = "network"
    clock[0] = 20.0
    progress.advance()
    assert stream.getvalue().endswith(" left, bottleneck: network\n")


def test_progress_on_a_terminal_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(4, already=1, stream=stream)
    progress.advance()
    progress.skip("bad.png: broken")
    progress.close()
    assert "3/4" in stream.getvalue() and "bad.png: broken" in stream.getvalue()
    quiet = Terminal()
    silent = Progress(4, stream=quiet, quiet=True)
    silent.skip("x")
    silent.close()
    assert quiet.getvalue() == ""


def test_texts_that_were_asked_for_before_do_not_change_a_bit(tmp_path: Path, tiny_model_path: Path) -> None:
    for number in range(3):
        save_image(tmp_path / "pics" / f"{number}.png", number)
    written = set()
    for before in (
        lambda _: None,
        lambda one: one.background_names(VOCABULARY),
        lambda one: one.embed_background_names(),
    ):
        segmenter = Segmenter(load_model(tiny_model_path, device="cpu"), refine=False, batch_size=4)
        before(segmenter)
        run_prelabel(
            find_images([str(tmp_path / "pics")]), segmenter, VOCABULARY, tmp_path / "out.json", overwrite=True
        )
        written.add((tmp_path / "out.json").read_bytes())
    assert len(written) == 1
