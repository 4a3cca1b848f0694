"""A batch in the network while the one before is decided: the same bytes and failures as one after the other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tcl_core.images import ResizedImage, content_hash, load_image
from tcl_core.jobs.encoding import can_encode_ahead
from tcl_core.jobs.inputs import ImageList, find_images
from tcl_core.jobs.pipeline import done, in_order
from tcl_core.jobs.processes import WorkerLostError
from tcl_core.jobs.times import OverlappingTime, StageTimes
from tcl_core.models import Model, load_model
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary
from tests.core.prelabel_helpers import run_prelabel
from tests.core.test_prelabel import VOCABULARY, TroubledSegmenter, save_image

pytestmark = pytest.mark.timeout(300)

SETTINGS: dict[str, Any] = {"refine": False, "batch_size": 4}


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path, device="cpu")


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    folder = tmp_path / "images"
    for number in range(14):
        save_image(folder / f"{number:02d}.png", number, (40, 48) if number % 3 else (33, 21))
    (folder / "03 empty.png").touch()
    (folder / "11 text.jpg").write_text("I am no image")
    return find_images([str(folder)])


@pytest.fixture
def whole(tmp_path: Path, images: ImageList, model: Model) -> Path:
    """The output of a run in turn, with its preview beside it."""
    out = tmp_path / "turn" / "out.json"
    run_prelabel(images, Segmenter(model, **SETTINGS), VOCABULARY, out, preview=out.parent / "preview")
    return out


@pytest.fixture(autouse=True)
def ahead(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Jobs encode ahead, also on a CPU, and leave no thread behind."""
    if "whole" in request.fixturenames:
        request.getfixturevalue("whole")
    monkeypatch.setattr("tcl_core.jobs.job.can_encode_ahead", lambda _: True)
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tcl-annotate")]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Watched(Segmenter):
    """Decides the first image only when the second batch is in the network."""

    batches = 0
    most_during_first = 0

    def encode_batch(self, images: Any, on_progress: Callable[[int, int], None] | None = None) -> list[ImageFeatures]:
        self.batches += 1
        if self.batches == 2:
            self.second.set()
        return super().encode_batch(images, on_progress)

    def explain(self, features: ImageFeatures, vocabulary: Vocabulary) -> Any:
        if not self.decided:
            assert self.second.wait(60), "the second batch waits for the first to be decided"
        found = super().explain(features, vocabulary)
        self.decided += 1
        if self.decided <= 3:
            self.most_during_first = self.batches
        return found

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.second, self.decided = threading.Event(), 0


@pytest.mark.parametrize("workers", [0, 2])
def test_encoding_ahead_does_not_change_a_byte(
    tmp_path: Path, images: ImageList, model: Model, whole: Path, workers: int
) -> None:
    out = tmp_path / "ahead" / "out.json"
    segmenter = Watched(model, **SETTINGS)
    summary = run_prelabel(images, segmenter, VOCABULARY, out, preview=out.parent / "preview", workers=workers)
    assert summary.done == 14 and set(summary.failed) == {"03 empty.png", "11 text.jpg"}
    assert files_of(out.parent) == files_of(whole.parent)
    # Never more than one batch ahead.
    assert segmenter.most_during_first == 2 and segmenter.batches == 4
    assert 0 < summary.stages.network <= summary.stages.elapsed


def test_an_image_that_fails_costs_itself(tmp_path: Path, images: ImageList, model: Model, whole: Path) -> None:
    out = tmp_path / "out.json"
    segmenter = TroubledSegmenter(model, **SETTINGS)
    segmenter.poison = content_hash(load_image(images.root / "06.png"))
    summary = run_prelabel(images, segmenter, VOCABULARY, out)
    assert summary.failed["06.png"] == "internal error, RuntimeError: poisoned image; please report it"
    assert summary.done == 13 and len(summary.failed) == 3
    segmenter.poison = ""
    segmenter.company = []
    run_prelabel(images, segmenter, VOCABULARY, out, resume=True)
    # In its company, and no other group again.
    assert [len(batch) for batch in segmenter.company] == [4]


