from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_tcl.folder import FolderJob, JobChangedError, beside
from tcl_core.errors import SettingsError, VocabularyError
from tcl_core.export.coco import validate_coco
from tcl_core.models import Model, load_model
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import Progress
from tcl_core.segmentation.specks import without_specks
from tcl_core.vocabulary import Label, Vocabulary
from tests.napari.coco_pixels import label_maps_of

VOCABULARY = Vocabulary.from_options(["Cat=cat", "Sky=sky", "Tree=tree"])


@pytest.fixture
def photos(tmp_path: Path, image: np.ndarray) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.png", "more/a.png"]):
        Image.fromarray(np.roll(image, 16 * number, axis=1)).save(folder / name)
    return folder


@pytest.fixture
def opened(photos: Path, segmenter: Segmenter, tmp_path: Path) -> Callable[[], FolderJob]:
    return lambda: FolderJob.open(photos, VOCABULARY, segmenter.settings(), tmp_path / "masks")


def test_interrupted_job_is_taken_up(
    opened: Callable[[], FolderJob], segmenter: Segmenter, image: np.ndarray, tmp_path: Path
) -> None:
    for state in opened().run(segmenter):
        assert (state.file_name, state.state) == ("a.png", "labeled")
        break
    assert [state.state for state in opened().states()] == ["labeled", "waiting", "waiting"]
    job = opened()
    assert [state.file_name for state in job.run(segmenter)] == ["b.png", "more/a.png"]
    assert list(job.run(segmenter)) == []

    assert job.export(tmp_path / "labels.json", geometry="rle") == 3
    assert validate_coco(tmp_path / "labels.json", job.images.root) == []
    found = segmenter.segment_image(image, VOCABULARY)
    expected = without_specks(found, segmenter.model, "auto").label_map
    assert np.array_equal(label_maps_of(tmp_path / "labels.json")["a.png"], expected)
    assert not np.array_equal(found.label_map, expected)


def test_all_regions_are_kept_where_no_area_is_too_small(
    opened: Callable[[], FolderJob], segmenter: Segmenter, image: np.ndarray
) -> None:
    job = opened()
    next(iter(job.run(segmenter, min_area=0)))
    assert np.array_equal(job.load("a.png").label_map, segmenter.segment_image(image, VOCABULARY).label_map)


def test_corrections_are_kept_and_exported(
    opened: Callable[[], FolderJob], segmenter: Segmenter, tmp_path: Path
) -> None:
    job = opened()
    list(job.run(segmenter))
    found = job.load("b.png")
    found.label_map[:10] = 2
    job.save("b.png", found.label_map, found.score_map)
    again = opened()
    assert [state.state for state in again.states()] == ["labeled", "corrected", "labeled"]
    assert list(again.run(segmenter)) == []
    again.export(tmp_path / "labels.json", geometry="rle")
    assert np.array_equal(label_maps_of(tmp_path / "labels.json")["b.png"], found.label_map)


def test_scores_are_kept_to_a_two_hundredth(opened: Callable[[], FolderJob], segmenter: Segmenter) -> None:
    job = opened()
    list(job.run(segmenter))
    scores = np.linspace(0, 1, 96 * 144, dtype=np.float32).reshape(96, 144)
    job.save("a.png", job.load("a.png").label_map, scores)
    assert np.abs(job.load("a.png").score_map - scores).max() < 1 / 500


def test_broken_image_costs_only_itself(
    opened: Callable[[], FolderJob], segmenter: Segmenter, photos: Path, image: np.ndarray
) -> None:
    (photos / "b.png").write_bytes(b"not an image")
    job = opened()
    states = list(job.run(segmenter))
    assert [state.state for state in states] == ["labeled", "failed", "labeled"]
    assert "not an image" in states[1].reason
    Image.fromarray(image).save(photos / "b.png")
    assert [state.state for state in job.run(segmenter)] == ["labeled"]


def test_cancelling_in_the_middle_of_an_image_loses_nothing(
    opened: Callable[[], FolderJob], segmenter: Segmenter
) -> None:
    def told(name: str) -> Callable[[Progress], None]:
        def tell(progress: Progress) -> None:
            if name == "b.png" and progress.step == "encode":
                raise InterruptedError

        return tell

    with pytest.raises(InterruptedError):
        list(opened().run(segmenter, told))
    assert [state.state for state in opened().states()] == ["labeled", "waiting", "waiting"]


def test_damaged_masks_are_made_again(opened: Callable[[], FolderJob], segmenter: Segmenter, tmp_path: Path) -> None:
    job = opened()
    list(job.run(segmenter))
    for path in (tmp_path / "masks").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SettingsError, match="damaged"):
        job.load("a.png")
    assert len(list(job.run(segmenter))) == 3


def test_wherever_masks_are_damaged_it_is_said(opened: Callable[[], FolderJob], tmp_path: Path) -> None:
    job = opened()
    noise = np.random.default_rng(0).integers(0, 4, (64, 64))
    job.save("a.png", noise, np.zeros((64, 64), np.float32))
    (path,) = (tmp_path / "masks").glob("*.npz")
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        assert job.state("a.png").state in ("waiting", "corrected")
        try:
            job.load("a.png")
        except SettingsError as error:
            refused += "damaged" in str(error) or "does not fit" in str(error)
    assert refused > 100


