"""How the server behaves under load, measured in one run on this machine."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from labelstudio_backend.app import create_app
from labelstudio_backend.config_writer import labeling_config_xml
from labelstudio_backend.settings import DEFAULT_URL, ServerSettings
from tcl_core.errors import SettingsError
from tcl_core.playground.export import write_scenes
from tcl_core.vocabulary import Vocabulary

__all__ = ["Measurement", "measure_server"]

_CALLS = 200
_BATCH = 60
_IMAGES = 6
_AT_ONCE = 50
_PROJECT = "1.1"
_SECONDS_TO_LOAD = 600.0
_TIMEOUT = httpx.Timeout(900.0)


@dataclass(frozen=True)
class Measurement:
    """One figure and its target.

    Attributes:
        name: what was measured.
        value: the figure.
        target: the figure should be below it; ``None`` for a figure that only accompanies another.
        unit: of both.
    """

    name: str
    value: float
    target: float | None
    unit: str

    @property
    def passes(self) -> bool:
        """Whether the figure is below its target, or has none."""
        return self.target is None or self.value < self.target


def measure_server(
    settings: ServerSettings, labels: tuple[str, ...], size: tuple[int, int], folder: Path
) -> list[Measurement]:
    """Run the server and measure it on scenes of the playground world, which it reads as local files.

    Args:
        settings: of the server; its queue and folders are used as they are.
        labels: words that the model knows, at least two.
        size: ``(height, width)`` of the images.
        folder: an empty folder, for the images.

    Returns:
        Seconds of ``/health`` and ``/setup`` while a batch runs, wrong answers among many concurrent requests and
        around the death of the worker, and the time of a second prompt on an image as a share of the first one's.

    Raises:
        SettingsError: the model cannot be loaded.
    """
    names = [path.name for path in write_scenes(folder, _BATCH + _IMAGES, 1, size) if path.suffix == ".png"]
    batch, others = names[:_BATCH], names[_BATCH:]
    config = labeling_config_xml(Vocabulary.from_options(labels), "polygon")
    settings = replace(settings, images=replace(settings.images, local_root=folder))
    with _running(settings) as client:
        _wait_until_ready(client)
        # The first predictions of a process and of a word are slower than all others, whatever they are asked.
        for label in labels:
            _predict(client, config, batch[:1], label)
        ratios = _second_prompts(client, config, others, labels)
        health, setup = _latencies(client, config, batch)
        right = [_shape(_predict(client, config, [name], labels[0])) for name in others]
        wrong = _wrong_answers(client, config, others, labels[0], right)
        lost = _lost_answers(client, config, others, labels[0], right)
    second = "second prompt's share of the first one's time"
    return [
        Measurement(f"/health, 99th percentile of {len(health)} calls during batches", _percentile(health), 0.25, "s"),
        Measurement(f"/setup, slowest of {len(setup)} calls during batches", max(setup), 1.0, "s"),
        Measurement(f"neither right nor 503, of {_AT_ONCE} requests at once", float(wrong), 1.0, ""),
        Measurement("other requests lost when the worker was killed", float(lost), 1.0, ""),
        Measurement(f"{second}, median of {len(ratios)}", statistics.median(ratios), 0.1, ""),
        Measurement("  smallest of them", min(ratios), None, ""),
        Measurement("  largest of them", max(ratios), None, ""),
    ]


@contextmanager
def _running(settings: ServerSettings) -> Iterator[httpx.Client]:
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        _wait_for(lambda: server.started, "the server did not start")
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

    _wait_for(ready, "the model was not loaded")


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS_TO_LOAD
    while not condition():
        if time.monotonic() > deadline:
            raise SettingsError(f"{what} within {_SECONDS_TO_LOAD:g} seconds")
        time.sleep(0.1)


def _predict(client: httpx.Client, config: str, names: Sequence[str], text: str | None) -> httpx.Response:
    result = {"type": "textarea", "from_name": "prompt", "value": {"text": [text]}}
    urls = [f"/data/local-files/?d={name}" for name in names]
    body = {
        "tasks": [{"id": number, "data": {"image": url}} for number, url in enumerate(urls)],
        "label_config": config,
        "project": _PROJECT,
        "params": {"context": None if text is None else {"result": [result]}},
    }
    return client.post("/predict", json=body)


def _second_prompts(client: httpx.Client, config: str, names: Sequence[str], labels: Sequence[str]) -> list[float]:
    """Shares of the first prompt's time on an image that prompts with further words take on it."""

    def seconds(name: str, text: str) -> float:
        began = time.perf_counter()
        _predict(client, config, [name], text).raise_for_status()
        return time.perf_counter() - began

    ratios = []
    for name in names:
        first = seconds(name, labels[0])
        # What was typed for one label stays out of the next one's way, as its prompts are cleared.
        for label, other in zip(labels[1:], labels, strict=False):
            ratios.append(seconds(name, f"{label}: {other} {label}") / first)
            _predict(client, config, [name], "/clear")
    return ratios


def _latencies(client: httpx.Client, config: str, names: Sequence[str]) -> tuple[list[float], list[float]]:
    """Seconds of calls of the health check and of the setup while batches run."""
    health: list[float] = []
    setup: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        number = 0
        pending = None
        while len(health) < _CALLS:
            if pending is None or pending.done():
                # Another threshold makes it another model version, so that nothing is answered from the cache.
                number += 1
                changed = config.replace("<View", f'<View model_background="{0.4 + number / 1000:.3f}"', 1)
                pending = pool.submit(_predict, client, changed, names, None)
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
    return {"project": _PROJECT, "schema": config, "hostname": DEFAULT_URL}


def _shape(answer: httpx.Response) -> list[Any]:
    return [region["value"] for region in answer.json()["results"][0]["result"]]


def _refused(answer: httpx.Response) -> bool:
    return answer.status_code == httpx.codes.SERVICE_UNAVAILABLE


def _wrong(answer: httpx.Response, right: list[Any]) -> bool:
    """Whether an answer is neither right nor a refusal."""
    return not _refused(answer) and (answer.status_code != httpx.codes.OK or _shape(answer) != right)


def _wrong_answers(
    client: httpx.Client, config: str, names: Sequence[str], text: str, right: Sequence[list[Any]]
) -> int:
    """Answers among many at once that are neither right nor 503."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        order = [number % len(names) for number in range(_AT_ONCE)]
        answers = list(pool.map(lambda place: _predict(client, config, [names[place]], text), order))
    return sum(_wrong(answer, right[place]) for place, answer in zip(order, answers, strict=True))


def _lost_answers(
    client: httpx.Client, config: str, names: Sequence[str], text: str, right: Sequence[list[Any]]
) -> int:
    """Answers that are not right, besides one 503, of requests around a kill of the worker."""
    worker = client.get("/status").json()["worker_pid"]
    with ThreadPoolExecutor(len(names)) as pool:
        # Stopped, it is surely killed during a request and not between two.
        os.kill(worker, signal.SIGSTOP)
        pending = [pool.submit(_predict, client, config, [name], text) for name in names]
        _wait_for(lambda: client.get("/status").json()["requests"] == len(names), "the requests did not arrive")
        os.kill(worker, signal.SIGKILL)
        answers = [one.result() for one in pending]
    wrong = sum(_wrong(answer, shape) for answer, shape in zip(answers, right, strict=True))
    return wrong + max(sum(map(_refused, answers)) - 1, 0)


def _percentile(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 99))
