"""The bulk command with worker processes: the same predictions as without, whatever ends a run or a process."""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from labelstudio_backend.batch import BulkSummary, predict_project
from labelstudio_backend.client import LabelStudioClient
from labelstudio_backend.drawing import Decided, Drawing
from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.model_options import ModelOptions
from labelstudio_backend.predictor import Predictor
from labelstudio_backend.requests import Plan
from labelstudio_backend.settings import ImageSettings
from labelstudio_backend.task_pipeline import stages_of
from labelstudio_backend.task_stages import DecidedTaskImage, FetchedImage, failure_of
from tcl_core.cli.main import run
from tcl_core.errors import ImageError
from tcl_core.jobs.processes import ProcessWorkers
from tcl_core.types import Segmentation
from tests.labelstudio.label_studio import TOKEN, LabelStudio

pytestmark = pytest.mark.timeout(300)

CONFIG = (
    '<View model_background="0.1"><Image name="image" valueList="$pages"/><TextArea name="prompt" toName="image"/>'
    '<PolygonLabels name="p" toName="image"><Label value="Sofa" predicted_values="sofa,couch"/><Label value="sky"/>'
    '</PolygonLabels><BrushLabels name="b" toName="image"><Label value="cat"/></BrushLabels></View>'
)
COUNT = 36
BROKEN = {3: "damaged or truncated", 9: "404", 14: "has no 'pages'", 17: "page 2: the image: damaged"}


