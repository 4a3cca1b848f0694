"""Our logic under ``label-studio-ml``: the real 1.0.9 with its own server, and the signatures of 2.x."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from labelstudio_backend.interactive import Question, answer
from labelstudio_backend.labeling_config import parse_labeling_config, parse_project_config
from labelstudio_backend.model_options import FAILED_VERSION, ModelOptions, model_version
from labelstudio_backend.predictor import Predictor
from labelstudio_backend.requests import read_context
from tests.labelstudio.library.environment import library_python, library_server
from tests.labelstudio.live.environment import REPOSITORY, NoEnvironmentError
from tests.missing import missing
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4800)]

Payload = Callable[[str], dict[str, Any]]
SIGNATURE_OF_2 = Path(__file__).parent / "signature_of_2"


def image() -> bytes:
    coarse = np.random.default_rng(3).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize((128, 96), Image.Resampling.NEAREST).save(encoded, "PNG")
    return encoded.getvalue()


DATA_URL = "data:image/png;base64," + base64.b64encode(image()).decode()


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    try:
        python = library_python()
    except NoEnvironmentError as error:
        missing(f"label-studio-ml's environment cannot be made: {error}")
    port = free_port()
    variables = {"TCL_MODEL": str(model_path), "TCL_STATE_DIR": str(tmp_path_factory.mktemp("state"))}
    with (
        library_server(python, tmp_path_factory.mktemp("library"), port, variables),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=1800, trust_env=False) as client,
    ):
        yield client


def regions(results: list[dict[str, Any]]) -> list[tuple[str, str, float, Any]]:
    """Regions without their ids, which are new every time."""
    return [(one["type"], one["from_name"], one["score"], one["value"]) for one in results if one["type"] != "textarea"]


def said(results: list[dict[str, Any]]) -> str:
    """What the prompt field says; nothing but that is in the results."""
    assert [one["type"] for one in results] == ["textarea"]
    return "\n".join(results[0]["value"]["text"])


def expected(model_path: Path, config: str, context: dict[str, Any] | None) -> list[tuple[str, str, float, Any]]:
    options = ModelOptions(str(model_path))
    asked = read_context(context, parse_project_config(config))
    question = Question(parse_labeling_config(config), {}, None if asked is None else asked.context)
    return regions(answer(Predictor(options.load(), options, 1 << 20), question, image()).prediction.results)


def test_the_recorded_setup_and_health(server: httpx.Client, payload: Payload) -> None:
    assert server.get("/health").json()["status"] == "UP"
    answer = server.post("/setup", json=payload("setup")["body"])
    assert answer.status_code == 200 and answer.json()["model_version"]


@pytest.mark.parametrize("name", ["predict_on_task_open", "predict_batch", "predict_interactive_textarea"])
def test_the_recorded_predictions(name: str, server: httpx.Client, payload: Payload, model_path: Path) -> None:
    body = payload(name)["body"]
    for task in body["tasks"][1:] or body["tasks"]:
        task["data"]["image"] = DATA_URL
    config = body["label_config"]
    # As Label Studio does before it asks for predictions.
    setup = {**payload("setup")["body"], "project": body["project"], "schema": config}
    assert server.post("/setup", json=setup).status_code == 200
    answer = server.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["results"]
    assert len(predictions) == len(body["tasks"])
    wanted = expected(model_path, config, body["params"]["context"])
    version = model_version(ModelOptions(str(model_path)), parse_labeling_config(config), {})
    for prediction, task in zip(predictions, body["tasks"], strict=True):
        if task["data"]["image"] == DATA_URL:
            assert regions(prediction["result"]) == wanted and prediction["model_version"] == version
        else:
            # An upload, and there is no Label Studio to ask for it.
            assert (prediction["score"], prediction["model_version"]) == (0.0, FAILED_VERSION)
            assert "/data/upload/" in said(prediction["result"])


def test_a_typed_prompt_is_remembered(server: httpx.Client, payload: Payload) -> None:
    body = payload("predict_interactive_textarea")["body"]
    body["tasks"][0]["data"]["image"] = DATA_URL
    server.post("/setup", json={**payload("setup")["body"], "schema": body["label_config"]})

    def typed(text: str) -> dict[str, Any]:
        body["params"]["context"]["result"][0]["value"]["text"] = [text]
        (prediction,) = server.post("/predict", json=body).json()["results"]
        return prediction

    assert typed("red ball: blue car")["model_version"] != FAILED_VERSION
    assert typed("/list")["result"][0]["value"]["text"] == ["red ball: blue car"]
    assert typed("zebra")["model_version"] == FAILED_VERSION and "zebra" in said(typed("zebra")["result"])
    assert typed("/clear")["result"][0]["value"]["text"] == ["1 typed prompt cleared"]


def test_an_annotation_changes_nothing(server: httpx.Client, payload: Payload) -> None:
    body = payload("webhook_ANNOTATION_CREATED")["body"]
    assert server.post("/webhook", json=body).status_code == 201
    assert server.get("/health").status_code == 200


def test_the_signatures_of_2(payload: Payload, model_path: Path, tmp_path: Path) -> None:
    body = payload("predict_interactive_textarea")["body"]
    task = {**body["tasks"][0], "data": {"image": DATA_URL}}
    contexts = [None, body["params"]["context"]]
    calls = [{"tasks": [task, {"id": 2, "data": {}}], "context": context} for context in contexts]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "call_signature_of_2.py")],
        input=json.dumps({"label_config": body["label_config"], "calls": calls}),
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(SIGNATURE_OF_2), str(REPOSITORY)]),
            "TCL_MODEL": str(model_path),
            "TCL_STATE_DIR": str(tmp_path),
        },
        capture_output=True,
        encoding="utf-8",
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout)
    version = model_version(ModelOptions(str(model_path)), parse_labeling_config(body["label_config"]), {})
    for context, one in zip(contexts, answered["answers"], strict=True):
        good, failed = one["predictions"]
        assert regions(good["result"]) == expected(model_path, body["label_config"], context)
        assert good["model_version"] == one["version"] == version
        assert "no 'image' in its data" in said(failed["result"]) and failed["model_version"] == FAILED_VERSION
    assert "'image'" in done.stderr
    assert answered["unfinished"] is None