class Narrow(Segmenter):
    """Has room for the features of one batch, and to decide only beside that one; fails always with ``poison``."""

    poison = ""
    failures = 0
    tight_encoding = tight_deciding = False

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.held: list[weakref.ref[ImageFeatures]] = []
        self.batches: list[tuple[str, ...]] = []
        self.lock = threading.Lock()
        self.two_done = threading.Event()

    def alive(self) -> int:
        self.held = [ref for ref in self.held if ref() is not None]
        return len(self.held)

    def encode_batch(self, images: Any, on_progress: Callable[[int, int], None] | None = None) -> list[ImageFeatures]:
        with self.lock:
            is_full = self.tight_encoding and self.alive()
        if is_full:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        features = super().encode_batch(images, on_progress)
        with self.lock:
            self.held += [weakref.ref(one) for one in features]
        self.batches.append(tuple(one.key.content for one in features))
        if len(self.batches) == 2:
            self.two_done.set()
        return features

    def segment(self, features: ImageFeatures, vocabulary: Vocabulary) -> Segmentation:
        if self.tight_deciding:
            # Else there might be nothing yet that stands in the way.
            assert self.two_done.wait(60)
        with self.lock:
            is_full = self.tight_deciding and self.alive() > 4
        if is_full or features.key.content == self.poison:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().segment(features, vocabulary)


@pytest.fixture
def many(tmp_path: Path) -> ImageList:
    for number in range(16):
        save_image(tmp_path / "many" / f"{number:02d}.png", number, (40, 48))
    return find_images([str(tmp_path / "many")])


