"""A project's labeling configuration: which labels there are, what stands for them, and what may be drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from tcl_core.errors import SettingsError, VocabularyError
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.files import background_names_from_text

__all__ = ["BACKGROUND_NAMES", "Control", "Kind", "LabelingConfig", "check_prompt", "parse_labeling_config"]

Kind = Literal["polygon", "brush", "rectangle"]

_KIND_OF_TAG: dict[str, Kind] = {
    "polygonlabels": "polygon",
    "brushlabels": "brush",
    "rectanglelabels": "rectangle",
}
BACKGROUND_NAMES = frozenset({"background", "bg"})
"""Labels of these names (in any case) without prompts stand for what no other label wins."""

_MAX_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Control:
    """A tag that regions of one kind are drawn with.

    Attributes:
        name: the tag's name, a result's ``from_name``.
        kind: what it draws.
        labels: its labels' values.
        skipped: ``model_skip="true"``: nothing is predicted for it.
        holes_only: ``model_regions="holes"``: only regions with a hole are predicted for it.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    skipped: bool = False
    holes_only: bool = False


@dataclass(frozen=True)
class LabelingConfig:
    """What of a labeling configuration matters for predictions.

    Attributes:
        image_name: name of the ``Image`` tag, a result's ``to_name``.
        image_key: key of the image's address in a task's data.
        controls: the tags that draw on that image.
        labels: prompts (none: the value itself) and threshold of each label, by its value.
        background: whether pixels may stay without a label (``model_background`` of the outermost tag).
        background_threshold: score that a label must reach against the background; ``None`` takes the model's.
        background_names: prompts that compete and leave what they win without a label (``model_background_names`` of
            the outermost tag); ``None`` takes the method's.
        background_label: the label that stands for what no other label wins, if there is one.
        background_skipped: whether nothing is drawn for it.
        prompt_name: name of the ``TextArea`` for prompts, if there is one.
    """

    image_name: str
    image_key: str
    controls: tuple[Control, ...]
    labels: Mapping[str, tuple[tuple[str, ...], float | None]]
    background: bool = True
    background_threshold: float | None = None
    background_names: tuple[str, ...] | None = None
    background_label: str | None = None
    background_skipped: bool = False
    prompt_name: str | None = None

    @property
    def values(self) -> tuple[str, ...]:
        """Values of the labels that have prompts; value k belongs to label k of the vocabulary (from 0)."""
        return tuple(self.labels)

    @property
    def drawing(self) -> tuple[Control, ...]:
        """The tags that predictions are drawn with."""
        return tuple(control for control in self.controls if not control.skipped)

    def vocabulary(self, added: Mapping[str, Iterable[str]] | None = None) -> Vocabulary:
        """The labels as a vocabulary, with prompts that were added later.

        Args:
            added: further prompts by the label's value; those of unknown labels are ignored.

        Raises:
            VocabularyError: a label or prompt cannot be used.
        """
        labels = []
        for value, (prompts, threshold) in self.labels.items():
            more = tuple(added.get(value, ())) if added else ()
            labels.append(Label(_vocabulary_name(value), tuple(dict.fromkeys((*prompts, *more))), threshold))
        return Vocabulary(
            tuple(labels), self.background, self.background_threshold, background_names=self.background_names
        )


