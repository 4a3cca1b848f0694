"""What a job says about its inputs: images that changed before it was resumed, files left out, odd and deep images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_core.cli.main import run
from tcl_core.errors import ImageError
from tcl_core.images import reading as images_reading
from tcl_core.jobs import sources
from tcl_core.jobs.inputs import ImageList, find_images
from tcl_core.jobs.job import PrelabelSettings
from tcl_core.jobs.journal import Journal, journal_path
from tcl_core.models import Model, load_model
from tests.core.prelabel_helpers import run_prelabel
from tests.core.test_prelabel import VOCABULARY, TroubledSegmenter, read, save_image

LABELS = ["--label", "Cat=cat,dog", "--label", "Sofa=sofa,red couch", "--label", "Tree=tree"]


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path, device="cpu")


@pytest.fixture
def segmenter(model: Model) -> TroubledSegmenter:
    return TroubledSegmenter(model, refine=False, batch_size=4)


@pytest.fixture
def fast(tiny_model_path: Path) -> list[str]:
    return ["--model", str(tiny_model_path), "--device", "cpu", "--no-refine"]


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    for number in range(6):
        # No compression, so that images of equal shape are files of equal size.
        save_image(tmp_path / "pics" / f"{number}.bmp", number)
    return find_images([str(tmp_path / "pics")])


def touch(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))


def replace_with_equal_size(path: Path) -> None:
    size = path.stat().st_size
    save_image(path, 77)
    touch(path)
    assert path.stat().st_size == size


def replace_with_older(path: Path) -> None:
    save_image(path, 78)
    os.utime(path, (1e9, 1e9))


def replace_with_other_shape(path: Path) -> None:
    modified = path.stat().st_mtime_ns
    save_image(path, 79, (24, 32))
    os.utime(path, ns=(modified, modified))


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize("change", [replace_with_equal_size, replace_with_older, replace_with_other_shape])
def test_an_image_that_changed_is_labeled_again(
    tmp_path: Path,
    images: ImageList,
    model: Model,
    finished: bool,
    change: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, preview = tmp_path / "out.json", tmp_path / "preview"
    first = TroubledSegmenter(model, refine=False, batch_size=4)
    if not finished:
        first.at, first.trouble = 4, lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    summary = run_prelabel(images, first, VOCABULARY, out, preview=preview)
    assert summary.interrupted is not finished and summary.changed == ()
    before = summary.done
    change(images.path(1))
    again = TroubledSegmenter(model, refine=False, batch_size=4)
    summary = run_prelabel(images, again, VOCABULARY, out, preview=preview, resume=True, quiet=False)
    assert summary.changed == ("1.bmp",) and summary.done == 6
    assert again.calls == 6 - before + 1
    assert "1 of them have changed" in capsys.readouterr().err
    fresh = tmp_path / "fresh.json"
    run_prelabel(
        images, TroubledSegmenter(model, refine=False, batch_size=4), VOCABULARY, fresh, preview=tmp_path / "p"
    )
    assert out.read_bytes() == fresh.read_bytes()
    cards = [json.loads(line) for line in (preview / "cards.jsonl").read_bytes().splitlines()[1:]]
    reference = [json.loads(line) for line in (tmp_path / "p" / "cards.jsonl").read_bytes().splitlines()[1:]]
    assert {card["name"]: card for card in cards} == {card["name"]: card for card in reference}


def test_what_only_looks_changed_is_not_labeled_again(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    segmenter.at, segmenter.trouble = 4, lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    run_prelabel(images, segmenter, VOCABULARY, out)
    calls = segmenter.calls
    touch(images.path(2))
    hashed: list[str] = []
    digest = sources._sha256
    monkeypatch.setattr(sources, "_sha256", lambda path: hashed.append(path.name) or digest(path))
    with Journal.open(out, *(_journal_arguments(segmenter)), resume=True) as journal:
        assert journal.forget_changed(images.root) == []
    # Only where the time leaves a doubt is an image read.
    assert hashed == ["2.bmp"]
    segmenter.at = -1
    summary = run_prelabel(images, segmenter, VOCABULARY, out, resume=True)
    assert summary.changed == () and segmenter.calls == calls + 2


def _journal_arguments(segmenter: TroubledSegmenter) -> tuple:
    from dataclasses import asdict

    from tcl_core.export.coco import CocoExporter

    exporter = CocoExporter()
    return exporter, VOCABULARY, {**segmenter.settings(), **exporter.settings(), **asdict(PrelabelSettings())}


def test_an_image_that_changed_into_rubbish_is_a_failure_also_later(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    out = tmp_path / "out.json"
    run_prelabel(images, segmenter, VOCABULARY, out)
    images.path(3).write_bytes(b"rubbish")
    for _ in range(2):
        summary = run_prelabel(images, segmenter, VOCABULARY, out, resume=True)
        assert set(summary.failed) == {"3.bmp"} and summary.done == 5
    assert [image["file_name"] for image in read(out)["images"]] == [f"{n}.bmp" for n in (0, 1, 2, 4, 5)]


def test_an_interrupted_run_keeps_a_failure_that_took_a_results_place(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    out = tmp_path / "out.json"
    run_prelabel(images, segmenter, VOCABULARY, out)
    images.path(0).write_bytes(b"rubbish")
    # A second image that changed, before which the run is stopped.
    replace_with_equal_size(images.path(1))
    segmenter.at, segmenter.trouble = segmenter.calls, lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    assert run_prelabel(images, segmenter, VOCABULARY, out, resume=True).interrupted
    with Journal.open(out, *_journal_arguments(segmenter), resume=True) as journal:
        assert set(journal.failed) == {"0.bmp"} and "0.bmp" not in journal.done
    segmenter.at = -1
    summary = run_prelabel(images, segmenter, VOCABULARY, out, resume=True)
    assert summary.done == 5 and set(summary.failed) == {"0.bmp"} and not journal_path(out).exists()


def test_an_image_that_changes_while_it_is_read_counts_as_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    save_image(path)
    before = os.stat(path)
    assert not sources.Source.of(path, before).has_changed(path)
    touch(path)
    assert sources.Source.of(path, before).has_changed(path)
    assert not sources.Source.of(path, os.stat(path)).has_changed(tmp_path / "gone.bmp")


def test_the_output_knows_no_times(tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    run_prelabel(images, segmenter, VOCABULARY, one)
    for number in range(6):
        touch(images.path(number))
    run_prelabel(images, segmenter, VOCABULARY, two)
    assert one.read_bytes() == two.read_bytes()
    assert read(one)["info"]["sources"]["0.bmp"].keys() == {"size", "sha256"}


# -- files left out ----------------------------------------------------------------------------------------------------


def test_files_left_out_are_counted_by_their_endings(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "z/.hidden.png", ".DS_Store"):
        save_image(tmp_path / "pics" / "x.png")
        (tmp_path / "pics" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pics" / name).write_bytes((tmp_path / "pics" / "x.png").read_bytes())
    for name in ("1.TXT", "2.txt", "z/3.txt", "noending", "labels.yaml", "out.json"):
        (tmp_path / "pics" / name).write_text("no image")
    excluded = [tmp_path / "pics" / "labels.yaml"]
    found = find_images([str(tmp_path / "pics"), str(tmp_path / "pics" / "out.json")], exclude=excluded)
    assert found.file_names == ("a.png", "b.png", "x.png", "out.json")
    assert found.left_out == {".txt": 3, "": 1}
    assert found.left_out_message() == "4 files left out: .txt (3), without an extension (1)"
    assert find_images([str(tmp_path / "pics" / "a.png")]).left_out_message() == ""


def test_the_command_says_what_it_leaves_out(
    tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images_reading, "HeifImageFile", None)
    monkeypatch.setattr("tcl_core.jobs.inputs.is_supported", lambda path: str(path).endswith(".png"))
    save_image(tmp_path / "pics" / "a.png")
    for number in range(3):
        (tmp_path / "pics" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "pics" / "labels.yaml").write_text("[cat]")
    # Its own files do not count, in the second run neither.
    words = ["prelabel", "pics", "--labels", "pics/labels.yaml", *fast, "--quiet"]
    own = ["--out", "pics/o.json", "--failures", "pics/f.csv", "--preview", "pics/preview"]
    for more in ([], ["--overwrite"]):
        assert run([*words, *own, *more]) == 0
        said = capsys.readouterr().err
        assert said.startswith("3 files left out: .heic; for HEIF images, install pillow-heif (pip install")
        assert "'tcl-annotate[heif]'" in said


def test_where_nothing_is_an_image_the_error_says_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcl_core.jobs.inputs.is_supported", lambda path: False)
    for number in range(3):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(b"x")
    with pytest.raises(ImageError, match=r": no images found.*; 3 files left out: \.heic; for HEIF images, install"):
        find_images([str(tmp_path)])


# -- odd and deep images -----------------------------------------------------------------------------------------------


def test_a_jpeg_without_its_end_is_labeled_with_a_warning(
    tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "pics" / "a.jpg")
    data = (tmp_path / "pics" / "a.jpg").read_bytes()
    (tmp_path / "pics" / "b.jpg").write_bytes(data[:-2])
    words = ["prelabel", str(tmp_path / "pics"), *LABELS, *fast, "--out"]
    for number, more in enumerate(([], ["--quiet"])):
        assert run([*words, str(tmp_path / f"{number}.json"), *more]) == 0
        assert capsys.readouterr().err.count("warning: b.jpg: the end marker of the JPEG is missing") == 1
    assert run(["segment", str(tmp_path / "pics" / "b.jpg"), *LABELS, *fast]) == 0
    assert "b.jpg: the end marker" in capsys.readouterr().err


def test_the_depth_of_images_is_an_option_and_a_setting(
    tmp_path: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "a.png")
    gray = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(np.uint16)
    (tmp_path / "pics").mkdir()
    Image.fromarray(gray * 16).save(tmp_path / "pics" / "a.png")
    words = ["prelabel", str(tmp_path / "pics"), *LABELS, *fast, "--quiet", "--geometry", "rle", "--out"]
    for depth in ("auto", "12", "16"):
        assert run([*words, str(tmp_path / f"{depth}.json"), "--bit-depth", depth]) == 0
    auto, twelve, sixteen = (read(tmp_path / f"{depth}.json") for depth in ("auto", "12", "16"))
    assert auto["annotations"] == twelve["annotations"] != sixteen["annotations"]
    assert [data["info"]["settings"]["bit_depth"] for data in (auto, twelve, sixteen)] == [None, 12, 16]
    capsys.readouterr()
    assert run([*words, str(tmp_path / "12.json"), "--bit-depth", "14", "--resume"]) == 2
    assert "bit_depth 12, now it is 14" in capsys.readouterr().err
    for wrong in ("0", "17", "high", "-3"):
        assert run([*words, str(tmp_path / "x.json"), f"--bit-depth={wrong}"]) == 2
        assert f"--bit-depth {wrong}: give auto, or a number of bits from 1 to 16" in capsys.readouterr().err
