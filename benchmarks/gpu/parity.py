"""Whether a device says what the CPU says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.models import RandomModels, class_directions, enlarged_scene, vocabulary_of, with_rows
from benchmarks.gpu.sections import Figure
from tcl_core.evaluation.miou import MeanIoU
from tcl_core.evaluation.playground import held_out_scene
from tcl_core.methods import PromptEmbeddings
from tcl_core.models import Model, load_model
from tcl_core.playground import CLASS_NAMES
from tcl_core.segmentation.argmax import label_map_from_scores
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["SCORES_WITHIN", "Agreement", "playground_parity", "random_parity", "text_parity"]

SCORES_WITHIN = 1e-4
"""By how much float32 scores of a device may differ from the CPU's."""

_NEAR_TIE = 2 * SCORES_WITHIN
_AGREEMENT = 99.5
_MIOU_WITHIN = 0.3


@dataclass
class Agreement:
    """Two devices' answers to the same questions, image after image.

    Attributes:
        largest: largest difference of scores.
        pixels: number of pixels compared.
        equal: at how many both decide the same.
        unequal: at how many they do not, though neither is near a tie.
    """

    largest: float = 0.0
    pixels: int = 0
    equal: int = 0
    unequal: int = 0

    def add(self, expected: Tensor, found: Tensor, size: tuple[int, int], floor: float | None = None) -> None:
        """Compare the score maps of an image.

        Args:
            expected: float32 ``[K, h, w]`` of the CPU.
            found: the same of the device, where it computed them.
            size: height and width at which pixels are decided.
            floor: height of the background plane; ``None`` for none.
        """
        vocabulary = Vocabulary(tuple(Label(f"label {k}") for k in range(len(expected))), background=floor is not None)
        # Each device decides by itself; what is near a tie is then told where it is told fastest.
        maps = [label_map_from_scores(scores, vocabulary, floor, size)[0] for scores in (expected, found)]
        same_place = expected.to(found.device)
        self.largest = max(self.largest, float((same_place - found).abs().max()))
        enlarged = torch.nn.functional.interpolate(same_place[None], size=size, mode="bilinear")[0]
        if floor is not None:
            enlarged = torch.cat([enlarged.new_full((1, *size), floor), enlarged])
        ranked = enlarged.topk(min(2, len(enlarged)), dim=0).values
        clear = (ranked[0] - ranked[-1] > _NEAR_TIE).cpu().numpy() if len(ranked) > 1 else np.ones(size, bool)
        same = maps[0] == maps[1]
        self.pixels += same.size
        self.equal += int(same.sum())
        self.unequal += int((~same & clear).sum())

    @property
    def percent(self) -> float:
        """Share of pixels that are decided alike."""
        return 100 * self.equal / max(self.pixels, 1)

    def exact(self, what: str) -> Figure:
        """The bar of float32: scores within 1e-4, decisions equal but near ties."""
        return Figure(
            f"{what}: largest difference of scores",
            self.largest,
            "",
            target=f"at most {SCORES_WITHIN:g}, and equal decisions but near ties",
            met=self.largest <= SCORES_WITHIN and not self.unequal,
            details={"equal %": self.percent, "unequal away from ties": self.unequal},
        )

    def rounded(self, what: str, more: dict[str, float] | None = None, miou_change: float = 0.0) -> Figure:
        """The bar of bfloat16: 99.5 % of decisions equal, and mean IoU within 0.3 where it is known."""
        return Figure(
            f"{what}: decisions equal",
            self.percent,
            "%",
            target=f"at least {_AGREEMENT} %" + (f", mean IoU within {_MIOU_WITHIN}" if more else ""),
            met=self.percent >= _AGREEMENT and abs(miou_change) <= _MIOU_WITHIN,
            details={"largest difference": self.largest, **(more or {})},
        )


