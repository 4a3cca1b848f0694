"""How small a region must be to be taken for noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tcl_core.errors import SettingsError
from tcl_core.images import working_size
from tcl_core.segmentation.model import SegmentationModel
from tcl_core.specks import absorb_small
from tcl_core.types import Segmentation

__all__ = ["MinArea", "check_min_area", "read_min_area", "speck_area", "without_specks"]

MinArea = int | Literal["auto"]
"""A number of pixels, or ``"auto"`` for `speck_area`."""

_SHARE_OF_PATCH = 0.25
_USUAL_PATCH = 16


def speck_area(model: SegmentationModel, size: tuple[int, int]) -> int:
    """Pixels of an image below which a region says nothing: those of a square half as wide as a patch of the model.

    A tower gives one embedding a patch, and score maps are interpolated between the patches' centers. What is less than
    half a patch wide comes from near-ties between labels, or from the refinement.

    Args:
        model: its towers' smallest patch counts, at the size that images are resized to; 16 for a method without
            towers.
        size: ``(height, width)`` of the image.

    Returns:
        A number of pixels from 0 up.
    """
    height, width = size
    rows, columns = working_size(height, width, model.preprocess.short_side, model.preprocess.max_long_side)
    patch = min((tower.patch_size for tower in model.method.towers.values()), default=_USUAL_PATCH)
    return round(_SHARE_OF_PATCH * patch**2 * (height * width) / (rows * columns))


def without_specks(segmentation: Segmentation, model: SegmentationModel, min_area: MinArea) -> Segmentation:
    """A prediction whose specks have joined their surroundings.

    Args:
        segmentation: of a model; people's annotations are not cleaned.
        model: that made it.
        min_area: pieces of fewer pixels are specks; ``"auto"`` takes `speck_area`, 0 keeps all.

    Returns:
        With another label map, and the same score map.
    """
    least = speck_area(model, segmentation.size) if min_area == "auto" else min_area
    return replace(segmentation, label_map=absorb_small(segmentation.label_map, least))


def check_min_area(min_area: object, what: str = "min_area") -> None:
    """Refuse what is no smallest area.

    Raises:
        SettingsError: it is neither ``"auto"`` nor a whole number from 0 up; the message begins with ``what``.
    """
    if min_area != "auto" and (not isinstance(min_area, int) or isinstance(min_area, bool) or min_area < 0):
        raise SettingsError(f"{what} is {min_area!r}; give auto, or a number of pixels, 0 or more")


def read_min_area(text: str) -> MinArea:
    """A smallest area that somebody typed.

    Raises:
        SettingsError: it is neither ``auto`` nor a whole number from 0 up.

    Example:
        >>> read_min_area(" auto "), read_min_area("20")
        ('auto', 20)
    """
    word = text.strip()
    if word == "auto":
        return "auto"
    if not (word.isascii() and word.isdigit()):
        raise SettingsError(f"min. area is {word!r}; give auto, or a number of pixels, 0 or more")
    return int(word)
