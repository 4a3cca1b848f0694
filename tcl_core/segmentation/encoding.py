"""From images to features: resize, cut into windows, and send those through the network in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from tcl_core.backends.base import Encoder
from tcl_core.devices import to_device
from tcl_core.errors import ImageError
from tcl_core.images import ResizedImage, content_hash, working_size
from tcl_core.methods.base import Features, Method
from tcl_core.refinement.base import Guide, ScoreRefiner
from tcl_core.segmentation.features import FeatureCache, FeatureKey, ImageFeatures, PreparedImage, check_image
from tcl_core.segmentation.model import SegmentationModel
from tcl_core.segmentation.sliding_window import split_windows

__all__ = ["ImageEncoder"]


class ImageEncoder:
    """The half of a `Segmenter` that knows the image alone.

    Args:
        model: whose network encodes.
        method: the model's, with the options that apply.
        refiner: whose guides the features hold; ``None`` without refinement.
        encode_windows: the network in the model's backend, from windows float32 ``[n, 3, h, w]``, normalized, on the
            model's device.
        settings: what features depend on besides pixels and weights, as canonical JSON.
        cache: keeps features of images; ``None`` keeps none.
        batch_size: most windows that go through the network together.
    """

    def __init__(
        self,
        model: SegmentationModel,
        method: Method,
        refiner: ScoreRefiner | None,
        encode_windows: Encoder,
        settings: str,
        cache: FeatureCache | None,
        batch_size: int,
    ) -> None:
        self.model, self.method, self.refiner = model, method, refiner
        self.settings, self.cache, self.batch_size = settings, cache, batch_size
        self._encode_windows = encode_windows

    def feature_key(self, image: NDArray[np.uint8] | ResizedImage) -> FeatureKey:
        """What the features of an image depend on."""
        content = image.content if isinstance(image, ResizedImage) else content_hash(image)
        return FeatureKey(content, self.model.weights_sha256, self.settings)

    def resized(self, image: NDArray[np.uint8] | ResizedImage, content: str | None = None) -> ResizedImage:
        """An image at the working size; see `Segmenter.resized`.

        Args:
            image: uint8 ``[H, W, 3]``, RGB, or an image that was resized for a model with the same working size.
            content: the image's hash, where it is known.

        Raises:
            ImageError: the image was resized for another working size.
        """
        preprocess = self.model.preprocess
        if not isinstance(image, ResizedImage):
            return ResizedImage.of(image, preprocess.short_side, preprocess.max_long_side, content)
        size = working_size(*image.size, preprocess.short_side, preprocess.max_long_side)
        if image.pixels.shape[:2] != size:
            raise ImageError(
                f"the image was resized to {image.pixels.shape[1]} x {image.pixels.shape[0]} pixels, but the model "
                f"{self.model.name} works at {size[1]} x {size[0]}; resize it with this segmenter."
            )
        return image

    @torch.no_grad()
    def encode_batch(
        self,
        images: Sequence[NDArray[np.uint8] | ResizedImage],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[ImageFeatures]:
        """Features in the order of the images; see `Segmenter.encode_batch`.

        Raises:
            ImageError: one of the arrays is not such an image.
        """
        for image in images:
            check_image(image)
        keys = [self.feature_key(image) for image in images]
        found: dict[FeatureKey, ImageFeatures] = {}
        missing: dict[FeatureKey, NDArray[np.uint8] | ResizedImage] = {}
        for key, image in dict(zip(keys, images, strict=True)).items():
            cached = None if self.cache is None else self.cache.get(key)
            if cached is None:
                missing[key] = image
            else:
                found[key] = self._guided(cached, image)
        by_window: dict[tuple[int, ...], list[PreparedImage]] = {}
        for key, image in missing.items():
            prepared = self._prepare(image, key)
            by_window.setdefault(tuple(prepared.windows.shape[1:]), []).append(prepared)
        total = sum(len(prepared.windows) for group in by_window.values() for prepared in group)
        done = 0

        def advance(windows: int) -> None:
            nonlocal done
            done += windows
            if on_progress is not None:
                on_progress(done, total)

        if total:
            advance(0)
        while by_window:
            _, group = by_window.popitem()
            for features in self._embed(group, advance):
                found[features.key] = features
                if self.cache is not None:
                    self.cache.put(features.key, features)
        return [found[key] for key in keys]

    def _guided(self, features: ImageFeatures, image: NDArray[np.uint8] | ResizedImage) -> ImageFeatures:
        """Features on the model's device, with the guides that a cache did not keep."""
        if self.refiner is None or features.guide is not None or features.image_guide is not None:
            if next(iter(features.windows.tensors().values())).device == self.model.device:
                return features
            return replace(features, windows=features.windows.to(self.model.device))
        prepared = self._prepare(image, features.key)
        guides: list[Guide] = []
        for start in range(0, len(prepared.windows), self.batch_size):
            windows = to_device(prepared.windows[start : start + self.batch_size], self.model.device)
            guide = self.method.window_guide(self.refiner, windows)
            if guide is not None:
                guides.append(guide)
        complete = replace(
            features,
            windows=features.windows.to(self.model.device),
            guide=type(guides[0]).join(guides) if guides else None,
            image_guide=prepared.image_guide,
        )
        if self.cache is not None:
            self.cache.put(features.key, complete)
        return complete

    def _prepare(self, image: NDArray[np.uint8] | ResizedImage, key: FeatureKey) -> PreparedImage:
        preprocess = self.model.preprocess
        small = self.resized(image, key.content)
        original, size = small.size, (small.pixels.shape[0], small.pixels.shape[1])
        mean = torch.tensor(preprocess.mean).view(3, 1, 1)
        std = torch.tensor(preprocess.std).view(3, 1, 1)
        resized = torch.from_numpy(small.pixels).permute(2, 0, 1)
        pixels = resized.float().contiguous().div_(255).sub_(mean).div_(std)
        score_size = self.method.score_size(size, original)
        guide = None
        if self.refiner is not None:
            guide = self.method.image_guide(self.refiner, to_device(pixels[None], self.model.device), score_size)
        windows, origins = split_windows(pixels, preprocess.window, preprocess.stride)
        return PreparedImage(windows, guide, tuple(origins), size, score_size, original, key)

    def _embed(self, group: list[PreparedImage], advance: Callable[[int], None]) -> Iterator[ImageFeatures]:
        """Run images whose windows have one size through the network; each is given out once it is complete."""
        queue = ((image, index) for image in group for index in range(len(image.windows)))
        parts: list[Features] = []
        guides: list[Guide] = []
        while batch := list(islice(queue, self.batch_size)):
            windows = to_device(torch.stack([image.windows[index] for image, index in batch]), self.model.device)
            encoded = self._encode_windows(windows)
            guide = None if self.refiner is None else self.method.window_guide(self.refiner, windows)
            start = 0
            for stop in range(1, len(batch) + 1):
                image, index = batch[stop - 1]
                complete = index == len(image.windows) - 1
                if not complete and stop < len(batch):
                    continue
                parts.append(encoded[start:stop])
                if guide is not None:
                    guides.append(guide[start:stop])
                start = stop
                if complete:
                    yield ImageFeatures(
                        windows=type(parts[0]).join(parts),
                        guide=type(guides[0]).join(guides) if guides else None,
                        image_guide=image.image_guide,
                        origins=image.origins,
                        working_size=image.working_size,
                        score_size=image.score_size,
                        size=image.size,
                        key=image.key,
                    )
                    parts, guides = [], []
            advance(len(batch))
