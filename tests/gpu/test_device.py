"""What is chosen where a CUDA device is, and how it is used."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu.limits import scarce_memory
from benchmarks.gpu.models import METHODS, RandomModels, enlarged_scene
from tcl_core.cli.main import run
from tcl_core.devices import autocast, select_device, select_precision, to_device
from tcl_core.evaluation.playground import held_out_scene
from tcl_core.export.coco import CocoExporter
from tcl_core.jobs.encoding import can_encode_ahead
from tcl_core.jobs.inputs import find_images
from tcl_core.jobs.job import run_prelabel
from tcl_core.models import load_model
from tcl_core.refinement.pamr import Pamr
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary


def test_auto_is_the_gpu_in_bfloat16(cuda: torch.device) -> None:
    assert select_device("auto") == cuda == select_device("cuda")
    native = torch.cuda.get_device_capability(cuda) >= (8, 0)
    assert select_precision("auto", cuda) == (torch.bfloat16 if native else torch.float32)
    model = load_model("playground")
    assert model.device == cuda and model.precision == select_precision("auto", cuda)
    assert {parameter.device for parameter in model.method.parameters()} == {cuda}
    assert {parameter.dtype for parameter in model.method.parameters()} == {torch.float32}


def test_features_of_bfloat16_give_float32_scores(device: torch.device) -> None:
    segmenter = Segmenter(load_model("playground", device=str(device), precision="bfloat16"))
    features = segmenter.encode(held_out_scene("seen", 0).image)
    scores = segmenter.score_maps(features, Vocabulary.from_options(["cat", "sofa"]))
    assert scores.dtype == torch.float32 and scores.device == device
    assert 0 <= float(scores.min()) and float(scores.max()) <= 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_nothing_waits_for_the_network(
    name: str, precision: torch.dtype, models: RandomModels, cuda: torch.device, no_waiting: None
) -> None:
    """Windows are sent, encoded and their guides made while the CPU prepares the next."""
    torch.cuda.set_sync_debug_mode("default")
    method = models.method(name, on_device=True)
    windows = torch.rand(3, 3, 64, 64)
    method.encode(windows.to(cuda))
    torch.cuda.set_sync_debug_mode("error")
    sent = to_device(windows, cuda)
    with autocast(cuda, precision):
        method.encode(sent)
    method.window_guide(Pamr(), sent)


def test_what_is_sent_in_the_background_arrives(cuda: torch.device) -> None:
    """The source may go away, or be written to, as soon as the call is back."""
    sent = []
    for number in range(50):
        tensor = torch.full((1 << 18,), float(number))
        sent.append(to_device(tensor, cuda))
        tensor.fill_(-1)
    assert [float(tensor.min()) for tensor in sent] == [float(tensor.max()) for tensor in sent] == list(range(50))


def test_threads_share_a_segmenter(device: torch.device) -> None:
    segmenter = Segmenter(load_model("playground", device=str(device), precision="float32"))
    images = [held_out_scene("seen", index).image for index in range(6)]
    vocabulary = Vocabulary.from_options(["cat", "sofa", "tree"])
    expected = [segmenter.segment_image(image, vocabulary).label_map for image in images]
    found: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        found[index] = segmenter.segment_image(images[index], vocabulary).label_map

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[index] == one).all() for index, one in enumerate(expected))


def test_a_large_image_and_many_labels(models: RandomModels, device: torch.device) -> None:
    image = enlarged_scene(1, (1500, 2000))[0]
    vocabulary = Vocabulary.from_options([f"thing number {number}" for number in range(100)])
    for name in ("tcl", "naclip"):
        segmenter = Segmenter(models.model(name, on_device=True))
        found = segmenter.segment_image(image, vocabulary)
        assert found.label_map.shape == (1500, 2000)


def test_out_of_memory_is_one_sentence(
    device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the memory is there again afterwards."""
    path = tmp_path / "large.png"
    Image.fromarray(enlarged_scene(0, (3000, 4000))[0]).save(path)
    command = ["segment", str(path), "--label", "cat", "--device", str(device)]
    with scarce_memory(device):
        assert run(command) == 2
    said = capsys.readouterr().err
    assert "memory; use a smaller --batch-size" in said and said.count("\n") == 1
    assert run(command) == 0


def test_a_job_that_encodes_ahead_writes_the_same_bytes(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that are encoded in a thread, on a stream of its own, have the numbers of those in turn."""
    for number in range(14):
        Image.fromarray(held_out_scene("seen", number).image).save(tmp_path / f"{number:02d}.png")
    images = find_images([str(tmp_path)])
    segmenter = Segmenter(load_model("playground", device=str(device)), batch_size=4)
    assert can_encode_ahead(segmenter) is (device.type == "cuda")
    vocabulary = Vocabulary.from_options(["cat", "sofa", "tree"])
    outputs = []
    for number, ahead in enumerate((False, True, True)):
        monkeypatch.setattr("tcl_core.jobs.job.can_encode_ahead", lambda _, ahead=ahead: ahead)
        out = tmp_path / f"{number}.json"
        assert run_prelabel(images, segmenter, vocabulary, out, CocoExporter()).done == 14
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
