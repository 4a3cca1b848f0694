"""How the server behaves under load, measured in one run on this machine."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from labelstudio_backend.app import create_app
from labelstudio_backend.settings import ServerSettings
from tcl_core.errors import SettingsError

__all__ = ["Measurement", "measure_server"]

_CALLS = 200
_BATCH = 60
_AT_ONCE = 50
_SECONDS_TO_LOAD = 600.0
_TIMEOUT = httpx.Timeout(900.0)


@dataclass(frozen=True)
class Measurement:
    """One figure and its bar.

    Attributes:
        name: what was measured.
        value: the figure.
        bar: the figure should be below it.
        unit: of both.
    """

    name: str
    value: float
    bar: float
    unit: str

    @property
    def passes(self) -> bool:
        """Whether the figure is below its bar."""
        return self.value < self.bar


def measure_server(
    settings: ServerSettings, labels: tuple[str, ...], size: tuple[int, int], folder: Path
) -> list[Measurement]:
    """Run the server and measure it.

    Args:
        settings: of the server; its queue and folders are used as they are.
        labels: words that the model knows; the last one is the second prompt.
        size: ``(height, width)`` of the pictures.
        folder: an empty folder, for the pictures.

    Returns:
        The 99th percentile of ``/health`` and the slowest ``/setup`` while a batch runs, the share of wrong answers
        among many concurrent requests, and the time of a second prompt as a share of the first's.

    Raises:
        SettingsError: the model cannot be loaded.
    """
    rng = np.random.default_rng(0)
    for number in range(_BATCH + 2):
        coarse = rng.integers(0, 255, (size[0] // 16 + 1, size[1] // 16 + 1, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    config = _config(labels)
    with _running(settings) as client:
        _wait_until_ready(client)
        # The first prediction of a process is slower than all others, whatever it is asked.
        _predict(client, config, [_address(folder, _BATCH)], labels[0])
        ratio = _second_prompt(client, config, folder, labels)
        health, setup = _latencies(client, config, [_address(folder, number) for number in range(_BATCH)])
        wrong = _wrong_answers(client, config, [_address(folder, number) for number in range(5)], labels[0])
    return [
        Measurement(f"/health, 99th percentile of {len(health)} calls during a batch", _percentile(health), 0.25, "s"),
        Measurement(f"/setup, slowest of {len(setup)} calls during a batch", max(setup), 1.0, "s"),
        Measurement(f"neither right nor 503, of {_AT_ONCE} requests at once", float(wrong), 1.0, ""),
        Measurement("second prompt's share of the first's time", ratio, 0.1, ""),
    ]


def _config(labels: tuple[str, ...]) -> str:
    tags = "".join(f'<Label value="{label}"/>' for label in labels)
    return (
        '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
        f'<PolygonLabels name="polygons" toName="image">{tags}</PolygonLabels></View>'
    )


def _address(folder: Path, number: int) -> str:
    return "data:image/png;base64," + base64.b64encode((folder / f"{number}.png").read_bytes()).decode()


@contextmanager
def _running(settings: ServerSettings) -> Iterator[httpx.Client]:
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        _wait_for(lambda: server.started, "the server does not start")
        port = server.servers[0].sockets[0].getsockname()[1]
        limits = httpx.Limits(max_connections=_AT_ONCE + 5)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=_TIMEOUT, limits=limits, trust_env=False
        ) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def _wait_until_ready(client: httpx.Client) -> None:
    def ready() -> bool:
        status = client.get("/status").json()
        if status["state"] == "failed":
            raise SettingsError(status["reason"])
        return status["state"] == "ready"

    _wait_for(ready, "the model is not loaded")


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS_TO_LOAD
    while not condition():
        if time.monotonic() > deadline:
            raise SettingsError(f"{what} after {_SECONDS_TO_LOAD:g} seconds")
        time.sleep(0.1)


def _predict(client: httpx.Client, config: str, urls: list[str], text: str | None) -> httpx.Response:
    result = {"type": "textarea", "from_name": "prompt", "value": {"text": [text]}}
    body = {
        "tasks": [{"id": number, "data": {"image": url}} for number, url in enumerate(urls)],
        "label_config": config,
        "project": "1.1",
        "params": {"context": None if text is None else {"result": [result]}},
    }
    return client.post("/predict", json=body)


def _second_prompt(client: httpx.Client, config: str, folder: Path, labels: tuple[str, ...]) -> float:
    url = _address(folder, _BATCH + 1)
    seconds = []
    for text in (labels[0], f"{labels[0]}: {labels[-1]}"):
        began = time.perf_counter()
        _predict(client, config, [url], text).raise_for_status()
        seconds.append(time.perf_counter() - began)
    _predict(client, config, [url], "/clear")
    return seconds[1] / seconds[0]


def _latencies(client: httpx.Client, config: str, urls: list[str]) -> tuple[list[float], list[float]]:
    """Seconds of calls of the health check and of the setup while batches run."""
    health: list[float] = []
    setup: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        number = 0
        pending = None
        while len(health) < _CALLS:
            if pending is None or pending.done():
                # Another label makes it another vocabulary, so that nothing is answered from the cache.
                number += 1
                changed = config.replace("</PolygonLabels>", f'<Label value="unknown {number}"/></PolygonLabels>')
                pending = pool.submit(_predict, client, changed, urls, None)
            for seconds, call in ((health, "/health"), (setup, "/setup")):
                began = time.perf_counter()
                answer = client.get(call) if call == "/health" else client.post(call, json=_setup_body(config))
                seconds.append(time.perf_counter() - began)
                answer.raise_for_status()
            time.sleep(0.02)
        if pending is not None:
            pending.result()
    return health, setup


def _setup_body(config: str) -> dict[str, Any]:
    return {"project": "1.1", "schema": config, "hostname": "http://localhost:8080"}


def _wrong_answers(client: httpx.Client, config: str, urls: list[str], text: str) -> int:
    def shape(answer: httpx.Response) -> list[Any]:
        return [region["value"] for region in answer.json()["results"][0]["result"]]

    right = [shape(_predict(client, config, [url], text)) for url in urls]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(
            pool.map(
                lambda number: _predict(client, config, [urls[number % len(urls)]], text),
                range(_AT_ONCE),
            )
        )
    return sum(
        answer.status_code != httpx.codes.SERVICE_UNAVAILABLE
        and (answer.status_code != httpx.codes.OK or shape(answer) != right[number % len(urls)])
        for number, answer in enumerate(answers)
    )


def _percentile(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 99))