def test_masks_of_another_size_are_refused(
    opened: Callable[[], FolderJob], segmenter: Segmenter, photos: Path, image: np.ndarray
) -> None:
    job = opened()
    list(job.run(segmenter))
    Image.fromarray(image[:50]).save(photos / "a.png")
    with pytest.raises(SettingsError, match="does not fit"):
        job.load("a.png")


def test_other_labels_are_another_job(
    photos: Path, opened: Callable[[], FolderJob], segmenter: Segmenter, tmp_path: Path
) -> None:
    opened()
    with pytest.raises(JobChangedError, match="other labels") as raised:
        FolderJob.open(photos, Vocabulary.from_options(["cat"]), segmenter.settings(), tmp_path / "masks")
    assert raised.value.vocabulary == VOCABULARY
    labels = list(VOCABULARY.labels)
    for changed, message in (
        ([*labels, Label("tree")], r"\(without tree\)"),
        (labels[1:], rf"\(with {labels[0].name}\)"),
        ([replace(labels[0], threshold=0.25), *labels[1:]], f"threshold of {labels[0].name}"),
        (labels[::-1], "another order"),
    ):
        with pytest.raises(JobChangedError, match=message):
            FolderJob.open(photos, replace(VOCABULARY, labels=tuple(changed)), segmenter.settings(), tmp_path / "masks")


def test_other_settings_are_another_job(
    photos: Path, opened: Callable[[], FolderJob], tiny_model: Model, tmp_path: Path
) -> None:
    job = opened()
    plain = Segmenter(tiny_model, refine=False)
    with pytest.raises(JobChangedError, match=r"other settings \(.*refine") as raised:
        FolderJob.open(photos, VOCABULARY, plain.settings(), tmp_path / "masks")
    assert raised.value.vocabulary is None
    with pytest.raises(SettingsError, match="other settings"):
        list(job.run(plain))


def test_foreign_folder_is_left_alone(photos: Path, segmenter: Segmenter) -> None:
    with pytest.raises(SettingsError, match="other files"):
        FolderJob.open(photos, VOCABULARY, segmenter.settings(), photos)
    assert sorted(path.name for path in photos.iterdir()) == ["a.png", "b.png", "more"]


def test_unknown_word_ends_the_job_at_once(photos: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_options(["giraffe"])
    job = FolderJob.open(photos, vocabulary, segmenter.settings(), tmp_path / "masks")
    with pytest.raises(VocabularyError, match="giraffe"):
        next(iter(job.run(segmenter)))


def test_masks_of_an_image_that_waits(opened: Callable[[], FolderJob]) -> None:
    with pytest.raises(SettingsError, match="not labeled yet"):
        opened().load("a.png")


def test_other_images_are_not_of_the_job(opened: Callable[[], FolderJob]) -> None:
    with pytest.raises(SettingsError, match="not an image of this job"):
        opened().save("z.png", np.zeros((3, 3)), np.zeros((3, 3), np.float32))


def test_damaged_job_file(opened: Callable[[], FolderJob], tmp_path: Path) -> None:
    opened()
    (tmp_path / "masks" / "job.json").write_text("{")
    with pytest.raises(SettingsError, match="damaged"):
        opened()
    shutil.rmtree(tmp_path / "masks")
    opened()


def test_one_label_does_not_cover_images(photos: Path, tiny_model_path: Path, tmp_path: Path) -> None:
    """A softmax over one name is 1 everywhere; names of the background compete with it."""
    method = Segmenter(load_model(f"naclip:{tiny_model_path}"), options={"scale": 1000})
    shares = []
    for names in (None, ()):
        vocabulary = Vocabulary.from_options(["cat"], background_names=names)
        job = FolderJob.open(photos, vocabulary, method.settings(), tmp_path / f"masks {names}")
        assert [state.state for state in job.run(method)] == ["labeled"] * 3
        shares.append(np.mean([job.load(state.file_name).label_map > 0 for state in job.states()]))
    assert 0 < shares[0] < 1 and shares[1] == 1


def test_work_lies_beside_every_folder_but_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    for name in (".", "../photos", "more/..", str(tmp_path / "photos")):
        assert beside(Path(name), "masks") == tmp_path / "photos.masks"
    with pytest.raises(SettingsError, match="choose a folder inside it"):
        beside(Path(tmp_path.anchor), "features")


def test_pixels_changed_by_hand_are_kept(opened: Callable[[], FolderJob], segmenter: Segmenter) -> None:
    job = opened()
    list(job.run(segmenter))
    found = job.load("a.png")
    assert job.by_hand("a.png") is None
    by_hand = np.zeros(found.size, dtype=bool)
    by_hand[3:9, 5:70] = True
    job.save("a.png", found.label_map, found.score_map, by_hand=by_hand)
    kept = opened().by_hand("a.png")
    assert kept is not None and kept.dtype == bool and np.array_equal(kept, by_hand)
    # Without them, as earlier versions saved corrections.
    job.save("a.png", found.label_map, found.score_map)
    assert job.by_hand("a.png") is None and job.state("a.png").state == "corrected"
    job.save("a.png", found.label_map, found.score_map, by_hand=by_hand[:-1])
    with pytest.raises(SettingsError, match="does not fit the image a.png"):
        job.by_hand("a.png")
