from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tcl_core.errors import ImageError, SettingsError, VocabularyError
from tcl_core.models import Model
from tcl_core.segmentation.features import FeatureCache
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession, Progress
from tcl_core.vocabulary import Label, Vocabulary

LABELS = ["Cat=cat,dog", "Sofa=sofa,couch", "sky"]


class Counter:
    """Counts the steps of the work."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def __call__(self, progress: Progress) -> None:
        self.steps.append(progress.step)


def test_first_result_is_the_segmenters(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    vocabulary = Vocabulary.from_options(LABELS)
    found = ImageSession(segmenter, image).segment(vocabulary)
    expected = segmenter.segment_image(image, vocabulary)
    assert np.array_equal(found.label_map, expected.label_map)
    assert np.array_equal(found.score_map, expected.score_map)
    assert len(np.unique(found.label_map)) > 1


@pytest.mark.slow
@settings(max_examples=25)
@given(
    thresholds=st.lists(st.none() | st.floats(0, 1), min_size=3, max_size=3),
    background=st.booleans(),
    floor=st.none() | st.floats(0, 1),
)
def test_thresholds_give_what_a_new_run_gives(
    tiny_model: Model, thresholds: list[float | None], background: bool, floor: float | None
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    segmenter = Segmenter(tiny_model, cache=FeatureCache())
    session = ImageSession(segmenter, image)
    session.segment(Vocabulary.from_options(LABELS))
    labels = zip(Vocabulary.from_options(LABELS).labels, thresholds, strict=True)
    vocabulary = Vocabulary(
        tuple(Label(label.name, label.prompts, threshold) for label, threshold in labels),
        background,
        floor if background else None,
    )
    counter = Counter()
    found = session.segment(vocabulary, counter)
    expected = segmenter.segment_image(image, vocabulary)
    assert np.array_equal(found.label_map, expected.label_map)
    assert np.array_equal(found.score_map, expected.score_map)
    assert counter.steps == []


def test_background_is_switched_while_a_label_is_added(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    session = ImageSession(segmenter, image)
    session.segment(Vocabulary.from_options([*LABELS, "tree"]))
    session.segment(Vocabulary.from_options(LABELS))
    vocabulary = replace(Vocabulary.from_options([*LABELS, "tree"]), background=False)
    found, expected = session.segment(vocabulary), segmenter.segment_image(image, vocabulary)
    assert np.abs(found.score_map - expected.score_map).max() < 1e-5
    assert np.mean(found.label_map != expected.label_map) < 1e-3


def test_earlier_results_stay_when_labels_are_added(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    session = ImageSession(segmenter, image)
    first = session.segment(Vocabulary.from_options(LABELS))
    label_map, score_map = first.label_map.copy(), first.score_map.copy()
    session.segment(Vocabulary.from_options([*LABELS, "tree"]))
    assert np.array_equal(first.label_map, label_map)
    assert np.array_equal(first.score_map, score_map)


def test_new_prompt_does_not_encode_again(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    session = ImageSession(segmenter, image)
    counter = Counter()
    session.segment(Vocabulary.from_options(LABELS), counter)
    assert counter.steps.count("encode") > 1
    more = Vocabulary.from_options([*LABELS[1:], "tree", "Cat=red cat"])
    assert not session.has_scores(more)
    counter = Counter()
    found = session.segment(more, counter)
    assert set(counter.steps) == {"prompts", "scores"}
    expected = segmenter.segment_image(image, more)
    # Products of matrices of other sizes may differ in the last digit.
    assert np.abs(found.score_map - expected.score_map).max() < 1e-5
    assert np.mean(found.label_map != expected.label_map) < 1e-3


def test_large_results_are_not_kept_at_full_size(
    segmenter: Segmenter, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = Vocabulary.from_options(LABELS)
    session = ImageSession(segmenter, image)
    expected = session.segment(vocabulary)
    monkeypatch.setattr(session, "_plane_bytes", 1000)
    found = session.segment(vocabulary)
    assert np.array_equal(found.label_map, expected.label_map)
    assert np.array_equal(found.score_map, expected.score_map)


def test_cancelled_work_can_be_begun_again(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    session = ImageSession(segmenter, image)
    vocabulary = Vocabulary.from_options(LABELS)

    def cancel(progress: Progress) -> None:
        if (progress.step, progress.done) == ("encode", 1):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        session.segment(vocabulary, cancel)
    assert not session.has_scores(vocabulary)
    assert np.array_equal(session.segment(vocabulary).label_map, segmenter.segment_image(image, vocabulary).label_map)


def test_two_labels_with_the_same_prompts(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    vocabulary = Vocabulary((Label("one", ("cat",)), Label("two", ("cat",))), background=False)
    assert (ImageSession(segmenter, image).segment(vocabulary).label_map == 1).all()


def test_unknown_word_is_found_before_the_image_is_encoded(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    session = ImageSession(segmenter, image)
    counter = Counter()
    with pytest.raises(VocabularyError, match="giraffe"):
        session.segment(Vocabulary.from_options(["giraffe"]), counter)
    assert "encode" not in counter.steps


def test_score_map(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    session = ImageSession(segmenter, image)
    label = Label("Cat", ("cat", "dog"))
    with pytest.raises(SettingsError, match="no scores yet"):
        session.score_map(label, Vocabulary((label,)))
    found = session.segment(Vocabulary((label,), background=False))
    assert np.array_equal(session.score_map(label, found.vocabulary), found.score_map)


def test_what_is_no_image(segmenter: Segmenter) -> None:
    with pytest.raises(ImageError):
        ImageSession(segmenter, np.zeros((4, 4, 3), np.float32)).encode()  # type: ignore[arg-type]


def test_scores_alone_answer_thresholds_and_nothing_else(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    session = ImageSession(segmenter, image)
    session.segment(Vocabulary.from_options(LABELS))
    slim = session.scores_alone()
    assert slim.score_bytes == session.score_bytes > 0 and slim.size == session.size
    for threshold in (0.2, 0.6):
        vocabulary = Vocabulary.from_options(LABELS, background_threshold=threshold)
        assert slim.has_scores(vocabulary)
        assert np.array_equal(slim.segment(vocabulary).label_map, session.segment(vocabulary).label_map)
    with pytest.raises(SettingsError, match="keeps scores alone"):
        slim.segment(Vocabulary.from_options([*LABELS, "tree"]))
    again = slim.scores_alone().segment(Vocabulary.from_options(LABELS))
    assert np.array_equal(again.label_map, session.segment(Vocabulary.from_options(LABELS)).label_map)
