"""Images per second: the image tower against timm's, encoding, a prompt, and the whole way from file to COCO."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.gpu.models import RandomModels, enlarged_scene, vocabulary_of
from benchmarks.gpu.sections import Figure
from benchmarks.gpu.timing import interleaved, mode, peak_memory, seconds
from tcl_core.benchmarks import segment
from tcl_core.export.coco import CocoExporter, validate_coco
from tcl_core.jobs.inputs import find_images
from tcl_core.jobs.job import run_prelabel
from tcl_core.models import Model, load_model
from tcl_core.regions import label_map_to_regions
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession
from tcl_core.towers.clip_blocks import attention_block
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.vocabulary import Vocabulary

N = TypeVar("N", bound=nn.Module)

__all__ = ["compiled_tower", "encoding", "file_to_coco", "stages", "tower", "tower_in_bfloat16"]


def tower(models: RandomModels, name: str) -> Iterator[Figure]:
    """Images per second of our image tower and of timm's, eager.

    Args:
        models: our networks.
        name: a key of `benchmarks.gpu.timing.MODES`.
    """
    device, scale = models.device, models.scale
    clip = models.clip_on_device
    works: dict[str, Callable[[Tensor], object]] = {
        "ours": clip.encode_image,
        "timm": models.timm,
        "explicit": partial(_explicit_attention, clip),
    }
    for batch in scale.batches:
        images = _noise(batch, scale.side, device)
        with torch.no_grad(), mode(name, device), peak_memory(device) as peak:
            taken = interleaved({key: partial(work, images) for key, work in works.items()}, device, scale.repeats)
        by = taken["ours"] / taken.pop("explicit")
        yield _against_timm(f"{name}, batch {batch}", batch, taken, {"with explicit attention": by, **peak.details})


def compiled_tower(models: RandomModels, name: str) -> Iterator[Figure]:
    """The same through ``torch.compile``, at the largest batch; also how long that takes.

    Args:
        models: our networks.
        name: a key of `benchmarks.gpu.timing.MODES`.
    """
    device, scale = models.device, models.scale
    batch = scale.batches[-1]
    images = _noise(batch, scale.side, device)
    works: dict[str, Callable[[Tensor], Tensor]] = {"ours": models.clip_on_device.encode_image, "timm": models.timm}
    compiled = {key: torch.compile(work, dynamic=False) for key, work in works.items()}
    with torch.no_grad(), mode(name, device):
        for key, work in compiled.items():
            first = seconds(partial(work, images), device)
            yield Figure(f"{name}, compiling {key}", first, "s")
        turns = {key: partial(work, images) for key, work in compiled.items()}
        turns["eager"] = partial(works["ours"], images)
        taken = interleaved(turns, device, scale.repeats)
    eager = taken.pop("eager")
    yield _against_timm(f"{name}, compiled, batch {batch}", batch, taken, {"by eager": eager / taken["ours"]})


def tower_in_bfloat16(models: RandomModels) -> Iterator[Figure]:
    """Both towers with weights that were converted once, instead of at every call as under autocast."""
    device, scale = models.device, models.scale
    clip = models.clip_on_device
    half, timm_half = _in_bfloat16(clip), _in_bfloat16(models.timm)
    for batch in scale.batches:
        images = _noise(batch, scale.side, device)

        def under_autocast(images: Tensor = images) -> None:
            with mode("bfloat16", device):
                clip.encode_image(images)

        low = images.to(torch.bfloat16)
        with torch.no_grad():
            works: dict[str, Callable[[], object]] = {
                "ours": partial(half.encode_image, low),
                "timm": partial(timm_half, low),
                "autocast": under_autocast,
            }
            taken = interleaved(works, device, scale.repeats)
        by = taken.pop("autocast") / taken["ours"]
        yield _against_timm(f"weights in bfloat16, batch {batch}", batch, taken, {"by autocast": by})


def encoding(models: RandomModels, name: str) -> Iterator[Figure]:
    """Encoding images for TCL with PAMR, from arrays in main memory to features on the device.

    Args:
        models: our networks.
        name: ``float32`` or ``bfloat16``.
    """
    device, scale = models.device, models.scale
    precision = getattr(torch, name)
    model = models.model("tcl", on_device=True, precision=precision)
    scenes = [enlarged_scene(index, (scale.side, scale.side)) for index in range(min(8, scale.batches[-1]))]
    images = [scenes[index % len(scenes)][0].copy() for index in range(scale.batches[-1])]
    for index, image in enumerate(images):
        # Equal images are encoded once.
        image[0, 0] = (index % 256, index // 256, 0)
    for batch in scale.batches:
        windows, segmenter = _noise(batch, scale.side, device), Segmenter(model, batch_size=batch)
        with torch.no_grad(), peak_memory(device) as peak:
            taken = interleaved(
                {
                    "all": partial(segmenter.encode_batch, images[:batch]),
                    "network": partial(_encode, model, windows),
                },
                device,
                scale.repeats,
            )
        yield Figure(
            f"{name}, batch {batch}",
            batch / taken["all"],
            "img/s",
            details={"network alone": batch / taken["network"], **peak.details},
        )
    vocabulary = Vocabulary.from_options(["sofa", "lamp", "cat", "sky"])
    segmenter = Segmenter(model)
    features = segmenter.encode(images[0])
    segmenter.segment(features, vocabulary)
    taken = interleaved({"prompts": lambda: segmenter.segment(features, vocabulary)}, device, scale.repeats)
    yield Figure(f"{name}, four labels on an encoded image, common names compete", 1000 * taken["prompts"], "ms")
    number = iter(range(10_000))

    def new_word() -> None:
        session = ImageSession(segmenter, features)
        session.segment(Vocabulary.from_options([f"sofa number {next(number)}", "lamp"], background_names=()))

    taken = interleaved({"word": new_word}, device, scale.repeats)
    yield Figure(f"{name}, a new word in a session", 1000 * taken["word"], "ms")


def file_to_coco(models: RandomModels, name: str, playground: bool) -> Iterator[Figure]:
    """From image files to a COCO file with polygons, as ``tcl-annotate prelabel`` does it, with PAMR.

    Args:
        models: our networks.
        name: ``float32`` or ``bfloat16``.
        playground: the embedded model, whose masks are real, instead of a large network with random weights.
    """
    device, scale = models.device, models.scale
    precision = getattr(torch, name)
    scenes = [enlarged_scene(index, (scale.side, scale.side)) for index in range(scale.files)]
    vocabulary = Vocabulary(vocabulary_of([label_map for _, label_map in scenes]).labels)
    if playground:
        model = load_model("playground", device=str(device), precision=name)
    else:
        model = models.scene_model(vocabulary, precision)
    segmenter = Segmenter(model, batch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        for index, (image, _) in enumerate(scenes):
            Image.fromarray(image).save(Path(folder) / f"{index:04d}.jpg", quality=95)
        files, out = find_images([folder]), Path(folder) / "out.json"
        # The names of the background are embedded once in a job of any length.
        segmenter.segment_image(scenes[0][0], vocabulary)
        with peak_memory(device) as peak:
            taken = seconds(lambda: run_prelabel(files, segmenter, vocabulary, out, CocoExporter()), device)
        issues = validate_coco(out, Path(folder))
    regions = [
        len(label_map_to_regions(segmenter.segment_image(image, vocabulary), tolerance=None)) for image, _ in scenes[:4]
    ]
    yield Figure(
        f"{name}, {model.name}",
        scale.files / taken,
        "img/s",
        target="no fault in the file",
        met=not issues,
        details={"regions of an image": sum(regions) / len(regions), **peak.details},
    )


def stages(models: RandomModels, name: str) -> Iterator[Figure]:
    """Where the time of a new image goes, by ``tcl-annotate benchmark segment``'s own measurement.

    Args:
        models: our networks.
        name: ``float32`` or ``bfloat16``.
    """
    scale = models.scale
    model = models.model("tcl", on_device=True, precision=getattr(torch, name))
    rows = segment.run_stages(model, size=(scale.side, scale.side), repeats=min(3, scale.repeats))
    for row in rows:
        yield Figure(f"{name}, {row.what}", 1000 * row.seconds, "ms", details={"share": row.share})


def _explicit_attention(clip: FrozenClip, images: Tensor) -> Tensor:
    """The tower without PyTorch's ``MultiheadAttention``, as it runs where gradients are wanted."""
    tokens = clip.tokens(images, (0,))[0]
    for block in clip.visual.transformer.resblocks:
        tokens = attention_block(block, tokens)
    return clip.visual.ln_post(tokens[:, 0]) @ clip.visual.proj


def _encode(model: Model, windows: Tensor) -> None:
    with mode("float32" if model.precision == torch.float32 else "bfloat16", model.device):
        model.method.encode(windows)


def _noise(count: int, side: int, device: torch.device) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def _in_bfloat16(network: N) -> N:
    return copy.deepcopy(network).to(torch.bfloat16)


def _against_timm(what: str, batch: int, taken: dict[str, float], more: dict[str, float] | None = None) -> Figure:
    ours, other = batch / taken["ours"], batch / taken["timm"]
    return Figure(what, ours, "img/s", details={"timm": other, "by timm": ours / other, **(more or {})})
