"""Where memory runs out: one sentence with a remedy, and what fits alone is done."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from labelstudio_backend.worker import _failure
from tcl_core.cli.main import run
from tcl_core.errors import is_out_of_memory
from tcl_core.images import ResizedImage
from tcl_core.jobs.inputs import find_images
from tcl_core.models import Model
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary
from tests.core.prelabel_helpers import run_prelabel

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        blocks = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save(folder / f"{number}.png")
    return folder


def failing(error: Exception) -> Callable[..., None]:
    def encode(*_: object, **__: object) -> None:
        raise error

    return encode


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_is_a_lack_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_an_allocation_that_no_machine_can_make_is_one() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_what_is_none(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_segment_says_it_in_one_sentence(
    error: Exception,
    photos: Path,
    tiny_model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tcl_core.segmentation.encoding.ImageEncoder._embed", failing(error))
    assert run(["segment", str(photos / "0.png"), "--label", "cat", "--model", str(tiny_model_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "memory; use a smaller --batch-size" in said
    assert ("GPU" in said) == ("CUDA" in str(error))


def test_a_server_says_it_too(caplog: pytest.LogCaptureFixture) -> None:
    failed = _failure(ERRORS[0])
    assert "enough free memory for this image" in failed.reason and not failed.internal
    assert "not enough memory" in caplog.text


class Scarce(Segmenter):
    """Has room for one image, and none beside the tensors of a batch that failed."""

    rest: list[weakref.ref[NDArray[np.uint8]]]

    def encode_batch(
        self, images: list[ResizedImage], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ImageFeatures]:
        self.rest = [ref for ref in getattr(self, "rest", []) if ref() is not None]
        if len(images) > 1 or self.rest:
            held = np.zeros((4, 4, 3), np.uint8)
            self.rest.append(weakref.ref(held))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode_batch(images, on_progress)


def test_images_that_fit_alone_are_done_alone(photos: Path, tiny_model: Model, tmp_path: Path) -> None:
    """What the failed batch left behind is freed before the first of its images is tried again."""
    segmenter = Scarce(tiny_model, refine=False, batch_size=4)
    vocabulary = Vocabulary.from_options(["cat", "sofa"])
    summary = run_prelabel(find_images([str(photos)]), segmenter, vocabulary, tmp_path / "out.json")
    assert (summary.done, dict(summary.failed)) == (5, {})


def test_an_image_that_does_not_fit_costs_itself(
    photos: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcl_core.segmentation.encoding.ImageEncoder._embed", failing(ERRORS[1]))
    segmenter, vocabulary = Segmenter(tiny_model, refine=False), Vocabulary.from_options(["cat", "sofa"])
    summary = run_prelabel(find_images([str(photos)]), segmenter, vocabulary, tmp_path / "out.json")
    assert summary.done == 0 and len(summary.failed) == 5 and summary.internal == 0
    assert all("there is not enough memory for it" in reason for reason in summary.failed.values())
