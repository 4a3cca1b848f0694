"""`tcl_core.segment`: images and labels in, results out.

Heavy modules are imported when a function is called, so that importing the function itself is fast.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from tcl_core.api.arguments import ImageInput, Labels
    from tcl_core.api.results import Result
    from tcl_core.segmentation.segmenter import Segmenter
    from tcl_core.segmentation.specks import MinArea
    from tcl_core.vocabulary import Vocabulary

__all__ = ["as_vocabulary", "clear_cache", "segment", "segmenter_of"]

_DEFAULTS: dict[str, Any] = {
    "refine": True,
    "options": None,
    "device": "auto",
    "precision": "auto",
    "backend": "auto",
    "batch_size": 8,
}


@overload
def segment(
    image: ImageInput,
    labels: Labels,
    model: str | os.PathLike[str] | Segmenter = ...,
    *,
    min_area: MinArea = ...,
    refine: bool = ...,
    options: Mapping[str, Any] | None = ...,
    device: str = ...,
    precision: str = ...,
    backend: str = ...,
    batch_size: int = ...,
) -> Result: ...


@overload
def segment(
    image: list[Any] | tuple[ImageInput, ...],
    labels: Labels,
    model: str | os.PathLike[str] | Segmenter = ...,
    *,
    min_area: MinArea = ...,
    refine: bool = ...,
    options: Mapping[str, Any] | None = ...,
    device: str = ...,
    precision: str = ...,
    backend: str = ...,
    batch_size: int = ...,
) -> list[Result]: ...


def segment(
    image: ImageInput | list[Any] | tuple[ImageInput, ...],
    labels: Labels,
    model: str | os.PathLike[str] | Segmenter = "playground",
    *,
    min_area: MinArea = "auto",
    refine: bool = True,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    batch_size: int = 8,
) -> Result | list[Result]:
    """Segment one or more images from text.

    The two most recently used models stay loaded for the next call (`tcl_core.clear_cache` releases them), and so do
    the features of images that were segmented one at a time, up to 256 MiB: segmenting such an image with other labels
    takes a fraction of the time. Masks are identical to those of ``tcl-annotate segment`` and ``prelabel``. A result
    holds its image and its maps, about 11 bytes per pixel. For a folder of images, use `tcl_core.prelabel`, which needs
    constant memory.

    Args:
        image: the path of an image file, which is rotated according to its EXIF orientation; an array uint8
            ``[H, W, 3]`` (RGB) or a Pillow image, which are not rotated; or a list or tuple of these.
        labels: ``{"Seat": ["chair", "sofa"], "Grass": "grass"}``, a list of names, or a `tcl_core.Vocabulary`.
        model: name of a model or path of a model file (see `tcl_core.list_models`), or a segmenter, whose own settings
            then apply.
        min_area: regions with fewer pixels are merged into their surroundings; ``"auto"`` derives the area from the
            model's patch size, and 0 keeps every region.
        refine: fit the masks to the edges in the image (PAMR).
        options: options of the method, such as ``{"kp_weight": 0.2}``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"int8"``, which takes a measurement on
            your images (``tcl-annotate models quantize``).
        backend: what runs the network: ``"auto"``, ``"torch"``, ``"compile"`` or ``"openvino"``.
        batch_size: maximum number of images and windows per forward pass; memory grows with it.

    Returns:
        A result, or, for a list or tuple of images, a list of results in the same order.

    Raises:
        VocabularyError: a label is invalid, or the model does not know a word.
        ImageError: an image cannot be read.
        WeightsError: there is no such model, or it has not been fetched.
        SettingsError: a setting is out of range, or is passed together with a segmenter.

    Example::

        result = tcl_core.segment("room.jpg", {"Seat": ["chair", "sofa"], "Grass": "grass"})
        result.label_map, result.regions()
        result.save_coco("room.json")
    """
    from tcl_core.api.inputs import file_names, groups_of, read_image
    from tcl_core.api.results import Result
    from tcl_core.segmentation.specks import check_min_area

    vocabulary = as_vocabulary(labels)
    check_min_area(min_area)
    several = isinstance(image, (list, tuple))
    segmenter = segmenter_of(
        model,
        vocabulary,
        keep_features=not several,
        refine=refine,
        options=options,
        device=device,
        precision=precision,
        backend=backend,
        batch_size=batch_size,
    )
    # Unknown words are found in a moment, whereas images take seconds.
    segmenter.embed_vocabulary(vocabulary)
    images: Sequence[ImageInput] = image if isinstance(image, (list, tuple)) else [image]
    names = iter(file_names(images))
    results: list[Result] = []
    for group in groups_of(map(read_image, images), segmenter.batch_size):
        for pixels, features in zip(group, segmenter.encode_batch(group), strict=True):
            found = segmenter.segment(features, vocabulary)
            least = segmenter.speck_area(found.size) if min_area == "auto" else min_area
            results.append(Result(pixels, found, least, next(names), segmenter.settings()))
    return results if several else results[0]


def segmenter_of(
    model: str | os.PathLike[str] | Segmenter, vocabulary: Vocabulary, *, keep_features: bool, **settings: Any
) -> Segmenter:
    """The segmenter itself, or one for the name of a model, which stays loaded.

    Args:
        model: see `segment`.
        vocabulary: the vocabulary that the segmenter will be used with.
        keep_features: see `tcl_core.api.loaded.loaded_segmenter`.
        **settings: ``refine``, ``options``, ``device``, ``precision``, ``backend`` and ``batch_size``; see `segment`.

    Raises:
        WeightsError: there is no such model, or it has not been fetched.
        SettingsError: a setting is out of range, or is passed together with a segmenter.
    """
    from tcl_core.api.loaded import loaded_segmenter
    from tcl_core.errors import SettingsError
    from tcl_core.segmentation.segmenter import Segmenter

    if not isinstance(model, Segmenter):
        return loaded_segmenter(model, vocabulary, keep_features=keep_features, **settings)
    given = [name for name, value in settings.items() if value != _DEFAULTS[name]]
    if given:
        raise SettingsError(f"{', '.join(given)}: the segmenter that you passed has its own settings; remove this")
    return model


def as_vocabulary(labels: Labels) -> Vocabulary:
    """The vocabulary itself, or one made from a dict or list (`tcl_core.Vocabulary.from_labels`).

    Raises:
        VocabularyError: a label is invalid.
    """
    from tcl_core.vocabulary import Vocabulary

    return labels if isinstance(labels, Vocabulary) else Vocabulary.from_labels(labels)


def clear_cache() -> None:
    """Release the models and features that `segment` keeps between calls, and their memory."""
    from tcl_core.api import loaded

    loaded.clear_cache()
