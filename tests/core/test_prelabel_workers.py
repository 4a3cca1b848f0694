"""The job with worker processes: the same bytes as without, whatever ends a run or one of its processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_core.cli.main import run
from tcl_core.errors import ImageError, SettingsError
from tcl_core.export.coco import CocoExporter
from tcl_core.jobs import processes
from tcl_core.jobs.inputs import ImageList, find_images
from tcl_core.jobs.journal import journal_path
from tcl_core.jobs.processes import ProcessWorkers, WorkerLostError, automatic_count, check_workers, start_workers
from tcl_core.jobs.stages import (
    DecidedImage,
    Failure,
    ImageToRead,
    ReadSettings,
    Stages,
    TraceSettings,
)
from tcl_core.jobs.workers import InlineWorkers
from tcl_core.models import Model, load_model
from tcl_core.segmentation.segmenter import Segmenter
from tests.core.prelabel_helpers import run_prelabel
from tests.core.test_prelabel import VOCABULARY, TroubledSegmenter, save_image
from tests.core.worker_helpers import OddError, Stubborn, modules_of_a_worker
from tests.forked import forking_context

pytestmark = pytest.mark.timeout(300)

READING = ReadSettings(short_side=64, max_long_side=256, max_pixels=10_000_000)
STAGES = Stages(READING, TraceSettings(VOCABULARY, CocoExporter()))


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path, device="cpu")


@pytest.fixture
def segmenter(model: Model) -> TroubledSegmenter:
    return TroubledSegmenter(model, refine=False, batch_size=4)


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    folder = tmp_path / "images"
    for number in range(14):
        save_image(folder / f"{number:02d}.png", number, (40, 48) if number % 3 else (33, 21))
    (folder / "05 empty.png").touch()
    (folder / "11 text.jpg").write_text("I am no image")
    return find_images([str(folder)])


@pytest.fixture
def whole(tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter) -> Path:
    """The output of one process, with its preview beside it."""
    out = tmp_path / "one" / "out.json"
    run_prelabel(images, segmenter, VOCABULARY, out, preview=out.parent / "preview")
    segmenter.calls = 0
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_workers_do_not_change_a_byte(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter, whole: Path
) -> None:
    out = tmp_path / "two" / "out.json"
    summary = run_prelabel(images, segmenter, VOCABULARY, out, preview=out.parent / "preview", workers=2)
    assert summary.done == 14 and set(summary.failed) == {"05 empty.png", "11 text.jpg"}
    # The preview's cards too are in the order of the images.
    assert files_of(out.parent) == files_of(whole.parent)
    assert summary.stages.workers == 2 and min(summary.stages.shares().values()) > 0
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_with_workers_and_resumed(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter, whole: Path, number: signal.Signals
) -> None:
    def signal_everybody() -> None:
        # As a terminal does: the workers get it as well.
        for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
            os.kill(process.pid or 0, number)

    out = tmp_path / "two" / "out.json"
    segmenter.at, segmenter.trouble = 6, signal_everybody
    summary = run_prelabel(images, segmenter, VOCABULARY, out, preview=out.parent / "preview", workers=2)
    assert summary.interrupted and summary.done <= 6
    assert multiprocessing.active_children() == []
    segmenter.at = -1
    run_prelabel(images, segmenter, VOCABULARY, out, preview=out.parent / "preview", resume=True)
    assert out.read_bytes() == whole.read_bytes()
    pages = (files_of(path.parent / "preview")["index.html"] for path in (out, whole))
    assert next(pages) == next(pages)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a signal")
def test_a_killed_worker_ends_the_job_with_a_sentence_and_costs_nothing(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter, whole: Path
) -> None:
    out = tmp_path / "two" / "out.json"

    def kill_all_workers() -> None:
        for process in multiprocessing.active_children():
            process.kill()

    segmenter.at, segmenter.trouble = 6, kill_all_workers
    with pytest.raises(WorkerLostError) as caught:
        run_prelabel(images, segmenter, VOCABULARY, out, workers=2)
    said = str(caught.value)
    assert "worker process ended while it had the image" in said and any(name in said for name in images.file_names)
    assert "SIGKILL (perhaps for lack of memory)" in said and "--resume and fewer --workers (there were 2)" in said
    assert journal_path(out).exists() and multiprocessing.active_children() == []
    segmenter.at = -1
    assert run_prelabel(images, segmenter, VOCABULARY, out, resume=True, workers=1).done == 14
    assert out.read_bytes() == whole.read_bytes()


def test_an_error_in_a_worker_costs_one_image_and_is_told_as_without_workers(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    summaries = [
        run_prelabel(images, segmenter, VOCABULARY, tmp_path / f"{count}.json", exporter=exporter, workers=count)
        for count, exporter in ((0, Stubborn()), (2, Stubborn()))
        if not setattr(exporter, "name", "coco")
    ]
    assert summaries[0].failed == summaries[1].failed and summaries[0].internal == 5
    assert "internal error, OddError: no luck" in summaries[1].failed["03.png"]
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_a_fault_of_the_program_in_a_worker_says_where_it_is() -> None:
    workers = ProcessWorkers(Stages(READING, TraceSettings(VOCABULARY, Stubborn())), 1)
    try:
        traced = workers.trace(DecidedImage("a.png", np.ones((4, 21), np.int32), np.ones((4, 21), np.float32), 0))
        failure = traced.result().failure
    finally:
        workers.close()
    assert failure is not None and failure.internal
    assert type(failure.error) is RuntimeError and str(failure.error) == "OddError: no luck"
    assert "in prepare" in failure.error.__notes__[0]


def test_an_exporter_that_cannot_be_sent(tmp_path: Path) -> None:
    exporter = CocoExporter()
    exporter.extra = lambda: None  # type: ignore[attr-defined]
    stages = Stages(READING, TraceSettings(VOCABULARY, exporter))
    with pytest.raises(SettingsError, match="the exporter coco cannot be sent to another process; use 0 workers"):
        start_workers(2, stages, images=100)
    assert isinstance(start_workers("auto", stages, images=100), InlineWorkers)
    with pytest.raises(SettingsError, match="--workers -1: give auto"):
        start_workers(-1, STAGES, images=100)


def test_more_workers_than_a_machine_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them took all memory, and the system ended other programs."""
    monkeypatch.setattr(processes, "_cores", lambda: 2)
    message = "--workers 1000: this machine has 2 cores, where more than 32 processes gain nothing"
    with pytest.raises(SettingsError, match=message):
        start_workers(1000, STAGES, 2000)
    check_workers(32)
    monkeypatch.setattr(processes, "_cores", lambda: 64)
    check_workers(256)


