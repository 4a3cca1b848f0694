"""The short way: images and labels in, results out.

What is heavy is imported when it is called, so that naming a function costs nothing.
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
    batch_size: int = 8,
) -> Result | list[Result]:
    """Segment an image, or several, from text.

    The loaded model stays in memory for the next call (the two used last; `tcl_core.clear_cache` lets go of them), and
    so do features of single images up to 256 MiB: other labels on the same image then cost a fraction. The results are
    those of ``tcl-annotate segment`` and ``tcl-annotate prelabel`` to the pixel. A result holds its image and its maps,
    about 11 bytes for each pixel; for a folder of images, `tcl_core.prelabel` needs constant memory.

    Args:
        image: a file, which is turned upright as its EXIF data says; an array uint8 ``[H, W, 3]`` (RGB) or an image of
            Pillow, which are taken as they are; or a list or tuple of them.
        labels: ``{"Seat": ["chair", "sofa"], "Grass": "grass"}``, a list of names, or a `tcl_core.Vocabulary`.
        model: the name of a model or the path of a model file (see `tcl_core.list_models`), or a segmenter, whose own
            settings then hold.
        min_area: pieces of fewer pixels join their surroundings; ``"auto"`` takes what follows from the model's patch,
            0 keeps all.
        refine: make the masks follow the image's edges.
        options: values of the method's options, such as ``{"kp_weight": 0.2}``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        batch_size: most images and windows that go through the network together; memory grows with it.

    Returns:
        A result; a list of results in the order of the images where a list or tuple of images was given.

    Raises:
        VocabularyError: a label holds a mistake, or the model does not know a word.
        ImageError: an image cannot be read.
        WeightsError: there is no such model, or it is not fetched.
        SettingsError: a setting is out of range, or was given beside a segmenter.

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
        batch_size=batch_size,
    )
    # Wrong words are found in a moment, images take seconds. In the order of the command that does the same.
    if several:
        segmenter.background_names(vocabulary)
    segmenter.embed_prompts([prompt for _, prompt in vocabulary.prompts], vocabulary.templates)
    segmenter.embed_prompts(segmenter.background_names(vocabulary).names, vocabulary.templates)
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
    """The segmenter that is given, or one of a model's name, which stays loaded.

    Args:
        model: see `segment`.
        vocabulary: that it will be asked for.
        keep_features: see `tcl_core.api.loaded.loaded_segmenter`.
        **settings: ``refine``, ``options``, ``device``, ``precision`` and ``batch_size``, see `segment`.

    Raises:
        WeightsError: there is no such model, or it is not fetched.
        SettingsError: a setting is out of range, or was given beside a segmenter.
    """
    from tcl_core.api.loaded import loaded_segmenter
    from tcl_core.errors import SettingsError
    from tcl_core.segmentation.segmenter import Segmenter

    if not isinstance(model, Segmenter):
        return loaded_segmenter(model, vocabulary, keep_features=keep_features, **settings)
    given = [name for name, value in settings.items() if value != _DEFAULTS[name]]
    if given:
        raise SettingsError(f"{', '.join(given)}: the segmenter that is given has its own settings; leave this out")
    return model


def as_vocabulary(labels: Labels) -> Vocabulary:
    """The vocabulary itself, or one of a dict or list (`tcl_core.Vocabulary.from_labels`).

    Raises:
        VocabularyError: the labels hold a mistake.
    """
    from tcl_core.vocabulary import Vocabulary

    return labels if isinstance(labels, Vocabulary) else Vocabulary.from_labels(labels)


def clear_cache() -> None:
    """Let go of the models and features that `segment` keeps between calls, and of their memory."""
    from tcl_core.api import loaded

    loaded.clear_cache()
