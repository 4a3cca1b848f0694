"""What annotators ask and what they are told, and predictions that are replaced: with the real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from labelstudio_backend.brush_rle import encode_brush
from labelstudio_backend.labeling_config import LabelingConfig, parse_labeling_config
from labelstudio_backend.model_options import FAILED_VERSION
from labelstudio_backend.predictor import Predictor
from labelstudio_backend.requests import Plan
from labelstudio_backend.shapes import mask_of_value
from tcl_core.images import load_image
from tcl_core.vocabulary import Label, Vocabulary
from tests.labelstudio.live.conftest import BACKEND_USER
from tests.labelstudio.live.environment import LabelStudioServer
from tests.labelstudio.live.test_images import connect
from tests.labelstudio.live.test_server import SIZE, command, data_url, encoded, retrieve, soon, tasks_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.xdist_group("Label Studio")]

CONFIG = (
    '<View model_background="false"><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="cat"/><Label value="sky"/></BrushLabels>'
    '<RectangleLabels name="rect" toName="image" smart="true" model_skip="true"><Label value="cat"/>'
    '<Label value="sky"/></RectangleLabels>'
    '<EllipseLabels name="round" toName="image" smart="true"><Label value="cat"/><Label value="sky"/></EllipseLabels>'
    '<PolygonLabels name="poly" toName="image" smart="true" model_skip="true"><Label value="cat"/>'
    '<Label value="sky"/></PolygonLabels>'
    '<KeyPointLabels name="point" toName="image" smart="true"><Label value="cat"/><Label value="sky"/>'
    '<Label value="owl"/></KeyPointLabels></View>'
)
LABELS = ("cat", "sky")


def ask(server: LabelStudioServer, project: int, task: int, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask the backend through Label Studio, as its page does."""
    (backend,) = server.api("GET", "/api/ml/", params={"project": project})
    drawn = {"id": "x1", "to_name": "image", "original_width": SIZE[1], "original_height": SIZE[0], **result}
    body = {"task": task, "context": {"result": [drawn]}}
    answer = server.api("POST", f"/api/ml/{backend['id']}/interactive-annotating", json=body)
    assert "errors" not in answer, answer
    return answer["data"]["result"]


def typed(text: str) -> dict[str, Any]:
    return {"type": "textarea", "from_name": "prompt", "value": {"text": [text]}}


def said(results: list[dict[str, Any]]) -> str:
    return "\n".join(line for each in results if each["type"] == "textarea" for line in each["value"]["text"])


def covered(results: list[dict[str, Any]]) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, dtype=bool)
    for each in results:
        if each["type"] == "brushlabels":
            mask |= mask_of_value("brushlabels", each["value"], SIZE)
    return mask


@pytest.fixture(scope="module")
def asked(label_studio: LabelStudioServer, backend_url: str, seed: int) -> tuple[int, int]:
    """A project without a background, and its task."""
    number = connect(label_studio, CONFIG, backend_url, "questions")
    label_studio.api("POST", f"/api/projects/{number}/import", json=[{"image": data_url(seed)}])
    return number, tasks_of(label_studio, number)[0]["id"]


def alone(predictor: Predictor, seed: int, label: str) -> NDArray[np.bool_]:
    """Where a label wins against the background, while the other one is never strong enough."""
    labels = [Label(name, threshold=None if name == label else 1.0) for name in LABELS]
    found = predictor.segmenter.segment_image(load_image(encoded(seed)), Vocabulary(tuple(labels)))
    return found.label_map == LABELS.index(label) + 1


@pytest.fixture(scope="module")
def seed(predictor: Predictor) -> int:
    """An image in which both labels win against the background somewhere, but nowhere near everywhere."""
    for seed in range(200):
        shares = [alone(predictor, seed, label).mean() for label in LABELS]
        if all(0.1 < share < 0.6 for share in shares):
            return seed
    raise AssertionError("no image has both labels")