def test_few_images_start_no_worker() -> None:
    assert automatic_count(3) == 0 and automatic_count(1000) <= 16
    assert isinstance(start_workers("auto", STAGES, images=3), InlineWorkers)


def test_a_stage_gives_the_same_in_a_worker(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 3, (90, 120))
    (tmp_path / "b.png").write_bytes(b"no image")
    label_map = np.kron(np.arange(6).reshape(2, 3) % 4, np.ones((20, 20), np.int32)).astype(np.int32)
    decided = DecidedImage("a.png", label_map, np.full(label_map.shape, 0.5, np.float32), 0, scale=0.5)
    tasks = [ImageToRead(tmp_path, "a.png", thumbnail=50), ImageToRead(tmp_path, "b.png")]
    workers = ProcessWorkers(STAGES, 1)
    try:
        (read, broken), traced = [workers.read(task) for task in tasks], workers.trace(decided)
        here, there = STAGES.read(tasks[0]), read.result()
        assert here.image is not None and there.image is not None
        assert np.array_equal(here.image.pixels, there.image.pixels) and here.image.content == there.image.content
        assert (here.source, here.thumbnail) == (there.source, there.thumbnail)
        failure = broken.result().failure
        assert failure is not None and isinstance(failure.error, ImageError) and "not an image" in failure.reason
        assert traced.result().line == STAGES.trace(decided).line != b""
        assert traced.result().outlines == STAGES.trace(decided).outlines
    finally:
        workers.close()


