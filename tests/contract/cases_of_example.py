"""The example package where it is installed; run by ``test_example_package.py`` in a process that can find it."""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tcl_core.methods import list_methods
from tcl_core.playground.export import sample_scene
from tcl_core.segmentation.segmenter import Segmenter

MODEL = "example-softmax:playground"
SIZE = (96, 128)
LABELS = ("sofa", "sky", "house", "grass")


def test_list_names_it_without_an_import() -> None:
    assert "example-softmax" in list_methods()
    assert "tcl_annotate_example" not in sys.modules


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return sample_scene(7, 1, SIZE).image


@pytest.fixture(scope="module")
def png(pixels: NDArray[np.uint8]) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def predictor() -> Any:
    from labelstudio_backend.model_options import ModelOptions
    from labelstudio_backend.predictor import Predictor

    options = ModelOptions(MODEL, min_area=0, device="cpu", options={"scale": 8})
    return Predictor(options.load(), options, cache_bytes=64 << 20)


@pytest.fixture(scope="module")
def floor(predictor: Any, pixels: NDArray[np.uint8]) -> float:
    """A background that the best label exceeds at about half of the pixels of the box."""
    segmenter = predictor.segmenter
    features = segmenter.encode(pixels)
    scores = segmenter.score_maps(features, vocabulary())
    middle = scores[:, scores.shape[1] // 4 : -scores.shape[1] // 4, scores.shape[2] // 4 : -scores.shape[2] // 4]
    return round(float(middle.amax(dim=0).quantile(0.5)), 4)


def vocabulary(floor: float | None = None) -> Any:
    from tcl_core.vocabulary import Vocabulary

    # What competes beside the labels would win most of a scene of so few.
    return Vocabulary.from_options(list(LABELS), background_threshold=floor, background_names=())


def xml(floor: float) -> str:
    labels = "".join(f'<Label value="{name}"/>' for name in LABELS)
    return (
        f'<View model_background_threshold="{floor}" model_background_names="none">'
        '<Image name="image" value="$image"/>'
        f'<TextArea name="prompt" toName="image"/><BrushLabels name="brush" toName="image">{labels}</BrushLabels>'
        f'<RectangleLabels name="rect" toName="image" model_skip="true">{labels}</RectangleLabels></View>'
    )


def config(floor: float) -> Any:
    from dataclasses import replace

    from labelstudio_backend.labeling_config import parse_labeling_config

    return replace(parse_labeling_config(xml(floor)), background_threshold=floor)


def drawn(results: list[dict[str, Any]]) -> NDArray[np.int32]:
    """What brush results cover, by the label's place counted from 1."""
    from labelstudio_backend.shapes import mask_of_value

    found = np.zeros(SIZE, dtype=np.int32)
    for result in results:
        (label,) = result["value"]["brushlabels"]
        found[mask_of_value("brushlabels", result["value"], SIZE)] = LABELS.index(label) + 1
    return found


def test_predictor_draws_what_the_segmenter_says(
    predictor: Any, png: bytes, pixels: NDArray[np.uint8], floor: float
) -> None:
    from labelstudio_backend.interactive import Question, answer

    found = answer(predictor, Question(config(floor), {}), png).prediction
    expected = predictor.segmenter.segment_image(pixels, vocabulary(floor)).label_map
    assert np.array_equal(drawn(found.results), expected)
    assert len(np.unique(expected)) > 1


def test_typed_prompt_competes_with_all_names(
    predictor: Any, png: bytes, pixels: NDArray[np.uint8], floor: float
) -> None:
    from labelstudio_backend.interactive import Question, answer
    from labelstudio_backend.requests import Context

    everything = predictor.segmenter.segment_image(pixels, vocabulary(floor)).label_map
    for place, name in enumerate(LABELS, start=1):
        found = answer(predictor, Question(config(floor), {}, Context(text=name)), png).prediction
        assert np.array_equal(drawn(found.results), np.where(everything == place, place, 0))
        assert found.score < 0.999


def test_smart_box_keeps_all_names_competing(
    predictor: Any, png: bytes, pixels: NDArray[np.uint8], floor: float
) -> None:
    """A softmax over one name is 1 everywhere: the box would be filled to its last pixel."""
    from labelstudio_backend.interactive import Question, answer
    from labelstudio_backend.requests import Context, Drawn

    box = ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))
    inside = np.zeros(SIZE, dtype=bool)
    inside[24:72, 32:96] = True
    segmenter: Segmenter = predictor.segmenter
    scores = segmenter.score_maps(segmenter.encode(pixels), vocabulary())
    from tcl_core.segmentation.argmax import enlarge

    filled = []
    for place, name in enumerate(LABELS):
        asked = Question(config(floor), {}, Context(drawn=Drawn(name, "rect", "rectangle", box)))
        found = answer(predictor, asked, png).prediction
        wins = enlarge(scores[place], SIZE).view(SIZE).numpy() > floor
        assert np.array_equal(drawn(found.results) == place + 1, wins & inside)
        assert all(result["score"] < 0.999 for result in found.results)
        filled.append(np.count_nonzero(wins & inside) / np.count_nonzero(inside))
    assert 0 < max(filled) < 1


def test_background_label_is_drawn(predictor: Any, png: bytes, pixels: NDArray[np.uint8]) -> None:
    from labelstudio_backend.interactive import Question, answer
    from labelstudio_backend.labeling_config import parse_labeling_config

    labels = (
        '<Label value="sky"/><Label value="sofa"/>'
        '<Label value="Background" model_score_threshold="0.55" model_skip="false"/>'
    )
    parsed = parse_labeling_config(
        '<View model_background_names="none"><Image name="image" value="$image"/>'
        '<BrushLabels name="brush" toName="image">'
        f"{labels}</BrushLabels></View>"
    )
    found = answer(predictor, Question(parsed, {}), png).prediction
    assert "Background" in {result["value"]["brushlabels"][0] for result in found.results}
    assert all(0 <= result["score"] <= 1 for result in found.results)


def test_server_predicts_with_it(png: bytes, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from labelstudio_backend.app import create_app
    from labelstudio_backend.model_options import ModelOptions
    from labelstudio_backend.settings import ImageSettings, ServerSettings

    settings = ServerSettings(
        model=ModelOptions(MODEL, min_area=4, device="cpu"),
        images=ImageSettings(label_studio_url="http://127.0.0.1:9", local_root=tmp_path),
        state_dir=tmp_path,
    )
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    body = {
        "tasks": [{"id": 1, "data": {"image": url}}],
        "project": "7.1",
        "label_config": xml(0).replace("<View ", '<View model_background="false" '),
        "params": {"context": None},
    }
    with TestClient(create_app(settings)) as client:
        deadline = time.monotonic() + 300
        while (state := client.get("/status").json()["state"]) != "ready":
            assert state == "loading" and time.monotonic() < deadline, client.get("/status").text
            time.sleep(0.2)
        answer = client.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        (prediction,) = answer.json()["results"]
    assert prediction["result"]
    assert (drawn(prediction["result"]) > 0).mean() > 0.9