def parse_labeling_config(xml: str) -> LabelingConfig:
    """Read a labeling configuration.

    The labels are those of all ``PolygonLabels``, ``BrushLabels`` and ``RectangleLabels`` on the first ``Image`` that
    such a tag points to. A label's prompts are in its ``predicted_values`` (separated by commas), its threshold in its
    own ``model_score_threshold`` or that of its tag; a label of several tags unites their prompts. The outermost tag
    may say ``model_background="false"`` or give the threshold of the background, and ``model_background_names`` may
    say auto, none, or names separated by commas.

    Args:
        xml: the project's configuration.

    Raises:
        SettingsError: it is not XML, has no image or no label to predict, or a threshold is no number from 0 to 1.
        VocabularyError: a label or prompt cannot be used.
    """
    root = _parse(xml)
    images = {tag.get("name", ""): tag for tag in root.iter() if _tag(tag) == "image"}
    found = [tag for tag in root.iter() if _tag(tag) in _KIND_OF_TAG and any(name in images for name in _targets(tag))]
    if not found:
        raise SettingsError(
            "the labeling configuration has no PolygonLabels, BrushLabels or RectangleLabels for an Image; add one"
        )
    image_name = next(name for name in _targets(found[0]) if name in images)
    value = images[image_name].get("value", "")
    if not value.startswith("$") or len(value) < 2:
        raise SettingsError(
            f"the labeling configuration: <Image name={image_name!r}> has the value {value!r}; name the task's key, "
            "such as $image"
        )
    labels: dict[str, tuple[tuple[str, ...], float | None]] = {}
    controls: list[Control] = []
    background: tuple[str, float | None, bool] | None = None
    for tag in found:
        if image_name not in _targets(tag):
            continue
        values = []
        for label in _labels(tag):
            value = _value(label)
            prompts = _prompts(label)
            threshold = _threshold(label, f"<Label value={value!r}>")
            values.append(value)
            if value.casefold() in BACKGROUND_NAMES and not prompts:
                background = background or (value, threshold, _is_true(label, "model_skip"))
                continue
            if threshold is None:
                threshold = _threshold(tag, f"<{tag.tag} name={tag.get('name')!r}>")
            known = labels.get(value, ((), None))
            united = tuple(dict.fromkeys((*known[0], *prompts)))
            labels[value] = (united, known[1] if known[1] is not None else threshold)
        controls.append(
            Control(
                name=tag.get("name", ""),
                kind=_KIND_OF_TAG[_tag(tag)],
                labels=tuple(dict.fromkeys(values)),
                skipped=_is_true(tag, "model_skip"),
                holes_only=tag.get("model_regions", "all").strip().lower() == "holes",
            )
        )
    if not labels:
        raise SettingsError("the labeling configuration has no label to predict; add a <Label value=...>")
    without = root.get("model_background", "").strip().lower() == "false"
    threshold = None if without else _threshold(root, "the outermost tag", "model_background")
    config = LabelingConfig(
        image_name=image_name,
        image_key=images[image_name].get("value", "")[1:],
        controls=tuple(controls),
        labels=labels,
        background=not without,
        background_threshold=background[1] if background and background[1] is not None and not without else threshold,
        background_names=_background_names(root, without),
        background_label=background[0] if background else None,
        background_skipped=background[2] if background else False,
        prompt_name=_prompt_name(root, image_name),
    )
    config.vocabulary()
    return config


def _parse(xml: str) -> Element:
    if len(xml) > _MAX_CHARACTERS:
        raise SettingsError("the labeling configuration is longer than a million characters")
    try:
        # A document type could define entities; Label Studio's configurations have none.
        return defusedxml.ElementTree.fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise SettingsError(f"the labeling configuration is not valid XML ({error})") from error


def _tag(element: Element) -> str:
    return element.tag.lower() if isinstance(element.tag, str) else ""


def _targets(element: Element) -> list[str]:
    return [name.strip() for name in element.get("toName", "").split(",")]


def _labels(control: Element) -> Iterator[Element]:
    for element in control.iter():
        if _tag(element) == "label" and _value(element):
            yield element


def _value(label: Element) -> str:
    """What stands in a result: the alias, if there is one."""
    return (label.get("alias") or label.get("value") or "").strip()


def _prompts(label: Element) -> tuple[str, ...]:
    written = tuple(dict.fromkeys(part.strip() for part in label.get("predicted_values", "").split(",")))
    given = tuple(prompt for prompt in written if prompt)
    shown = (label.get("value") or "").strip()
    # An alias is a key for programs; the value is what people read.
    return given if given or shown == _value(label) else (shown,)


def _threshold(element: Element, where: str, attribute: str = "model_score_threshold") -> float | None:
    text = element.get(attribute)
    if text is None or not text.strip():
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise SettingsError(
            f"the labeling configuration: {where} has the {attribute} {text!r}; give a number from 0 to 1"
        )
    return number


def _is_true(element: Element, attribute: str) -> bool:
    return element.get(attribute, "").strip().lower() == "true"


def _prompt_name(root: Element, image_name: str) -> str | None:
    """The text area for prompts: the first on the image that does not describe single regions."""
    for tag in root.iter():
        if _tag(tag) == "textarea" and image_name in _targets(tag) and not _is_true(tag, "perRegion"):
            return tag.get("name")
    return None


def _background_names(root: Element, without: bool) -> tuple[str, ...] | None:
    text = root.get("model_background_names", "").strip()
    return None if without or not text else background_names_from_text(text)


def _vocabulary_name(value: str) -> str:
    """A vocabulary reserves the name "background"; a label of that name with prompts is an ordinary label here."""
    return f"{value} (label)" if value.casefold() == "background" else value


def check_prompt(text: str) -> str:
    """A typed prompt without surrounding blanks.

    Raises:
        VocabularyError: it is empty, too long or holds a control character.
    """
    if len(text) > 200:
        raise VocabularyError("the prompt is longer than 200 characters; a prompt is a few words")
    return Label(text).name
