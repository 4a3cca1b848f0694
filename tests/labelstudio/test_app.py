"""The HTTP interface with a real worker process behind it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from labelstudio_backend.app import create_app
from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.model_options import FAILED_VERSION, ModelOptions, model_version
from labelstudio_backend.prompts import PromptStore
from labelstudio_backend.settings import ImageSettings, ServerSettings
from labelstudio_backend.shapes import mask_of_value
from tests.odd_json import odd_copies

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Payload = Callable[[str], dict[str, Any]]
SIZE = (48, 64)
SECONDS_TO_LOAD = 600


def image(seed: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize((SIZE[1], SIZE[0]), Image.Resampling.NEAREST).save(encoded, "PNG")
    return encoded.getvalue()


def data_url(seed: int = 0) -> str:
    return "data:image/png;base64," + base64.b64encode(image(seed)).decode()


@pytest.fixture(scope="module")
def server_settings(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerSettings:
    root = tmp_path_factory.mktemp("local files")
    (root / "images").mkdir()
    for name in ("a.png", "b with space.png", "c.jpg"):
        (root / "images" / name).write_bytes(image(len(name)))
    return ServerSettings(
        model=ModelOptions(str(model_path), min_area=4),
        images=ImageSettings(
            label_studio_url="http://127.0.0.1:9",
            label_studio_aliases=("http://127.0.0.1:8080",),
            local_root=root,
            max_bytes=1 << 20,
        ),
        state_dir=tmp_path_factory.mktemp("state"),
        queue=6,
        max_body_bytes=4 << 20,
    )


@pytest.fixture(scope="module")
def client(server_settings: ServerSettings) -> Iterator[TestClient]:
    with TestClient(create_app(server_settings), raise_server_exceptions=False) as running:
        wait_until_ready(running)
        yield running


def wait_until_ready(client: TestClient) -> None:
    deadline = time.monotonic() + SECONDS_TO_LOAD
    while (state := client.get("/status").json()["state"]) != "ready":
        assert state == "loading" and time.monotonic() < deadline, client.get("/status").text
        time.sleep(0.2)


CONFIG = (
    '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="cat"/><Label value="Sofa" predicted_values="sofa"/>'
    "</BrushLabels></View>"
)


def request(urls: list[object], text: str | None = None, project: str = "7.1", config: str = CONFIG) -> dict[str, Any]:
    result = {"type": "textarea", "from_name": "prompt", "value": {"text": [text]}}
    return {
        "tasks": [{"id": number, "data": {"image": url}} for number, url in enumerate(urls, start=1)],
        "project": project,
        "label_config": config,
        "params": {"context": None if text is None else {"result": [result]}},
    }


# -- the recorded requests -----------------------------------------------------------------------------------------


def test_recorded_health_and_versions(client: TestClient, payload: Payload) -> None:
    for name in ("health", "versions"):
        recorded = payload(name)
        answer = client.request(recorded["method"], recorded["path"], headers=recorded["headers"])
        assert answer.status_code == 200
    assert client.get("/health").json()["status"] == "UP"


def test_recorded_setup(client: TestClient, payload: Payload, server_settings: ServerSettings) -> None:
    body = payload("setup")["body"]
    answer = client.post("/setup", json=body)
    config = parse_labeling_config(body["schema"])
    assert answer.json() == {"model_version": model_version(server_settings.model, config, {})}
    assert answer.json()["model_version"] in client.get("/versions").json()["versions"]


def test_recorded_batch(client: TestClient, payload: Payload) -> None:
    body = payload("predict_batch")["body"]
    body["tasks"][5]["data"]["image"] = data_url()  # the record of it was cut short
    answer = client.post("/predict", json=body).json()
    version = answer["model_version"]
    assert version == client.post("/setup", json=payload("setup")["body"]).json()["model_version"]
    assert [result["model_version"] for result in answer["results"]] == [FAILED_VERSION, *[version] * 5]
    assert said(answer["results"][0]).startswith("Not predicted:") and answer["results"][0]["score"] == 0
    for prediction in answer["results"][1:]:
        assert {region["type"] for region in prediction["result"]} <= {
            "brushlabels",
            "polygonlabels",
            "rectanglelabels",
        }, prediction["result"]
        for region in prediction["result"]:
            assert region["value"][region["type"]][0] in ("red ball", "green box")
            assert (region["original_width"], region["original_height"]) == SIZE[::-1]
    # Upload 1 would have to be asked for at a server that is not there.
    failure = client.get("/status").json()["failures"][-1]
    assert failure["task"] == 1 and "/data/upload/1/864f98e9-a.png" in failure["reason"]


def test_recorded_task_that_is_opened(client: TestClient, payload: Payload) -> None:
    body = payload("predict_on_task_open")["body"]
    body["tasks"][0]["data"]["image"] = "/data/local-files/?d=images/a.png"
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200 and len(answer.json()["results"]) == 1


def test_recorded_prompt(client: TestClient, payload: Payload) -> None:
    answer = client.post("/predict", json=payload("predict_interactive_textarea")["body"])
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    drawn = [region for region in prediction["result"] if region["type"] != "textarea"]
    assert {label for region in drawn for label in region["value"][region["type"]]} <= {"green box"}
    assert prediction["result"]


def test_recorded_rectangle(client: TestClient, payload: Payload) -> None:
    body = payload("predict_interactive_rectanglelabels")["body"]
    body["tasks"][0]["data"]["image"] = data_url()
    body["label_config"] = body["label_config"].replace("<View>", '<View model_background="false">', 1)
    (prediction,) = client.post("/predict", json=body).json()["results"]
    drawn = body["params"]["context"]["result"][0]["value"]
    for region in prediction["result"]:
        if region["type"] == "textarea":
            assert "no region of 'rect ball' was found" in region["value"]["text"][0]
            continue
        assert region["from_name"] == "rect" and region["value"]["rectanglelabels"] == ["rect ball"]
        assert region["value"]["x"] >= drawn["x"] - 100 / SIZE[1]
        assert region["value"]["height"] <= drawn["height"] + 200 / SIZE[0]
    assert prediction["result"]


@pytest.mark.parametrize("name", ["webhook_ANNOTATION_CREATED", "webhook_START_TRAINING"])
def test_recorded_webhooks(name: str, client: TestClient, payload: Payload) -> None:
    assert client.post("/webhook", json=payload(name)["body"]).status_code == 200


# -- prompts -------------------------------------------------------------------------------------------------------


def test_prompts_are_kept_listed_and_cleared(client: TestClient, server_settings: ServerSettings) -> None:
    before = client.post("/setup", json={"project": "8.1", "schema": CONFIG}).json()["model_version"]
    answer = client.post("/predict", json=request([data_url()], "cat: red dog", project="8.1")).json()
    assert answer["model_version"] != before
    store = PromptStore(server_settings.state_dir / "prompts.json")
    assert store.get("8.1") == {"cat": ["red dog"]}
    listed = client.post("/predict", json=request([data_url()], "/list", project="8.1")).json()
    assert listed["results"][0]["result"][0]["value"]["text"] == ["cat: red dog"]
    cleared = client.post("/predict", json=request([data_url()], "/clear", project="8.1")).json()
    assert cleared["model_version"] == before and store.get("8.1") == {}


def said(prediction: dict[str, Any]) -> str:
    """What a prediction writes into the prompt field."""
    (result,) = [result for result in prediction["result"] if result["type"] == "textarea"]
    assert (result["from_name"], result["to_name"]) == ("prompt", "image")
    return "\n".join(result["value"]["text"])


@pytest.mark.parametrize(("text", "reason"), [("zebra", "zebra"), ("/forget", "not a command"), ("x" * 300, "longer")])
def test_a_prompt_that_cannot_be_answered_says_why_where_the_annotator_looks(
    text: str, reason: str, client: TestClient
) -> None:
    answer = client.post("/predict", json=request([data_url()], text))
    assert answer.status_code == 200 and reason in said(answer.json()["results"][0])
    # The image may be at fault, too.
    answer = client.post("/predict", json=request(["http://169.254.169.254/a.png"], "cat"))
    assert answer.status_code == 200 and "allow_hosts" in said(answer.json()["results"][0])


def test_without_a_prompt_field_the_reason_is_an_error(client: TestClient) -> None:
    config = CONFIG.replace('<TextArea name="prompt" toName="image"/>', "")
    body = request([data_url()], "x", config=config)
    value = {"x": 1, "y": 1, "keypointlabels": ["zebra"]}
    body["params"]["context"]["result"] = [{"type": "keypointlabels", "from_name": "k", "value": value}]
    answer = client.post("/predict", json=body)
    assert answer.status_code == 400 and "zebra" in answer.json()["detail"]


def test_a_prompt_for_a_configuration_that_cannot_be_used_says_why(client: TestClient) -> None:
    broken = CONFIG.replace("$image", "image")
    body = request([data_url()], "cat", config=broken)
    body["params"]["context"]["result"][0]["to_name"] = "image"
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200 and "such as $image" in said(answer.json()["results"][0])
    # Also where nobody typed, once for each task.
    answer = client.post("/predict", json=request([data_url(), data_url(1)], config=broken)).json()
    assert answer["model_version"] == FAILED_VERSION
    for prediction in answer["results"]:
        assert prediction["model_version"] == FAILED_VERSION and said(prediction).startswith("Not predicted:\n")
        assert "such as $image" in said(prediction)
    assert "such as $image" in client.get("/status").json()["failures"][-1]["reason"]
    # Without a prompt field, Label Studio gets an error.
    without = broken.replace('<TextArea name="prompt" toName="image"/>', "")
    assert client.post("/predict", json=request([data_url()], config=without)).status_code == 400


def test_what_was_drawn_without_a_label_says_why(client: TestClient) -> None:
    body = request([data_url()], "x")
    value = {"x": 1, "y": 1, "width": 9, "height": 9}
    body["params"]["context"]["result"] = [{"type": "rectangle", "to_name": "image", "value": value}]
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200 and "choose one before you draw" in said(answer.json()["results"][0])


def test_a_prompt_that_cannot_be_remembered_is_answered_all_the_same(
    client: TestClient, server_settings: ServerSettings
) -> None:
    """As on a full disk."""
    state = server_settings.state_dir
    (state / "prompts.json.part").mkdir()
    try:
        answer = client.post("/predict", json=request([data_url(3)], "Sofa: couch", project="11.1"))
    finally:
        (state / "prompts.json.part").rmdir()
    prediction = answer.json()["results"][0]
    assert answer.status_code == 200 and "the prompt is not remembered" in said(prediction)
    again = client.post("/predict", json=request([data_url(3)], "Sofa: couch", project="11.2")).json()["results"][0]
    shapes = [[r["value"] for r in each["result"] if r["type"] != "textarea"] for each in (prediction, again)]
    assert shapes[0] == shapes[1]


def test_prompts_are_not_kept_where_that_is_switched_off(client: TestClient, server_settings: ServerSettings) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    before = client.post("/setup", json={"project": "13.1", "schema": CONFIG}).json()["model_version"]
    service.settings = replace(server_settings, remember_prompts=False)
    try:
        assert client.get("/status").json()["typed_prompts"] == "answered, not remembered"
        answer = client.post("/predict", json=request([data_url()], "cat: red dog", project="13.1")).json()
        cleared = client.post("/predict", json=request([data_url()], "/clear", project="13.1")).json()
    finally:
        service.settings = server_settings
    assert answer["results"][0]["result"] and answer["model_version"] == before
    assert "not remembered" in said(cleared["results"][0])
    assert PromptStore(server_settings.state_dir / "prompts.json").get("13.1") == {}


def test_a_prediction_without_regions_says_why(client: TestClient) -> None:
    strict = CONFIG.replace('<Label value="cat"/>', '<Label value="cat" model_score_threshold="1"/>').replace(
        '<Label value="Sofa" predicted_values="sofa"/>', ""
    )
    answer = client.post("/predict", json=request([data_url()], config=strict, project="12.1")).json()
    (prediction,) = answer["results"]
    assert "nothing was found" in said(prediction) and prediction["model_version"] == answer["model_version"]
    status = client.get("/status").json()
    assert status["projects"]["12.1"] == {"done": 0, "empty": 1, "failed": 0, "reasons": {said(prediction): 1}}
    assert status["empty"][-1]["task"] == 1


def test_an_image_that_fails_costs_only_itself(client: TestClient) -> None:
    bad = ["http://169.254.169.254/a.png", "/data/local-files/?d=gone.png", "data:image/png;base64,AAAA", None, 5]
    answer = client.post("/predict", json=request([data_url(1), *bad, data_url(2)]))
    results = answer.json()["results"]
    versions = [result["model_version"] for result in results]
    assert versions == [answer.json()["model_version"], *[FAILED_VERSION] * 5, answer.json()["model_version"]]
    assert all(said(result).startswith("Not predicted:\n") and len(result["result"]) == 1 for result in results[1:-1])
    reasons = [failure["reason"] for failure in client.get("/status").json()["failures"][-5:]]
    assert len(reasons) == 5 and any("allow_hosts" in reason for reason in reasons)


def test_an_unfinished_configuration_is_no_error_in_setup(client: TestClient) -> None:
    assert client.post("/setup", json={"project": "1.1", "schema": "<View/>"}).json()["model_version"]
    answer = client.post("/predict", json=request([data_url()], config="<View/>"))
    assert answer.status_code == 400 and "PolygonLabels" in answer.json()["detail"]


def test_brush_is_the_mask_that_was_computed(client: TestClient, server_settings: ServerSettings) -> None:
    from labelstudio_backend.predictor import Predictor
    from tcl_core.images import load_image

    (prediction,) = client.post("/predict", json=request([data_url(3)])).json()["results"]
    options = replace(server_settings.model, min_area=0)
    predictor = Predictor(options.load(), options, cache_bytes=0)
    vocabulary = parse_labeling_config(CONFIG).vocabulary()
    segmentation = predictor.segmenter.segment_image(load_image(image(3)), vocabulary)
    for region in prediction["result"]:
        mask = mask_of_value("brushlabels", region["value"], SIZE)
        label = ["cat", "Sofa"].index(region["value"]["brushlabels"][0]) + 1
        assert (segmentation.label_map[mask] == label).all() and mask.sum() >= 4


# -- load and failure ----------------------------------------------------------------------------------------------


def test_many_requests_at_once_are_answered_or_refused(client: TestClient) -> None:
    with ThreadPoolExecutor(50) as pool:
        bodies = [request([data_url(number % 5)], "cat") for number in range(50)]
        answers = list(pool.map(lambda body: client.post("/predict", json=body), bodies))
    assert {answer.status_code for answer in answers} <= {200, 503}
    right: dict[int, Any] = {}
    for number, answer in enumerate(answers):
        if answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) > 0 and "try again" in answer.json()["detail"]
            continue
        regions = [(region["value"], region["score"]) for region in answer.json()["results"][0]["result"]]
        assert right.setdefault(number % 5, regions) == regions
    assert right


def test_killing_the_worker_loses_only_its_request(client: TestClient) -> None:
    worker = client.get("/status").json()["worker_pid"]
    restarts = client.get("/status").json()["worker_restarts"]
    os.kill(worker, signal.SIGSTOP)  # so that the request is surely being worked on
    answers: list[Any] = []
    thread = threading.Thread(
        target=lambda: answers.append(client.post("/predict", json=request([data_url(9)], "cat")))
    )
    thread.start()
    deadline = time.monotonic() + 60
    while client.get("/status").json()["requests"] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(worker, signal.SIGKILL)
    thread.join(SECONDS_TO_LOAD)
    assert answers[0].status_code == 503 and "try again" in answers[0].json()["detail"]
    again = client.post("/predict", json=request([data_url(9)], "cat"))
    assert again.status_code == 200
    status = client.get("/status").json()
    assert status["worker_restarts"] == restarts + 1 and status["worker_pid"] != worker


def test_a_worker_that_dies_idle_is_replaced(client: TestClient) -> None:
    before = client.get("/status").json()
    os.kill(before["worker_pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while client.get("/status").json()["worker_restarts"] == before["worker_restarts"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert client.post("/predict", json=request([data_url(4)], "cat")).status_code == 200


def test_health_is_at_once_while_the_worker_is_stuck(client: TestClient) -> None:
    wait_until_ready(client)
    worker = client.get("/status").json()["worker_pid"]
    os.kill(worker, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(client.post, "/predict", json=request([data_url(5)], "cat"))
            assert client.get("/health").status_code == 200
            assert client.post("/setup", json={"project": "1.1", "schema": CONFIG}).status_code == 200
            assert not pending.done()
            os.kill(worker, signal.SIGCONT)
            assert pending.result().status_code == 200
    finally:
        os.kill(worker, signal.SIGCONT)


def test_a_model_that_is_missing_is_a_clear_503(server_settings: ServerSettings, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"not a model")
    broken = replace(server_settings, model=ModelOptions(str(path)))
    with TestClient(create_app(broken)) as client:
        answer = client.post("/predict", json=request([data_url()], "cat"))
        assert answer.status_code == 503 and "broken.safetensors" in answer.json()["detail"]
        assert client.get("/health").status_code == 200
        assert client.get("/status").json()["state"] == "failed"


def test_metrics(client: TestClient) -> None:
    client.post("/predict", json=request([data_url()]))
    text = client.get("/metrics").text
    assert 'tcl_tasks_total{outcome="done"}' in text and "tcl_worker_restarts_total" in text


# -- the interface against its own schema ---------------------------------------------------------------------------

OPERATIONS = [
    (path, method.upper())
    for path, methods in create_app(ServerSettings()).openapi()["paths"].items()
    for method in methods
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MANY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def check_answer(answer: httpx.Response) -> None:
    assert answer.status_code < 500 or answer.status_code == 503, answer.text
    assert "Traceback" not in answer.text


def send_odd(client: TestClient, path: str, body: Any) -> None:
    """Send numbers, too, that Python writes although JSON does not have them."""
    check_answer(client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_of_the_schema_makes_an_internal_error(path: str, method: str, client: TestClient) -> None:
    # Here, so that collecting tests does not wait for it.
    import schemathesis
    from schemathesis.core import NotSet

    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())

    @MANY
    @given(case=schema[path][method].as_strategy())
    def send(case: schemathesis.Case) -> None:
        body = {} if isinstance(case.body, NotSet) else {"json": case.body}
        check_answer(client.request(method, path, **body))

    send()


@MANY
@given(context=JSON, data=JSON, labels=st.sampled_from([CONFIG, "<View/>", "<", CONFIG.replace("cat", "zebra")]))
def test_no_odd_values_make_an_internal_error(client: TestClient, context: Any, data: Any, labels: str) -> None:
    for params in (
        {"context": context},
        {"context": {"result": [{"type": "rectanglelabels", "value": context}]}},
        context,
    ):
        body = {"tasks": [{"id": 1, "data": {"image": data}}], "label_config": labels, "params": params}
        send_odd(client, "/predict", body)
    send_odd(client, "/setup", {"project": data, "schema": labels, "hostname": data})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have(number: float, client: TestClient) -> None:
    send_odd(client, "/predict", {"tasks": number, "label_config": CONFIG})
    send_odd(client, "/predict", {**request([data_url()]), "params": number})
    body = request([data_url()])
    body["tasks"][0]["id"] = number
    send_odd(client, "/predict", body)
    send_odd(client, "/setup", {"project": number, "schema": number})


DRAWN = {
    "rectangle": {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0},
    "polygon": {"points": [[10, 10], [60, 10], [10, 60]]},
    "keypoint": {"x": 10, "y": 10, "width": 1},
    "brush": {"rle": [0, 0, 0, 4]},
}


@pytest.mark.parametrize("kind", DRAWN)
def test_any_part_of_a_request_may_be_odd(client: TestClient, kind: str) -> None:
    """Numbers that fit no float, in JSON as 1e400 or with 400 digits, and types that nobody expects there."""
    tag = f"{kind}labels"
    value = {**DRAWN[kind], tag: ["cat"]}
    size = {"original_width": 20, "original_height": 30, "image_rotation": 0}
    result = {"id": "a", "type": tag, "from_name": "brush", "to_name": "image", "item_index": 0, **size, "value": value}
    body = {**request([data_url()]), "params": {"context": {"result": [result]}}}
    body["tasks"][0]["predictions"] = [{"model_version": "x", "score": 0.5, "result": [result]}]
    answers = set()
    for place, odd, content in odd_copies(body):
        answer = client.post("/predict", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 422), (place, odd, answer.text)
        answers.add(answer.status_code)
    assert answers == {200, 400, 422}


@MANY
@given(body=st.binary(max_size=200))
def test_no_bytes_make_an_internal_error(client: TestClient, body: bytes) -> None:
    for path in ("/predict", "/setup", "/webhook"):
        check_answer(client.post(path, content=body, headers={"Content-Type": "application/json"}))


def test_an_internal_error_shows_no_traceback(client: TestClient) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    status, service.status = service.status, lambda: 1 / 0
    try:
        answer = client.get("/status")
    finally:
        service.status = status
    assert answer.status_code == 500
    assert answer.json() == {"detail": "internal error; see the server's log"}