def test_large_images_are_traced_one_at_a_time_and_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LARGE_IMAGE", 1000)
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "small.png")
    assert processes._is_large(STAGES, ImageToRead(tmp_path, "large.png"))
    assert not processes._is_large(STAGES, ImageToRead(tmp_path, "small.png"))
    assert not processes._is_large(STAGES, ImageToRead(tmp_path, "gone.png"))
    workers = ProcessWorkers(STAGES, 1)
    try:
        for size, here in (((30, 40), True), ((20, 30), False)):
            future = workers.trace(DecidedImage("a.png", np.ones(size, np.int32), np.ones(size, np.float32), 0))
            # One that a worker has needs the worker to start first.
            assert future.done() is here and future.result().failure is None
    finally:
        workers.close()


@pytest.mark.parametrize("error", [OddError("a", "b"), OSError(2, "gone", "x"), ZeroDivisionError("x")])
def test_every_failure_can_be_sent(error: Exception) -> None:
    failure = Failure.of("a.png", error).portable()
    arrived = pickle.loads(pickle.dumps(failure))
    assert arrived.reason == failure.reason and str(error) in str(arrived.error)
    assert str(error) in arrived.error.__notes__[0]


def test_workers_do_without_pytorch() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        loaded = pool.apply(modules_of_a_worker)
    assert "shapely" in loaded and not loaded & {"torch", "open_clip"}


# -- killed ------------------------------------------------------------------------------------------------------------


def _label(folder: Path, model_path: Path, out: Path, ahead: bool) -> None:
    """A run in a process of its own; its results come slowly enough to be killed among them."""
    with pytest.MonkeyPatch.context() as patch:
        # As on a GPU.
        patch.setattr("tcl_core.jobs.job.can_encode_ahead", lambda _: ahead)
        run_prelabel(
            find_images([str(folder)]),
            Segmenter(load_model(model_path, device="cpu"), refine=False, batch_size=4),
            VOCABULARY,
            out,
            preview=out.parent / "preview",
            resume=True,
            workers=2,
        )


def _children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(until: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.005)
    return until()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("kills", "ahead"),
    [(2, False), pytest.param(20, False, marks=pytest.mark.slow), pytest.param(4, True, marks=pytest.mark.slow)],
)
def test_killed_at_random_and_resumed(
    tmp_path: Path, images: ImageList, tiny_model_path: Path, whole: Path, kills: int, ahead: bool
) -> None:
    out = tmp_path / "killed" / "out.json"
    out.parent.mkdir()
    rng = np.random.default_rng(kills)
    killed = 0
    while killed < kills:
        # Every fourth anywhere in the run, the others while results are written.
        anywhere = killed % 4 == 3
        delay = float(rng.uniform(0, 2 if anywhere else 0.02))
        if _killed_run(images.root, tiny_model_path, out, ahead, anywhere, delay):
            killed += 1
        else:
            # It came to its end before; the next begins anew.
            assert out.read_bytes() == whole.read_bytes()
            shutil.rmtree(out.parent)
            out.parent.mkdir()
    _label(images.root, tiny_model_path, out, ahead)
    assert out.read_bytes() == whole.read_bytes()
    pages = [(path.parent / "preview" / "index.html").read_bytes() for path in (out, whole)]
    assert pages[0] == pages[1]


def _killed_run(folder: Path, model_path: Path, out: Path, ahead: bool, anywhere: bool, delay: float) -> bool:
    """Kill a run a moment after it has started, or added a line to the journal; whether it was not done by then."""
    journal = journal_path(out)
    before = journal.stat().st_size if journal.exists() else 0
    process: Any = forking_context().Process(target=_label, args=(folder, model_path, out, ahead))
    process.start()
    if not anywhere:
        assert _wait(lambda: not process.is_alive() or (journal.exists() and journal.stat().st_size > before))
    time.sleep(delay)
    workers = _children(process.pid)
    process.kill()
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0)
    assert _wait(lambda: not any(_is_alive(pid) for pid in workers)), "a worker outlived its parent"
    return process.exitcode != 0


def test_the_limit_is_told_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prelabel", str(tmp_path), "--label", "cat", "--model", "nothing", "--out", str(tmp_path / "out.json")]
    words += ["--workers", "100000"]
    save_image(tmp_path / "image.png", 0, (40, 48))
    assert run([*words]) == 2
    assert "--workers 100000: this machine has" in capsys.readouterr().err
    # The machines of a cluster have cores of their own.
    assert run([*words, "--ray", "127.0.0.1:9"]) == 2
    assert "this machine has" not in capsys.readouterr().err
