"""Where images are, and which of a task's images are predicted: with the real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.predictor import Predictor
from labelstudio_backend.requests import Plan
from labelstudio_backend.settings import ImageSettings
from tcl_core.errors import ImageError
from tests.labelstudio.conftest import PAYLOADS
from tests.labelstudio.live.conftest import BACKEND_USER
from tests.labelstudio.live.environment import TOKEN, LabelStudioServer
from tests.labelstudio.live.test_server import command, data_url, encoded, retrieve, sdk_says, soon, tasks_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.xdist_group("Label Studio")]

LABELS = '<PolygonLabels name="p" toName="image"><Label value="cat"/><Label value="sky"/></PolygonLabels>'
CONFIGURATIONS: dict[str, Any] = json.loads((PAYLOADS / "configurations.json").read_text())


@pytest.fixture
def under_a_path(label_studio: LabelStudioServer) -> Iterator[str]:
    """Address of a proxy that takes ``/label-studio`` away before it asks the server, as they are set up."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith("/label-studio/"):
                self.send_error(404)
                return
            names = {"authorization"}
            headers = {name: value for name, value in self.headers.items() if name.lower() in names}
            url = label_studio.url + self.path.removeprefix("/label-studio")
            answer = httpx.get(url, headers=headers, timeout=60, trust_env=False)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/label-studio"
        server.shutdown()


def fetched(url: str, settings: ImageSettings) -> bytes:
    async def run() -> bytes:
        async with settings.fetcher(TOKEN) as fetcher:
            return await fetcher.fetch(url)

    return anyio.run(run)


def test_label_studio_under_a_path(label_studio: LabelStudioServer, under_a_path: str) -> None:
    number = label_studio.api("POST", "/api/projects/", json={"title": "path", "label_config": "<View/>"})["id"]
    config = f'<View><Image name="image" value="$image"/>{LABELS}</View>'
    label_studio.api("PATCH", f"/api/projects/{number}/", json={"label_config": config})
    files = {"file": ("image-000.png", encoded(0))}
    label_studio.api("POST", f"/api/projects/{number}/import", files=files)
    (label_studio.files / "path").mkdir()
    (label_studio.files / "path" / "image b.png").write_bytes(encoded(1))
    storage = {"project": number, "path": str(label_studio.files / "path"), "use_blob_urls": True}
    storage_id = label_studio.api("POST", "/api/storages/localfiles", json=storage)["id"]
    label_studio.api("POST", f"/api/storages/localfiles/{storage_id}/sync")
    upload = tasks_of(label_studio, number)[0]["data"]["image"]
    upload = "/data/upload/" + upload.partition("/data/upload/")[2]
    settings = ImageSettings(label_studio_url=under_a_path)
    for path, seed in ((upload, 0), ("/data/local-files/?d=path/image%20b.png", 1)):
        for url in (f"/label-studio{path}", path, f"{under_a_path}{path}"):
            assert fetched(url, settings) == encoded(seed), url


def test_the_token_reads_images_and_nothing_else(label_studio: LabelStudioServer) -> None:
    """The server would answer: the address is one that it carries out, and the token is the administrator's."""
    settings = ImageSettings(label_studio_url=label_studio.url)
    assert label_studio.api("GET", "/api/users/")
    for url in ("/data/upload/../../api/users", "/data/upload/%2e%2e/%2e%2e/api/users/", "/api/users/"):
        for form in (url, label_studio.url + url):
            with pytest.raises(ImageError, match="outside its folder|no images at this path"):
                fetched(form, settings)


def connect(server: LabelStudioServer, config: str, backend_url: str, title: str) -> int:
    """A project with our backend; gives its number."""
    number = server.api("POST", "/api/projects/", json={"title": title, "label_config": config})["id"]
    name, _, password = BACKEND_USER.partition(":")
    body = {"url": backend_url, "project": number, "title": "tcl", "is_interactive": True}
    body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": name, "basic_auth_pass": password}
    server.api("POST", "/api/ml/", json=body)
    return int(number)