def playground_parity(method: str, device: torch.device, scenes: int, refine: bool) -> Iterator[Figure]:
    """The embedded model, or another method on its towers, on its scenes: float32 and bfloat16 against the CPU.

    Args:
        method: name of a method; ``tcl`` is the model's own.
        device: the device.
        scenes: how many.
        refine: with PAMR.
    """
    name = "playground" if method == "tcl" else f"{method}:playground"
    drawn = [held_out_scene("seen", index) for index in range(scenes)]
    images = [scene.image for scene in drawn]
    open_vocabulary = Vocabulary(tuple(Label(name) for name in CLASS_NAMES), background=False)
    few = Vocabulary.from_options(list(CLASS_NAMES[:3]))
    models = [
        load_model(name, device="cpu", precision="float32"),
        load_model(name, device=str(device), precision="float32"),
        load_model(name, device=str(device), precision="bfloat16"),
    ]
    segmenters = [Segmenter(model, refine=refine, batch_size=16) for model in models]
    agreements = {(place, key): Agreement() for place in (1, 2) for key in ("all", "few")}
    metrics = [MeanIoU(len(CLASS_NAMES)) for _ in models]
    for first in range(0, scenes, 16):
        part = slice(first, first + 16)
        encoded = [segmenter.encode_batch(images[part]) for segmenter in segmenters]
        for scene, *features in zip(drawn[part], *encoded, strict=True):
            for key, vocabulary in (("all", open_vocabulary), ("few", few)):
                scores = [s.score_maps(f, vocabulary) for s, f in zip(segmenters, features, strict=True)]
                floor = vocabulary.floor(segmenters[0].background_threshold) if key == "few" else None
                for place in (1, 2):
                    agreements[place, key].add(scores[0].cpu(), scores[place], features[0].size, floor)
                if key == "all":
                    for metric, one, features_of in zip(metrics, scores, features, strict=True):
                        label_map, _ = label_map_from_scores(one, vocabulary, None, features_of.size)
                        metric.update(scene.label_map, label_map)
    mious = [100 * metric.compute() for metric in metrics]
    yield agreements[1, "all"].exact("float32, all classes")
    yield agreements[1, "few"].exact("float32, three labels, names compete")
    details = {"mean IoU": mious[2], "of the CPU": mious[0]}
    yield agreements[2, "all"].rounded("bfloat16, all classes", details, mious[2] - mious[0])
    yield agreements[2, "few"].rounded("bfloat16, three labels, names compete")


def random_parity(models: RandomModels, method: str, refine: bool) -> Iterator[Figure]:
    """A large network with random weights, asked for directions in which its features of scenes differ.

    Args:
        models: the networks.
        method: name of a method.
        refine: with PAMR.
    """
    side = models.scale.side
    scenes = [enlarged_scene(index, (side, side)) for index in range(models.scale.images)]
    vocabulary = vocabulary_of([label_map for _, label_map in scenes], most=5)
    reference = Segmenter(models.model(method, on_device=False), refine=refine)
    expected = [reference.encode(image) for image, _ in scenes]
    rows = class_directions(
        type(expected[0].windows).join([features.windows for features in expected]),
        [label_map for _, label_map in scenes],
        vocabulary,
    )
    maps = [_score_maps(reference, features, vocabulary.names, rows) for features in expected]
    kinds = (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    model = models.model(method, on_device=True)
    for name, precision in kinds:
        segmenter = Segmenter(replace(model, precision=precision), refine=refine)
        agreement = Agreement()
        largest = 0.0
        for (image, _), features, scores in zip(scenes, expected, maps, strict=True):
            found = segmenter.encode(image)
            agreement.add(scores, _score_maps(segmenter, found, vocabulary.names, rows), (side, side))
            largest = max(largest, _difference(features.windows.tensors(), found.windows.tensors()))
        yield agreement.exact(name) if precision == torch.float32 else agreement.rounded(name)
        yield Figure(f"{name}: largest difference of features", largest, "")


def text_parity(models: RandomModels) -> Iterator[Figure]:
    """Embedded prompts of a large text tower with random weights, and of the embedded model."""
    words = ["a cat", "sofa", "traffic light", "person riding a horse", "sky", "wine glass", "zebra crossing"]
    small = [load_model("playground", device=name, precision="float32") for name in ("cpu", str(models.device))]
    large = [models.model(method, on_device=on) for method in ("tcl", "sclip") for on in (False, True)]
    pairs: Sequence[tuple[str, Model, Model, Sequence[str]]] = (
        ("playground", small[0], small[1], CLASS_NAMES),
        ("ViT-B/16, tcl", large[0], large[1], words),
        ("ViT-B/16, training-free", large[2], large[3], words),
    )
    for what, one, other, prompts in pairs:
        templates = "full" if what != "playground" else None
        expected, found = (Segmenter(model).embed_prompts(prompts, templates) for model in (one, other))
        largest = _difference(expected.tensors(), found.tensors())
        yield Figure(f"{what}: largest difference of embeddings", largest, "", "at most 1e-05", largest <= 1e-5)


def _score_maps(segmenter: Segmenter, features: ImageFeatures, names: Sequence[str], rows: Tensor) -> Tensor:
    prompts: PromptEmbeddings = with_rows(segmenter.embed_prompts(names), rows)
    merged = segmenter.similarities(features, prompts)
    return segmenter.finish(features, merged, list(range(len(names)))).cpu()


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> float:
    return max(
        float((tensor.float().cpu() - found[name].float().cpu()).abs().max()) for name, tensor in expected.items()
    )