@pytest.mark.parametrize("tight", ["tight_encoding", "tight_deciding"])
def test_memory_that_is_short_because_of_the_batch_ahead_costs_no_image(
    tmp_path: Path, many: ImageList, model: Model, monkeypatch: pytest.MonkeyPatch, tight: str, capfd: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tcl_core.jobs.job.can_encode_ahead", lambda _: False)
        undisturbed = Narrow(model, **SETTINGS)
        run_prelabel(many, undisturbed, VOCABULARY, tmp_path / "turn.json")
    segmenter = Narrow(model, **SETTINGS)
    setattr(segmenter, tight, True)
    summary = run_prelabel(many, segmenter, VOCABULARY, tmp_path / "ahead.json", quiet=False)
    assert (summary.done, dict(summary.failed)) == (16, {})
    assert (tmp_path / "ahead.json").read_bytes() == (tmp_path / "turn.json").read_bytes()
    # The same company as ever, and from then on one after the other.
    assert segmenter.failures == 1 and set(segmenter.batches) == set(undisturbed.batches)
    assert "not enough memory to encode images ahead" in capfd.readouterr().err


def test_an_image_that_needs_too_much_memory_costs_itself_alone(
    tmp_path: Path, many: ImageList, model: Model, capfd: Any
) -> None:
    segmenter = Narrow(model, **SETTINGS)
    segmenter.poison = content_hash(load_image(many.root / "05.png"))
    summary = run_prelabel(many, segmenter, VOCABULARY, tmp_path / "out.json", quiet=False)
    assert set(summary.failed) == {"05.png"} and "not enough memory for it" in summary.failed["05.png"]
    assert "encode images ahead" not in capfd.readouterr().err


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_signal_while_the_network_works_and_resumed(
    tmp_path: Path, images: ImageList, model: Model, whole: Path, number: signal.Signals, workers: int
) -> None:
    class Signaling(Segmenter):
        calls = 0

        def encode_batch(
            self, images: Any, on_progress: Callable[[int, int], None] | None = None
        ) -> list[ImageFeatures]:
            self.calls += 1
            if self.calls == 3:
                # Twice, as by an impatient user.
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
            return super().encode_batch(images, on_progress)

    out = tmp_path / "ahead" / "out.json"
    summary = run_prelabel(
        images, Signaling(model, **SETTINGS), VOCABULARY, out, preview=out.parent / "preview", workers=workers
    )
    assert summary.interrupted and summary.done <= 8 and multiprocessing.active_children() == []
    segmenter = Segmenter(model, **SETTINGS)
    run_prelabel(images, segmenter, VOCABULARY, out, preview=out.parent / "preview", resume=True, workers=workers)
    assert out.read_bytes() == whole.read_bytes()
    pages = [path.parent / "preview" / "index.html" for path in (out, whole)]
    assert pages[0].read_bytes() == pages[1].read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a signal")
def test_a_killed_worker_ends_the_job_and_costs_nothing(
    tmp_path: Path, images: ImageList, model: Model, whole: Path
) -> None:
    def kill_all_workers() -> None:
        for process in multiprocessing.active_children():
            process.kill()

    out = tmp_path / "ahead" / "out.json"
    segmenter = TroubledSegmenter(model, **SETTINGS)
    segmenter.at, segmenter.trouble = 6, kill_all_workers
    with pytest.raises(WorkerLostError, match="worker process ended while it had the image"):
        run_prelabel(images, segmenter, VOCABULARY, out, workers=2)
    segmenter.at = -1
    assert run_prelabel(images, segmenter, VOCABULARY, out, resume=True, workers=1).done == 14
    assert out.read_bytes() == whole.read_bytes()


def test_what_ends_the_program_in_the_thread_ends_it_here(tmp_path: Path, images: ImageList, model: Model) -> None:
    class EndingSegmenter(Segmenter):
        def encode_batch(
            self, images: Any, on_progress: Callable[[int, int], None] | None = None
        ) -> list[ImageFeatures]:
            raise SystemExit(7)

    with pytest.raises(SystemExit):
        run_prelabel(images, EndingSegmenter(model, **SETTINGS), VOCABULARY, tmp_path / "out.json")


def test_windows_that_nobody_waits_for_are_not_encoded(tmp_path: Path, images: ImageList, model: Model) -> None:
    """A batch has several passes through the network; after Ctrl-C no more than the first is finished."""
    passes = []

    class Slow(Segmenter):
        def encode_batch(
            self, images: list[ResizedImage], on_progress: Callable[[int, int], None] | None = None
        ) -> list[ImageFeatures]:
            def advance(done: int, total: int) -> None:
                if done == 0:
                    os.kill(os.getpid(), signal.SIGINT)
                    # The main thread has told the encoder by then.
                    assert stopped.wait(60)
                assert on_progress is not None
                on_progress(done, total)
                passes.append(done)

            return super().encode_batch(images, advance)

    from tcl_core.jobs import encoding

    stopped = threading.Event()
    close = encoding.Encoder.close

    def close_and_tell(self: encoding.Encoder) -> None:
        self._closed = True
        stopped.set()
        close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding.Encoder, "close", close_and_tell)
        assert run_prelabel(images, Slow(model, **SETTINGS), VOCABULARY, tmp_path / "out.json").interrupted
    assert passes == []


@pytest.mark.parametrize(
    ("device", "cache", "expected"), [("cuda", None, True), ("cuda", object(), False), ("cpu", None, False)]
)
def test_where_it_pays(device: str, cache: object, expected: bool) -> None:
    segmenter = SimpleNamespace(model=SimpleNamespace(device=torch.device(device)), cache=cache)
    assert can_encode_ahead(segmenter) is expected  # type: ignore[arg-type]


def test_an_error_among_items_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise ValueError("no more")

    found = []
    with pytest.raises(ValueError, match="no more"):
        for item, future in in_order(items(), lambda item: done(-item), ahead=3):
            found.append((item, future.result()))
    assert found == [(1, -1), (2, -2), (3, -3)]


def test_what_threads_do_at_once_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("tcl_core.jobs.times.time.perf_counter", lambda: now)
    times = StageTimes()
    network = OverlappingTime(times, "network")
    with network.working():
        now = 3.0
        with network.working():
            now = 4.0
        assert times.network == 4.0
        now = 6.0
    now = 10.0
    with network.working():
        now = 11.0
    assert times.network == 7.0
