"""How much the two-step design saves, as ratios measured in one run on this machine.

Absolute times mean little on another machine; the ratios say what encoding an image once, and images in batches,
is worth with a given model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tcl_core.errors import SettingsError
from tcl_core.regions import label_map_to_regions
from tcl_core.segmentation.features import FeatureCache, ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.templates import get_templates

if TYPE_CHECKING:
    from tcl_core.models import Model

__all__ = ["BenchmarkRow", "StageRow", "format_rows", "format_stages", "run", "run_backends", "run_stages"]

_FIELD_SCALE = 12.0
_OPEN_PROMPTS = ("sofa", "lamp", "cat", "sky", "door", "tree", "cup", "road")


@dataclass(frozen=True)
class BenchmarkRow:
    """One measurement beside the one it is compared with.

    Attributes:
        what: what was measured.
        seconds: shortest of the repetitions, for all images together.
        compared_with: what the ratio refers to; empty where the row itself is the reference.
        ratio: how many times faster than the reference; 1 for the reference.
    """

    what: str
    seconds: float
    compared_with: str = ""
    ratio: float = 1.0


@dataclass(frozen=True)
class StageRow:
    """What one part of labeling a new image takes.

    Attributes:
        what: the part.
        seconds: for one image, shortest of the repetitions.
        share: of the sum of all parts, in ``[0, 1]``.
    """

    what: str
    seconds: float
    share: float


def run(
    model: Model,
    *,
    count: int = 8,
    size: tuple[int, int] = (480, 640),
    batch_size: int = 8,
    refine: bool = True,
    repeats: int = 3,
    seed: int = 0,
) -> list[BenchmarkRow]:
    """Measure prompts on cached images, and batches.

    Args:
        model: from `tcl_core.models.load_model`.
        count: number of images, drawn from ``seed`` (their content does not matter for the time).
        size: height and width of the images.
        batch_size: windows per batch in the batched measurement.
        refine: with PAMR.
        repeats: repetitions, of which the shortest counts.
        seed: of the images.

    Returns:
        Six rows: first prompt on new images, second prompt on the same images; encoding one window at a time, encoding
        in batches; a new label in a session without and with background names, its text included.

    Raises:
        SettingsError: a number is under 1.
    """
    if min(count, *size, batch_size, repeats) < 1:
        raise SettingsError("the numbers of images, pixels, windows and repeats must be at least 1.")
    images = _draw(count, size, seed)
    first, second = _vocabularies(model)
    # Texts that an earlier benchmark has left on the disk are not new.
    model = replace(model, text_folder=None)
    # The first call of a shape pays for memory and kernel selection.
    warm = Segmenter(model, refine=refine, batch_size=batch_size)
    warm.segment_image(images[0], first)

    new: list[float] = []
    cached: list[float] = []
    for _ in range(repeats):
        segmenter = Segmenter(model, refine=refine, batch_size=batch_size, cache=FeatureCache(max_bytes=1 << 40))
        for vocabulary, times in ((first, new), (second, cached)):
            # Text embeddings are kept by the segmenter too; what is compared is the images' part.
            segmenter.embed_prompts([prompt for _, prompt in vocabulary.prompts], vocabulary.templates)
            times.append(_seconds(model.device, partial(_segment_all, segmenter, images, vocabulary)))
    alone: list[float] = []
    competing: list[float] = []
    seen = [warm.encode(image) for image in images]
    for number in range(repeats):
        for names, times in (((), alone), (None, competing)):
            segmenter = Segmenter(model, refine=refine, batch_size=batch_size)
            times.append(sum(_new_label(segmenter, image, first, second, names, number) for image in seen))
    single: list[float] = []
    batched: list[float] = []
    for _ in range(repeats):
        for windows, times in ((1, single), (batch_size, batched)):
            segmenter = Segmenter(model, refine=refine, batch_size=windows)
            times.append(_seconds(model.device, partial(segmenter.encode_batch, images)))
    return [
        BenchmarkRow("first prompt on new images", min(new)),
        BenchmarkRow("second prompt on cached images", min(cached), "first prompt", min(new) / min(cached)),
        BenchmarkRow("encode one window at a time", min(single)),
        BenchmarkRow(
            f"encode {batch_size} windows at a time", min(batched), "one at a time", min(single) / min(batched)
        ),
        BenchmarkRow("new label in a session, no background names", min(alone)),
        BenchmarkRow(
            "new label in a session, background names", min(competing), "no names", min(alone) / min(competing)
        ),
    ]


def run_backends(
    models: Sequence[Model],
    *,
    size: tuple[int, int] = (480, 640),
    batch_size: int = 8,
    repeats: int = 3,
    seed: int = 0,
) -> list[BenchmarkRow]:
    """Measure what several backends take to encode the same image, in turns.

    Args:
        models: the same model, each with another backend; the others are compared with the first.
        size: height and width of the image, which is noise.
        batch_size: windows per batch.
        repeats: repetitions, of which the shortest counts; exporting and compiling come before them.
        seed: of the image.

    Returns:
        A row for each model.

    Raises:
        SettingsError: a number is under 1.
    """
    if min(*size, batch_size, repeats) < 1:
        raise SettingsError("the numbers of pixels, windows and repeats must be at least 1.")
    image = _draw(1, size, seed)[0]
    segmenters = [Segmenter(model, refine=False, batch_size=batch_size) for model in models]
    # The first round pays for export, compilation, and memory.
    rounds = [
        [_seconds(segmenter.model.device, partial(segmenter.encode, image)) for segmenter in segmenters]
        for _ in range(repeats + 1)
    ][1:]
    best = [min(times) for times in zip(*rounds, strict=True)]
    names = [model.backend.name for model in models]
    return [BenchmarkRow(f"encode with {names[0]}", best[0])] + [
        BenchmarkRow(f"encode with {name}", seconds, names[0], best[0] / seconds)
        for name, seconds in zip(names[1:], best[1:], strict=True)
    ]


def run_stages(
    model: Model,
    *,
    size: tuple[int, int] = (480, 640),
    batch_size: int = 8,
    refine: bool = True,
    repeats: int = 3,
    seed: int = 0,
) -> list[StageRow]:
    """Measure where the time of a new image goes.

    Args:
        model: from `tcl_core.models.load_model`.
        size: height and width of the image, which is noise.
        batch_size: windows per batch.
        refine: with PAMR; without, the part is left out.
        repeats: repetitions, of which the shortest counts.
        seed: of the image, and of the label map that regions are made of (smooth fields: some hundred regions, as in a
            photograph of a street).

    Returns:
        Network, scores and arg-max, refinement, regions with polygons.

    Raises:
        SettingsError: a number is under 1.
    """
    if min(*size, batch_size, repeats) < 1:
        raise SettingsError("the numbers of pixels, windows and repeats must be at least 1.")
    other, image = _draw(2, size, seed)
    vocabulary = _vocabularies(model)[0]
    fields = [
        gaussian_filter(field, _FIELD_SCALE)
        for field in np.random.default_rng(seed).standard_normal((len(vocabulary.labels), *size))
    ]
    drawn = np.argmax(fields, axis=0).astype(np.int32) + 1
    segmentation = Segmentation(drawn, np.ones(size, dtype=np.float32), vocabulary)
    seconds: dict[str, list[float]] = {"network": [], "plain": [], "refined": [], "regions": []}
    for _ in range(repeats + 1):
        for what, with_refinement in (("plain", False), ("refined", True)):
            if with_refinement and not refine:
                continue
            segmenter = Segmenter(model, refine=with_refinement, batch_size=batch_size)
            # The texts of a job, the background's names among them, are embedded with its first image.
            segmenter.segment_image(other, vocabulary)
            if not with_refinement:
                seconds["network"].append(_seconds(model.device, partial(segmenter.encode, image)))
            seconds[what].append(_seconds(model.device, partial(segmenter.segment_image, image, vocabulary)))
        seconds["regions"].append(_seconds(model.device, partial(label_map_to_regions, segmentation)))
    # The first round pays for memory and kernel selection.
    best = {what: min(times[1:]) for what, times in seconds.items() if times}
    parts = {"network": best["network"], "scores and arg-max": max(0.0, best["plain"] - best["network"])}
    if refine:
        parts["refinement (PAMR)"] = max(0.0, best["refined"] - best["plain"])
    parts["regions and polygons"] = best["regions"]
    total = sum(parts.values())
    return [StageRow(what, value, value / total) for what, value in parts.items()]


def format_stages(rows: Sequence[StageRow]) -> str:
    """The parts as a plain table, one line each.

    >>> print(format_stages([StageRow("network", 1.5, 0.75), StageRow("regions", 0.5, 0.25)]))
    network  1.500 s  75.0 %
    regions  0.500 s  25.0 %
    """
    width = max((len(row.what) for row in rows), default=0)
    return "\n".join(f"{row.what:<{width}}  {row.seconds:.3f} s  {row.share:.1%}".replace("%", " %") for row in rows)


def format_rows(rows: Sequence[BenchmarkRow]) -> str:
    """The rows as a plain table, one line each.

    >>> print(format_rows([BenchmarkRow("first", 2.0), BenchmarkRow("second", 0.5, "first", 4.0)]))
    first   2.000 s
    second  0.500 s  4.0 times as fast as first
    """
    width = max((len(row.what) for row in rows), default=0)
    lines = []
    for row in rows:
        ratio = f"  {row.ratio:.1f} times as fast as {row.compared_with}" if row.compared_with else ""
        lines.append(f"{row.what:<{width}}  {row.seconds:.3f} s{ratio}")
    return "\n".join(lines)


def _draw(count: int, size: tuple[int, int], seed: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def _vocabularies(model: Model) -> tuple[Vocabulary, Vocabulary]:
    """Two vocabularies of four labels without a common prompt, of words that the model knows."""
    templates = get_templates(model.templates)
    unknown = model.method.unknown_words
    words = [
        word
        for word in model.method.known_words() or _OPEN_PROMPTS
        # A template can make a word of a prompt that a small model never learned ("{}s").
        if word != "background" and not any(unknown(template.replace("{}", word)) for template in templates)
    ][:8]
    half = len(words) // 2
    if half == 0:
        raise SettingsError(f"the model {model.name} knows fewer than two words; the benchmark needs two prompts.")
    return Vocabulary.from_options(words[:half]), Vocabulary.from_options(words[half : 2 * half])


def _new_label(
    segmenter: Segmenter,
    image: ImageFeatures,
    first: Vocabulary,
    second: Vocabulary,
    names: tuple[str, ...] | None,
    number: int,
) -> float:
    """Seconds of a label that is added to those of a segmented image; its text is new."""
    session = ImageSession(segmenter, image)
    session.segment(replace(first, background_names=names))
    word = second.labels[0].name
    if segmenter.method.known_words() is None:
        # A text of its own for each image, or only the first would have to read it.
        word += f" number {number} {image.key.content[:6]}"
    labels = (*first.labels, Label(word))
    return _seconds(
        segmenter.model.device, lambda: session.segment(replace(first, labels=labels, background_names=names))
    )


def _segment_all(segmenter: Segmenter, images: Sequence[NDArray[np.uint8]], vocabulary: Vocabulary) -> None:
    for image in images:
        segmenter.segment_image(image, vocabulary)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    # CUDA computes in the background until it is waited for.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
