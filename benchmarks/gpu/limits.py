"""A large image, a long vocabulary, and what happens where memory runs out."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image

from benchmarks.gpu.models import RandomModels, enlarged_scene, vocabulary_of
from benchmarks.gpu.sections import Figure
from benchmarks.gpu.timing import peak_memory, seconds
from tcl_core.cli.main import run
from tcl_core.export.coco import CocoExporter
from tcl_core.jobs.inputs import find_images
from tcl_core.jobs.job import run_prelabel
from tcl_core.models import load_model
from tcl_core.regions import label_map_to_regions
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.common_names import common_names

__all__ = ["large_image", "out_of_memory", "scarce_memory"]

_FILES = 2
_SENTENCE = "memory; use a smaller --batch-size"


def large_image(models: RandomModels, name: str, with_polygons: bool) -> Iterator[Figure]:
    """An image of 12 megapixels, asked for few labels and for a hundred, with PAMR.

    Args:
        models: the networks.
        name: ``float32`` or ``bfloat16``.
        with_polygons: whether regions and polygons are made too, which a CPU does.
    """
    device, scale = models.device, models.scale
    image, label_map = enlarged_scene(0, scale.large)
    few = vocabulary_of([label_map])
    many = [entry.name for entry in common_names() if entry.name not in few.names]
    long = Vocabulary((*few.labels, *map(Label, many))[: scale.labels])
    model = models.scene_model(few, getattr(torch, name))
    segmenter = Segmenter(model)
    for what, vocabulary in (
        (f"{len(few.labels)} labels", Vocabulary(few.labels)),
        (f"{len(long.labels)} labels", long),
    ):
        # Texts are embedded once in a job.
        segmenter.embed_prompts([prompt for _, prompt in vocabulary.prompts])
        segmenter.background_names(vocabulary)
        found: list[Segmentation] = []
        encoded: list[ImageFeatures] = []
        with peak_memory(device) as peak:
            encoding = seconds(lambda: encoded.append(segmenter.encode(image)), device)  # noqa: B023
            scoring = seconds(lambda: found.append(segmenter.segment(encoded[0], vocabulary)), device)  # noqa: B023
        details = {"encoding s": encoding, "scores s": scoring, **peak.details}
        if with_polygons:
            least = segmenter.speck_area(found[0].size)
            make = partial(label_map_to_regions, found[0], min_area=least, small="merge")
            details["polygons s"] = seconds(make, device)
        title = f"{name}, {scale.large[1]} x {scale.large[0]} pixels, {what}"
        yield Figure(title, encoding + scoring, "s", details=details)


def out_of_memory(models: RandomModels) -> Iterator[Figure]:
    """Commands that find no memory say so in one sentence, and what they have done stays; then all goes on."""
    device = models.device
    # So large that no gap between the tensors of the models holds one of its planes.
    image, _ = enlarged_scene(0, models.scale.large)
    segmenter = Segmenter(load_model("playground", device=str(device)))
    vocabulary = Vocabulary.from_options(["cat", "sofa"])
    expected = segmenter.segment_image(image, vocabulary).label_map
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_FILES):
            Image.fromarray(image).save(Path(folder) / f"{number}.jpg")
        words = ["segment", str(Path(folder) / "0.jpg"), "--label", "cat", "--device", str(device)]
        said = io.StringIO()
        with scarce_memory(device), redirect_stdout(io.StringIO()), redirect_stderr(said):
            code = run(words)
        text = said.getvalue()
        fine = code == 2 and _SENTENCE in text and text.count("\n") == 1 and "Traceback" not in text
        yield Figure(f"segment ends with {code} and {text.strip()!r}", code, "", "2 and one sentence", fine)

        files, out = find_images([folder]), Path(folder) / "out.json"
        with scarce_memory(device):
            summary = run_prelabel(files, segmenter, vocabulary, out, CocoExporter())
        reasons = set(summary.failed.values())
        fine = len(summary.failed) == _FILES and all("not enough memory" in reason for reason in reasons)
        yield Figure(
            f"prelabel says {' / '.join(sorted(reasons))!r}", len(summary.failed), "images", "all with our reason", fine
        )
        summary = run_prelabel(files, segmenter, vocabulary, out, CocoExporter(), resume=True)
        yield Figure("images done after memory is there again", summary.done, "", "all", summary.done == _FILES)
    again = segmenter.segment_image(image, vocabulary).label_map
    same = 100 * float((expected == again).mean())
    yield Figure("decisions equal before and after", same, "%", "100 %", same == 100)


@contextmanager
def scarce_memory(device: torch.device) -> Iterator[None]:
    """Leave no more than a few MiB of a GPU; on a CPU, where memory cannot be bounded so, the network pretends."""
    if device.type != "cuda":
        lack = torch.OutOfMemoryError("CUDA out of memory (pretended)")
        with patch("tcl_core.methods.tcl.model.TCL.encode", side_effect=lack):
            yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + (4 << 20)) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
