"""The same model in float32 and in int8 on the same images: how far they agree, and the processor time of both."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.evaluation.confusion import Scores, confusion_matrix, scores_of
from tcl_core.preview.page import PreviewWriter
from tcl_core.regions import label_map_to_regions
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary

__all__ = ["PrecisionPair"]

_NAMES = ("float32", "int8")


class PrecisionPair:
    """Two segmenters of one model, which are counted and timed in turns.

    Args:
        plain: in float32.
        int8: in int8.
        vocabulary: the labels.

    Attributes:
        images: number of images that were compared.
    """

    def __init__(self, plain: Segmenter, int8: Segmenter, vocabulary: Vocabulary) -> None:
        self._segmenters = (plain, int8)
        self._vocabulary = vocabulary
        self._shapes: set[tuple[int, ...]] = set()
        classes = len(vocabulary.labels) + 1
        self._confusion = np.zeros((classes, classes + 1), np.int64)
        self._seconds = [0.0, 0.0]
        self.images = 0

    def compare_all(self, images: Iterable[tuple[str, NDArray[np.uint8]]], preview: Path | None = None) -> Path | None:
        """Segment images with both.

        Args:
            images: names, and uint8 ``[H, W, 3]``, RGB.
            preview: folder for a page that shows both side by side, see `tcl_core.preview.page.PreviewWriter`.

        Returns:
            The page, where one was wanted.

        Raises:
            SettingsError: the folder holds something else, or cannot be written to.
            VocabularyError: the model does not know a word.
        """
        if preview is None:
            for _, image in images:
                self.compare(image)
            return None
        shown = []
        with PreviewWriter(preview, self._vocabulary) as writer:
            for name, image in images:
                found = self.compare(image)
                same = float((found[0].label_map == found[1].label_map).mean())
                least = self._segmenters[0].speck_area(found[0].size)
                for column, segmentation in zip(_NAMES, found, strict=True):
                    regions = label_map_to_regions(segmentation, min_area=least, small="merge")
                    note = "" if segmentation is found[0] else f"agrees with {_NAMES[0]} on {same:.1%} of the pixels"
                    writer.add_image(name, image, regions, column=column, note=note)
                shown.append(name)
            labels = "; ".join(f"{label.name}: {', '.join(label.prompts)}" for label in self._vocabulary.labels)
            settings = {"model": self._segmenters[0].model.name, "labels and prompts": labels}
            return writer.finish("float32 and int8 side by side", settings, shown, _NAMES)

    def compare(self, image: NDArray[np.uint8]) -> tuple[Segmentation, Segmentation]:
        """Segment an image with both, in float32 and in int8.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.
        """
        window = self._segmenters[0].model.preprocess.window
        shape = tuple(min(side, window) for side in self._segmenters[0].resized(image).pixels.shape[:2])
        if shape not in self._shapes:
            # The first image pays for export, quantization and memory.
            for segmenter in self._segmenters:
                segmenter.encode(image)
            self._shapes.add(shape)
        found: dict[int, Segmentation] = {}
        for which in (0, 1) if self.images % 2 == 0 else (1, 0):
            segmenter = self._segmenters[which]
            # Other programs on the machine do not count.
            start = time.process_time()
            features = segmenter.encode(image)
            self._seconds[which] += time.process_time() - start
            found[which] = segmenter.segment(features, self._vocabulary)
        self._confusion += confusion_matrix(found[0].label_map, found[1].label_map, len(self._confusion))
        self.images += 1
        return found[0], found[1]

    @property
    def scores(self) -> Scores:
        """Of int8 with float32 in the place of the truth; the first class is the background."""
        return scores_of(self._confusion)

    @property
    def seconds(self) -> tuple[float, float]:
        """Processor time of float32 and of int8 for encoding all images."""
        return self._seconds[0], self._seconds[1]

    def summary(self) -> dict[str, Any]:
        """What results tell of the comparison, as plain JSON values."""
        scores = self.scores
        return {
            "agreement": round(scores.pixel_accuracy, 6),
            "mean_iou": round(scores.mean_iou, 6),
            "images": self.images,
        }