def encoded(seed: int, size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    """An image of coarse random squares."""
    coarse = np.random.default_rng(seed).integers(0, 255, (2, 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


FILES: Mapping[str, bytes] = {
    "broken.png": encoded(1)[:90],
    **{f"{number}.png": encoded(number, (64, 48) if number % 3 else (41, 70)) for number in range(1, COUNT + 1)},
    **{f"{number}b.png": encoded(100 + number) for number in (5, 6, 7)},
}


def tasks() -> Iterator[dict[str, Any]]:
    """Tasks of one image, of several pages, with the image in its address; and four that fail."""
    for number in range(1, COUNT + 1):
        pages = [f"/data/upload/1/{number}.png"]
        if number in (5, 6, 7):
            pages.append(f"/data/upload/1/{number}b.png")
        if number == 4:
            pages = ["data:image/png;base64," + base64.b64encode(encoded(4)).decode()]
        if number == 17:
            pages.append("/data/upload/1/broken.png")
        if number in (3, 9):
            pages = [f"/data/upload/1/{'broken' if number == 3 else 'gone'}.png"]
        yield {} if number == 14 else {"pages": pages}


@pytest.fixture
def server() -> Iterator[LabelStudio]:
    with LabelStudio(CONFIG, list(tasks()), FILES) as running:
        yield running


@pytest.fixture(scope="module")
def options(model_path: Path) -> ModelOptions:
    return ModelOptions(str(model_path), min_area=4, batch_size=4, tolerance="exact")


def predict(server: LabelStudio, options: ModelOptions, workers: int | Literal["auto"]) -> BulkSummary:
    with LabelStudioClient(server.url, TOKEN) as client:
        fetcher = ImageSettings(server.url).fetcher(TOKEN)
        return predict_project(client, client.project(1), fetcher, options, {}, workers=workers)


def test_workers_do_not_change_a_byte(server: LabelStudio, options: ModelOptions) -> None:
    one = predict(server, options, 0)
    stored = list(server.imported)
    server.forget()
    two = predict(server, options, 2)
    assert server.imported == stored and multiprocessing.active_children() == []
    assert one == two and one.done == COUNT - len(BROKEN)
    assert set(one.failed) == set(BROKEN)
    assert all(reason in one.failed[number] for number, reason in BROKEN.items())
    order = [entry["task"] for body in stored for entry in json.loads(body)]
    assert order == [number for number in range(1, COUNT + 1) if number not in BROKEN]
    assert [len(json.loads(body)) for body in stored] == [20, 12]
    shares = two.stages.shares()
    assert two.stages.workers == 2 and min(shares[stage] for stage in ("read", "network", "trace", "write")) > 0

    kinds = set()
    predictor = Predictor(options.load(), options, cache_bytes=0)
    config = parse_labeling_config(CONFIG)
    for number, results in server.results().items():
        wanted = [predictor.predict(FILES.get(f"{number}.png", b""), Plan(config)).results]
        if number in (5, 6, 7):
            wanted.append(predictor.predict(FILES[f"{number}b.png"], Plan(config)).results)
        if number == 4:
            wanted = [predictor.predict(encoded(4), Plan(config)).results]
        regions = [each for each in results if each["type"] != "textarea"]
        kinds |= {each["type"] for each in results}
        assert len({each["id"] for each in results}) == len(results)
        assert [(each["item_index"], each["type"], each["value"].get("labels")) for each in regions] == [
            (page, each["type"], each["value"].get("labels")) for page, found in enumerate(wanted) for each in found
        ]
        expected = [each["score"] for found in wanted for each in found]
        np.testing.assert_allclose([each["score"] for each in regions], expected, atol=2e-4)
    assert {"polygonlabels", "brushlabels"} <= kinds


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_and_started_again(server: LabelStudio, options: ModelOptions, workers: int) -> None:
    def interrupt(name: str) -> None:
        if name == "20.png":
            # As a terminal does: the workers get it as well.
            for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
                os.kill(process.pid or 0, signal.SIGINT)

    server.on_image = interrupt
    stopped = predict(server, options, workers)
    assert stopped.interrupted and stopped.done < COUNT - len(BROKEN) and multiprocessing.active_children() == []
    # What is stored is the beginning of the list.
    order = [entry["task"] for body in server.imported for entry in json.loads(body)]
    assert order == [number for number in range(1, COUNT + 1) if number not in BROKEN][: len(order)]
    server.on_image = lambda name: None
    rest = predict(server, options, workers)
    assert not rest.interrupted and rest.skipped == stopped.done == len(order)
    assert sorted(each["task"] for each in server.predictions.values()) == sorted(
        set(range(1, COUNT + 1)) - set(BROKEN)
    )


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a signal")
def test_a_killed_worker_ends_the_run_with_a_sentence_and_costs_nothing(
    server: LabelStudio, options: ModelOptions
) -> None:
    def kill_all_workers(name: str) -> None:
        if name == "20.png":
            for process in multiprocessing.active_children():
                process.kill()

    server.on_image = kill_all_workers
    summary = predict(server, options, 2)
    assert "a worker process ended while it had the image of task " in summary.stopped
    assert (
        "SIGKILL (perhaps for lack of memory)); what was done is kept, so run the command again with" in summary.stopped
    )
    assert "fewer --workers (there were 2)" in summary.stopped and multiprocessing.active_children() == []
    assert summary.done == len(server.predictions) < COUNT - len(BROKEN)
    assert set(summary.failed) <= set(BROKEN)
    server.on_image = lambda name: None
    assert predict(server, options, 0).skipped == summary.done
    assert sorted(server.results()) == sorted(set(range(1, COUNT + 1)) - set(BROKEN))


def test_older_predictions_are_replaced(server: LabelStudio, options: ModelOptions) -> None:
    old = replace(options, min_area=9)
    first = predict(server, old, 0)
    assert first.replaced == 0
    numbers = set(server.predictions)
    again = predict(server, options, 1)
    assert again.replaced == again.done == first.done and set(server.predictions) == numbers
    assert {each["model_version"] for each in server.predictions.values()} == {again.model_version}


def test_what_is_stored_without_an_answer_is_not_stored_twice(server: LabelStudio, options: ModelOptions) -> None:
    expected = predict(server, options, 0)
    stored = server.results()
    server.forget()
    server.silent = 2
    summary = predict(server, options, 0)
    assert summary == expected and server.results() == stored
    assert len(server.predictions) == summary.done and len(server.imported) == 2


def test_the_command_takes_workers_and_names_the_stages(
    server: LabelStudio, options: ModelOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token.txt").write_text(TOKEN)
    words = ["label-studio", "prelabel", "--url", server.url, "--token-file", str(tmp_path / "token.txt")]
    words += ["--project", "1", "--model", options.model, "--state-dir", str(tmp_path), "--tolerance", "exact"]
    assert run([*words, "--workers", "some"]) == 2
    assert "'some' is not valid; give auto, or a number of processes, 0 or more" in capsys.readouterr().err
    assert run([*words, "--workers", "1"]) == 1
    printed = capsys.readouterr()
    assert f"{COUNT - len(BROKEN)} of {COUNT} tasks predicted" in printed.out
    assert "network" in printed.err.partition("stages: ")[2] and "bottleneck: " in printed.err
    assert run([*words, "--workers", "1"]) == 1
    # There is nothing to tell of a few tasks.
    assert "stages: " not in capsys.readouterr().err


# -- the stages --------------------------------------------------------------------------------------------------------


def test_a_stage_gives_the_same_in_a_worker(options: ModelOptions) -> None:
    stages = stages_of(Predictor(options.load(), options, cache_bytes=0))
    label_map = np.kron(np.arange(6).reshape(2, 3) % 4, np.ones((20, 20), np.int32)).astype(np.int32)
    config = parse_labeling_config(CONFIG)
    maps = Segmentation(label_map, np.full(label_map.shape, 0.5, np.float32), config.vocabulary())
    decided = DecidedTaskImage(
        "of task 1", Decided(maps, Drawing(Plan(config), config.values, id_seed="x"), 0, "default")
    )
    workers = ProcessWorkers(stages, 1)
    try:
        read, broken = (workers.read(FetchedImage("of task 1", FILES[name])) for name in ("1.png", "broken.png"))
        drawn = workers.trace(decided)
        here, there = stages.read(FetchedImage("of task 1", FILES["1.png"])).image, read.result().image
        assert here is not None and there is not None
        assert np.array_equal(here.pixels, there.pixels) and here.content == there.content
        failure = broken.result().failure
        assert failure is not None and isinstance(failure.error, ImageError) and "damaged" in failure.reason
        assert drawn.result().prediction == stages.trace(decided).prediction
    finally:
        workers.close()


def test_what_is_known_of_an_image_before_it_is_read(options: ModelOptions) -> None:
    stages = stages_of(Predictor(options.load(), options, cache_bytes=0))
    assert stages.header_pixels(FetchedImage("of task 1", encoded(1))) == 64 * 48
    assert stages.header_pixels(FetchedImage("of task 1", b"no image")) == 0


def test_an_image_that_browsers_turn_otherwise_is_refused_by_workers_too(options: ModelOptions) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stages = stages_of(Predictor(options.load(), options, cache_bytes=0))
    read = stages.read(FetchedImage("of task 1", encoded(1, format="WEBP", exif=exif)))
    assert read.image is None and read.failure is not None and "browsers ignore" in read.failure.reason


@pytest.mark.parametrize(
    ("error", "reason", "internal"),
    [
        (ImageError("the image: gone"), "the image: gone", False),
        (MemoryError(), "there is not enough free memory for its image", False),
        (ZeroDivisionError("x"), "internal error, ZeroDivisionError", True),
    ],
)
def test_reasons_of_failures(error: Exception, reason: str, internal: bool) -> None:
    failure = failure_of(error)
    assert failure.reason.startswith(reason) and failure.internal is internal


def test_workers_do_without_pytorch() -> None:
    code = "import sys, labelstudio_backend.task_stages, tcl_core.jobs.processes; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "shapely" in loaded and not loaded & {"torch", "open_clip", "httpx"}