@pytest.mark.parametrize(
    ("text", "reason"), [("zebra", "zebra"), ("/forget", "not a command"), ("sky: unicorn", "unicorn")]
)
def test_a_prompt_that_cannot_be_answered(
    asked: tuple[int, int], label_studio: LabelStudioServer, text: str, reason: str
) -> None:
    assert reason in said(ask(label_studio, *asked, typed(text)))


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("rectangle", "rect", {"x": 0, "y": 0, "width": 100, "height": 100}),
        ("ellipse", "round", {"x": 50, "y": 50, "radiusX": 40, "radiusY": 40}),
        ("polygon", "poly", {"points": [[50, 10], [90, 50], [50, 90], [10, 50]]}),
    ],
)
def test_the_background_competes_inside_an_area(
    asked: tuple[int, int],
    label_studio: LabelStudioServer,
    predictor: Predictor,
    seed: int,
    kind: str,
    name: str,
    shape: dict[str, Any],
) -> None:
    """The configuration has no background, and the area is not the answer."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    x, y = (columns + 0.5) / SIZE[1] - 0.5, (rows + 0.5) / SIZE[0] - 0.5
    inside = {
        "rectangle": np.ones(SIZE, dtype=bool),
        "ellipse": np.hypot(x, y) < 0.4,
        "polygon": np.abs(x) + np.abs(y) < 0.4,
    }[kind]
    tag = f"{kind}labels"
    for label in LABELS:
        result = {"type": tag, "from_name": name, "value": {**shape, tag: [label]}}
        found = ask(label_studio, *asked, result)
        wanted = alone(predictor, seed, label) & inside
        # Specks of less than four pixels are merged, and an ellipse is drawn with 64 corners.
        assert (covered(found) != wanted).mean() < 0.03
        assert not covered(found).all() and bool(said(found)) != bool(covered(found).any())


def test_a_point_and_a_stroke_pick_the_region_under_them(
    asked: tuple[int, int], label_studio: LabelStudioServer, predictor: Predictor, seed: int
) -> None:
    config = parse_labeling_config(CONFIG)
    regions = covered_by_label(predictor, config, seed)
    assert regions
    for label, mask in regions:
        rows, columns = np.nonzero(mask)
        middle = len(rows) // 2
        y, x = int(rows[middle]), int(columns[middle])
        percent = {"x": (x + 0.5) / SIZE[1] * 100, "y": (y + 0.5) / SIZE[0] * 100, "width": 0.5}
        point = {"type": "keypointlabels", "from_name": "point", "value": {**percent, "keypointlabels": [label]}}
        assert np.array_equal(covered(ask(label_studio, *asked, point)), mask)
        stroke = np.zeros(SIZE, dtype=bool)
        stroke[y, x] = True
        value = {"format": "rle", "rle": encode_brush(stroke), "brushlabels": [label]}
        assert np.array_equal(
            covered(ask(label_studio, *asked, {"type": "brushlabels", "from_name": "brush", "value": value})), mask
        )


def covered_by_label(predictor: Predictor, config: LabelingConfig, seed: int) -> list[tuple[str, NDArray[np.bool_]]]:
    """The regions of the default prediction where the background competes, at most four."""
    with_background = parse_labeling_config(CONFIG.replace(' model_background="false"', ""))
    results = predictor.predict(encoded(seed), Plan(with_background)).results
    return [
        (each["value"]["brushlabels"][0], mask_of_value("brushlabels", each["value"], SIZE)) for each in results[:4]
    ]


def test_what_was_drawn_in_vain_says_why(asked: tuple[int, int], label_studio: LabelStudioServer) -> None:
    owl = {"x": 5, "y": 5, "keypointlabels": ["owl"]}
    found = ask(label_studio, *asked, {"type": "keypointlabels", "from_name": "point", "value": owl})
    assert "'owl', for which no region can be drawn" in said(found)
    outside = {"x": 500, "y": 500, "keypointlabels": ["cat"]}
    found = ask(label_studio, *asked, {"type": "keypointlabels", "from_name": "point", "value": outside})
    assert said(found) == "no region of 'cat' was found under the key point"
    found = ask(label_studio, *asked, {"type": "choices", "from_name": "kind", "value": {"choices": ["x"]}})
    assert found == []
    # As the page does after Submit.
    (backend,) = label_studio.api("GET", "/api/ml/", params={"project": asked[0]})
    body = {"task": asked[1], "context": {"result": []}}
    answer = label_studio.api("POST", f"/api/ml/{backend['id']}/interactive-annotating", json=body)
    assert "errors" not in answer and answer["data"]["result"] == []


def test_what_was_said_about_earlier_prompts_does_not_stay(
    asked: tuple[int, int], label_studio: LabelStudioServer, predictor: Predictor, seed: int
) -> None:
    label = covered_by_label(predictor, parse_labeling_config(CONFIG), seed)[0][0]
    earlier = {"type": "textarea", "from_name": "prompt", "value": {"text": ["zebra", "it is not known", label]}}
    found = ask(label_studio, *asked, earlier)
    assert said(found) == label and covered(found).any()
    assert said(ask(label_studio, *asked, typed(label))) == ""


@contextmanager
def status_of(backend_url: str) -> Iterator[dict[str, Any]]:
    name, _, password = BACKEND_USER.partition(":")
    yield httpx.get(f"{backend_url}/status", auth=(name, password), timeout=60, trust_env=False).json()


def test_one_prediction_for_each_task_with_its_reason(
    label_studio: LabelStudioServer, backend_url: str, secrets: Path, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Failed ones are not added again, and a typed prompt replaces the prediction instead of adding one."""
    config = CONFIG.replace(' model_background="false"', "")
    number = connect(label_studio, config, backend_url, "replaced")
    label_studio.api("PATCH", f"/api/projects/{number}/", json={"model_version": "tcl"})
    images = [data_url(seed), "http://169.254.169.254/a.png", "/data/local-files/?d=no-such.png"]
    label_studio.api("POST", f"/api/projects/{number}/import", json=[{"image": url} for url in images])

    def versions() -> list[list[str]]:
        tasks = sorted(tasks_of(label_studio, number), key=lambda task: task["id"])
        return [[each["model_version"] for each in task["predictions"]] for task in tasks]

    # A request whose predictions Label Studio never stores is looked at for two minutes, and holds up nobody.
    name, _, password = BACKEND_USER.partition(":")
    stale = {"id": 1, "model_version": FAILED_VERSION, "result": []}
    body = {
        "tasks": [{"id": 10**6, "data": {"image": data_url(seed)}, "predictions": [stale]}],
        "project": f"{number}.1",
        "label_config": config,
    }
    answer = httpx.post(f"{backend_url}/predict", json=body, auth=(name, password), timeout=600, trust_env=False)
    assert answer.status_code == 200, answer.text

    for _ in range(2):
        retrieve(label_studio, number)
        soon(lambda: [len(each) for each in versions()] == [1, 1, 1], f"one prediction each: {versions()}")
    ((first,), *failed) = versions()
    assert failed == [[FAILED_VERSION], [FAILED_VERSION]]
    reasons = [said(task["predictions"][0]["result"]) for task in tasks_of(label_studio, number)[-2:]]
    assert sum("allow_hosts" in reason for reason in reasons) == 1 and all("Not predicted" in each for each in reasons)
    with status_of(backend_url) as status:
        (key,) = [key for key in status["projects"] if key.startswith(f"{number}.") and key != f"{number}.1"]
        summary = status["projects"][key]
        assert summary["failed"] == 4 and "the host '169.254.169.254' is not in allow_hosts" in summary["reasons"]
        assert status["old_predictions_replaced"] == "yes"

    task = min(task["id"] for task in tasks_of(label_studio, number))
    (shown,) = label_studio.api("GET", "/api/predictions/", params={"task": task})
    ask(label_studio, number, task, typed("cat: red dog"))
    retrieve(label_studio, number)
    soon(lambda: [len(each) for each in versions()] == [1, 1, 1] and versions()[0] != [first], "the new prediction")
    # Somebody who had the task open before can still submit.
    body = {"result": [], "parent_prediction": shown["id"]}
    label_studio.api("POST", f"/api/tasks/{task}/annotations/", json=body)

    # What was left by another time, and a stranger's prediction.
    strays = [first, FAILED_VERSION, "another-model"]
    for version in strays:
        body = {"task": task, "result": [], "model_version": version}
        label_studio.api("POST", "/api/predictions/", json=body)
    server = ["--url", label_studio.url, "--token-file", secrets / "token.txt", "--project", number]
    code, printed = command(capfd, "clean", *server, "--dry-run")
    assert code == 0 and "4 predictions would be removed" in printed and len(versions()[0]) == 4, printed
    code, printed = command(capfd, "clean", *server)
    assert code == 0 and "4 predictions removed" in printed and "another-model" in printed, printed
    (_, *others), *rest = versions()
    assert others == ["another-model"] and rest == [[], []]
    # Label Studio forgets which model a project shows when it deletes a version of it.
    project = label_studio.api("GET", f"/api/projects/{number}/")
    assert project["model_version"] == "tcl"
