"""From a decoded image to a training sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from tcl_core.errors import SettingsError
from training.config import Augmentation

__all__ = ["Transform", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let all sources of randomness that augmentation draws from begin at a seed, and put them back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Transform:
    """timm's augmentation, repeatable sample by sample.

    Args:
        settings: of the recipe.

    Raises:
        SettingsError: timm does not know the policy.
    """

    def __init__(self, settings: Augmentation):
        try:
            self._transform: Callable[[Image.Image], Tensor] = create_transform(
                settings.size,
                is_training=True,
                scale=settings.scale,
                ratio=settings.ratio,
                hflip=settings.flip,
                # RandAugment changes colors itself, and without it the papers leave them alone.
                color_jitter=cast(Any, None),
                auto_augment=settings.auto_augment or None,
                interpolation="bilinear",
                mean=settings.mean,
                std=settings.std,
                re_prob=settings.erase,
                re_mode="pixel",
                re_count=1,
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise SettingsError(
                f"augmentation.auto_augment {settings.auto_augment!r} is not a policy of timm ({error}); try "
                "rand-m9-mstd0.5-inc1, or leave it empty."
            ) from error

    def __call__(self, image: NDArray[np.uint8], seed: int) -> Tensor:
        """Augment an image.

        Args:
            image: uint8 ``[H, W, 3]``.
            seed: decides all that is random.

        Returns:
            float32 ``[3, size, size]``, normalized.
        """
        with seeded(seed):
            return self._transform(Image.fromarray(image))
