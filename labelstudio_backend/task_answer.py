"""A task's images, its prompt field and its answer: what the server, the batch command and the adapter share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from labelstudio_backend.image_source import ImageSource
from labelstudio_backend.labeling_config import LabelingConfig, ProjectConfig, find_prompt_field
from labelstudio_backend.reports import TaskOutcome
from labelstudio_backend.requests import Asked
from tcl_core.errors import ImageError

__all__ = ["TaskAnswer", "asked_images", "field_of_unusable", "prompt_field", "put_together"]


class _Found(Protocol):
    """What was found in one image, in whatever form its results are."""

    @property
    def regions(self) -> int: ...

    @property
    def score(self) -> float: ...

    @property
    def reason(self) -> str: ...


FoundT = TypeVar("FoundT", bound=_Found)


@dataclass(frozen=True)
class TaskAnswer(Generic[FoundT]):
    """The answers for a task's images, put together.

    Attributes:
        drawn: those with regions, in the order of the images.
        score: their mean; 0 without any.
        failed: whether one of the images could not be predicted.
        reasons: why images could not be predicted, or have no regions.
    """

    drawn: tuple[FoundT, ...]
    score: float
    failed: bool
    reasons: tuple[str, ...]

    @property
    def outcome(self) -> TaskOutcome:
        """What became of the task; ``"empty"`` is a prediction without regions that says why."""
        if self.failed:
            return "failed"
        return "done" if self.drawn or not self.reasons else "empty"

    @property
    def notable(self) -> tuple[str, ...]:
        """The reasons that somebody has to be told: an image without regions beside others with some needs none."""
        return self.reasons if self.failed or not self.drawn else ()

    @property
    def reason(self) -> str:
        """The notable reasons as one text."""
        return "; ".join(self.notable)

    def lines(self, asked: Asked | None) -> list[str]:
        """What the prompt field of the task says.

        Args:
            asked: what an annotator did.
        """
        if asked is None:
            return ["Not predicted:", *self.notable] if self.failed else list(self.notable)
        if not self.notable and asked.crowded and asked.context.text is not None:
            # What was said about earlier prompts would stay there, as if it were about this one.
            return [asked.context.text]
        return list(self.notable)


def put_together(images: Sequence[tuple[LabelingConfig, object]], found: Sequence[FoundT | str]) -> TaskAnswer[FoundT]:
    """Put the answers for a task's images together.

    Args:
        images: see :func:`asked_images`.
        found: what was found in each of them, or why it could not be predicted; one reason alone, without images,
            says why there are none.
    """
    predicted = [each for each in found if not isinstance(each, str)]
    drawn = tuple(each for each in predicted if each.regions)
    return TaskAnswer(
        drawn,
        sum(each.score for each in drawn) / len(drawn) if drawn else 0.0,
        len(predicted) < len(found),
        tuple(_reasons_of(images, [each if isinstance(each, str) else each.reason for each in found])),
    )


def asked_images(
    config: ProjectConfig, data: Mapping[str, object], asked: Asked | None
) -> list[tuple[LabelingConfig, object]]:
    """The images of a task that an answer is about.

    Args:
        config: the project's labeling configuration.
        data: the task's data.
        asked: what an annotator did; ``None`` wants all images.

    Returns:
        Each image's configuration, and its address or an `ImageError` that says why there is none.

    Raises:
        ImageError: the image that was worked on is not in the task.
    """
    images = config.images_of(data)
    if asked is None:
        return images
    chosen = [
        (image, url)
        for image, url in images
        if image.image_name == asked.config.image_name and image.item_index in (None, asked.item_index or 0)
    ]
    if not chosen:
        raise ImageError(f"the task has no such image of {asked.config.image_name!r}")
    return chosen


def prompt_field(config: ProjectConfig, context: Mapping[str, Any] | None) -> LabelingConfig | None:
    """The image whose prompt field an answer can be written into; ``None`` where the project has none.

    Args:
        config: the project's labeling configuration.
        context: of the request; the image that was worked on comes first.
    """
    last = _last_result(context)
    images = list(config.images)
    if last is not None:
        images.insert(0, config.image_of(last.get("to_name"), last.get("from_name")))
    return next((image for image in images if image.prompt_name is not None), None)


def field_of_unusable(xml: str, context: Mapping[str, Any] | None) -> LabelingConfig | None:
    """The prompt field of a configuration that cannot be used: the one that was typed into, or else the first.

    Args:
        xml: the project's labeling configuration.
        context: of the request.

    Returns:
        A configuration for the text alone; ``None`` where there is no such field.
    """
    last = _last_result(context) or {}
    names = (last.get("from_name"), last.get("to_name")) if last.get("type") == "textarea" else (None, None)
    if not all(isinstance(name, str) and name for name in names):
        found = find_prompt_field(xml)
        if found is None:
            return None
        names = found
    return LabelingConfig(str(names[1]), ImageSource("$image"), (), {}, prompt_name=str(names[0]))


def _reasons_of(images: Sequence[tuple[LabelingConfig, object]], reasons: Sequence[str]) -> list[str]:
    """Sentences about a task's images, which say which image they are about where there are several."""
    if len(images) < 2:
        return [reason for reason in reasons if reason]
    said = []
    for (image, _), reason in zip(images, reasons, strict=True):
        if reason:
            page = "" if image.item_index is None else f", page {image.item_index + 1}"
            said.append(f"image {image.image_name!r}{page}: {reason}")
    return said


def _last_result(context: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    results = (context or {}).get("result")
    known = [each for each in results if isinstance(each, Mapping)] if isinstance(results, list) else []
    return known[-1] if known else None
