"""What operators set: environment variables, several workers, and a setup that waits for the backend."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from labelstudio_backend.client import LabelStudioClient, LabelStudioError
from labelstudio_backend.connections import check_address
from labelstudio_backend.interactive import Question
from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.model_options import ModelOptions
from labelstudio_backend.predictor import Predictor
from labelstudio_backend.requests import Plan
from labelstudio_backend.settings import merged_settings, settings_from, settings_from_environment
from labelstudio_backend.supervisor import Supervisor
from labelstudio_backend.waiting import wait_for_backend
from labelstudio_backend.worker import Job, Reply
from labelstudio_backend.worker_pool import WorkerPool
from tcl_core.cli.main import run
from tcl_core.errors import SettingsError
from tests.labelstudio.image_server import REFRESH_TOKEN, ImageServer
from tests.labelstudio.live.test_server import encoded
from tests.ports import free_port


def test_every_setting_is_also_a_variable() -> None:
    found = settings_from_environment(
        {
            "TCL_BACKEND__QUEUE": "3",
            "TCL_BACKEND__WORKERS": "2",
            "TCL_BACKEND__IMAGES__ALLOW_HOSTS": "[a.example.org]",
            "TCL_BACKEND__MODEL__OPTIONS": "{kp_weight: 0.2}",
            "TCL_BACKEND_PORT": "1",
            "OTHER": "x",
        }
    )
    file = {"queue": 9, "images": {"seconds": 5, "allow_hosts": ["b.example.org"]}}
    settings = settings_from(merged_settings(file, found), {}, {})
    assert (settings.queue, settings.workers, settings.images.seconds) == (3, 2, 5)
    assert settings.images.allow_hosts == ("a.example.org",) and settings.model.options == {"kp_weight": 0.2}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TCL_BACKEND__QUEUE": "["}, "TCL_BACKEND__QUEUE: cannot be read"),
        ({"TCL_BACKEND__QUEUE": "1", "TCL_BACKEND__QUEUE__DEEP": "1"}, "TCL_BACKEND__QUEUE__DEEP"),
        ({"TCL_BACKEND__TOKEN": "abc"}, "--token-file"),
        ({"TCL_BACKEND__QUEU": "3"}, "unknown keys: queu"),
    ],
)
def test_variables_that_cannot_be_used(variables: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from(settings_from_environment(variables), {}, {})


UP = b'{"status":"UP","model_class":"tcl-annotate"}'


class _Answers(BaseHTTPRequestHandler):
    answers: list[tuple[int, bytes]] = []

    def do_GET(self) -> None:
        code, content = self.answers.pop(0)
        self.send_response(code)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_setup_waits_for_a_backend(server: str) -> None:
    _Answers.answers = [(200, UP), (401, b""), (404, b"")]
    wait_for_backend(server, 0)
    wait_for_backend(f"{server}/", 0)
    with pytest.raises(SettingsError, match="answered with 404; is this the URL of"):
        wait_for_backend(server, 60)
    with pytest.raises(SettingsError, match="no backend listens at http://127.0.0.1:9 "):
        wait_for_backend("http://127.0.0.1:9", 0)


@pytest.mark.parametrize("content", [b'{"status": "UP"}', b"<html></html>", b"[]"])
def test_label_studio_is_not_taken_for_a_backend(content: bytes, server: str) -> None:
    """Its own health check is at the same path, and its address is the one that newcomers know."""
    _Answers.answers = [(200, content)]
    with pytest.raises(SettingsError, match="no backend, but perhaps Label Studio itself; .* --backend-url"):
        wait_for_backend(server, 60)


def test_a_backend_is_not_taken_for_label_studio(image_server: ImageServer) -> None:
    image_server.token, image_server.refresh_status = "Bearer nobody-knows", 404
    with LabelStudioClient(image_server.url, REFRESH_TOKEN) as client:
        with pytest.raises(LabelStudioError, match="this is not Label Studio.* give its URL as --url"):
            client.project(1)


def test_a_port_that_is_taken_is_named(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a traceback or the lines of a log: a second server was started, or the first never ended."""
    port = server.rpartition(":")[2]
    assert run(["label-studio", "serve", "--model", "playground", "--port", port]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(f"error: cannot listen at 127.0.0.1:{port} (")
    assert "--port" in printed.err and printed.out == ""
    check_address("localhost", free_port())
    check_address("0.0.0.0", free_port())
    with pytest.raises(SettingsError, match="cannot listen at no-such-host.invalid:1 "):
        check_address("no-such-host.invalid", 1)


def test_an_option_of_the_settings_file_is_named_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "backend.yaml"
    config.write_text("model: {model: playground, options: {kp_wieght: 0.2}}\n")
    assert run(["label-studio", "serve", "--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert f"error: {config}: model.options: option 'kp_wieght'" in message and "Did you mean kp_weight?" in message
    # What was written on the command line is not said to be of the file.
    assert run(["label-studio", "serve", "--model", "playground", "--option", "kp_wieght=0.2"]) == 2
    assert "error: option 'kp_wieght'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_workers_answer_as_one(model_path: Path) -> None:
    """Every answer is that of the model in this process, and both workers have had jobs."""
    options = ModelOptions(str(model_path), min_area=4)
    config = parse_labeling_config(
        '<View model_background="false"><Image name="image" value="$image"/><Labels name="l" toName="image">'
        '<Label value="cat"/><Label value="sky"/></Labels><Brush name="b" toName="image"/></View>'
    )
    images = [encoded(seed) for seed in range(4)]

    async def answers() -> list[Reply]:
        pool = WorkerPool([Supervisor(options, 32 << 20, 300.0) for _ in range(2)])
        pool.start()
        try:
            jobs = [pool.submit(Job(Question(config, {}), image), urgent=False) for image in images * 2]
            found = await asyncio.gather(*jobs)
            assert pool.state == "ready" and len(set(pool.pids)) == 2 and pool.waiting == 0
        finally:
            await pool.stop()
        assert pool.state == "stopped"
        assert all(isinstance(each, Reply) for each in found)
        return [each for each in found if isinstance(each, Reply)]

    predictor = Predictor(options.load(), options, cache_bytes=0)
    for image, reply in zip(images * 2, asyncio.run(answers()), strict=True):
        wanted = predictor.predict(image, Plan(config)).results
        found = json.loads(reply.results)
        assert [(each["type"], each["from_name"]) for each in found] == [
            (each["type"], each["from_name"]) for each in wanted
        ]
        assert [each["value"] for each in found] == [each["value"] for each in wanted]