PLAIN = parse_labeling_config(f'<View><Image name="image" value="$image"/>{LABELS}</View>')
"""The same labels on one image, in the plainest configuration."""


@pytest.fixture(scope="module")
def seeds(predictor: Predictor) -> list[int]:
    """Images in which the model, whose weights are random, finds something."""
    return [seed for seed in range(100) if predictor.predict(encoded(seed), Plan(PLAIN)).results]


def filled(data: Any, seeds: list[int]) -> Any:
    """Data with images in place of their numbers."""
    if isinstance(data, str) and data.startswith("<"):
        return data_url(seeds[int(data[1:-1])])
    if isinstance(data, dict):
        return {key: filled(value, seeds) for key, value in data.items()}
    return [filled(value, seeds) for value in data] if isinstance(data, list) else data


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_every_image_of_a_configuration_is_predicted(
    name: str,
    label_studio: LabelStudioServer,
    backend_url: str,
    server_python: Path,
    predictor: Predictor,
    seeds: list[int],
) -> None:
    case = CONFIGURATIONS[name]
    config = case["config"].replace("LABELS", LABELS)
    number = connect(label_studio, config, backend_url, name)
    label_studio.api("POST", f"/api/projects/{number}/import", json=[filled(case["data"], seeds)])
    retrieve(label_studio, number)
    (task,) = tasks_of(label_studio, number)
    (prediction,) = task["predictions"]
    assert prediction["model_version"] != "tcl-annotate-failed", prediction["result"]
    drawn = prediction["result"]
    assert {(each["from_name"], each["to_name"], each.get("item_index")) for each in drawn} == {
        (tag, image, page) for tag, image, page, _ in case["images"]
    }
    written = case.get("written", {"cat": ["cat"], "sky": ["sky"]})
    for place, (tag, image, page, number_of_image) in enumerate(case["images"]):
        found = [
            each for each in drawn if (each["from_name"], each["to_name"], each.get("item_index")) == (tag, image, page)
        ]
        wanted = predictor.predict(encoded(seeds[int(number_of_image[1:-1])]), Plan(PLAIN)).results
        spelled = {label: names[min(place, len(names) - 1)] for label, names in written.items()}
        assert [each["value"][each["type"]] for each in found] == [
            [spelled[each["value"]["polygonlabels"][0]]] for each in wanted
        ]
        np.testing.assert_allclose([each["score"] for each in found], [each["score"] for each in wanted])
    if name not in ("repeater", "pages"):
        checked = [{"result": drawn, "score": prediction["score"]}]
        assert sdk_says(server_python, config, checked)["errors"] == []


def test_a_configuration_that_cannot_be_used_says_so_in_every_task(
    label_studio: LabelStudioServer,
    backend_url: str,
    secrets: Path,
    model_path: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One failed prediction for each task, also after a second try; the bulk command refuses with the same sentence."""
    config = (
        '<View><Repeater on="$pages" indexFlag="{{idx}}"><Image name="page_{{idx}}" value="$pages[{{idx}}]"/>'
        '<TextArea name="prompt_{{idx}}" toName="page_{{idx}}"/><PolygonLabels name="p_{{idx}}" toName="page_{{idx}}">'
        '<Label value="cat {{idx}}"/></PolygonLabels></Repeater></View>'
    )
    number = connect(label_studio, config, backend_url, "refused")
    label_studio.api("POST", f"/api/projects/{number}/import", json=[{"pages": [data_url(0)]}])
    for _ in range(2):
        retrieve(label_studio, number)
        soon(lambda: len(tasks_of(label_studio, number)[0]["predictions"]) == 1, "one prediction")
        ((result,),) = (each["result"] for each in tasks_of(label_studio, number)[0]["predictions"])
        assert (result["from_name"], result["to_name"]) == ("prompt_0", "page_0")
        said = result["value"]["text"]
        assert said[0] == "Not predicted:" and "changes with the {{idx}}" in said[1]
    server = ["--url", label_studio.url, "--token-file", secrets / "token.txt", "--project", number]
    code, printed = command(capfd, "prelabel", *server, "--model", model_path, "--state-dir", tmp_path)
    assert code == 2 and said[1] in printed
