"""A project's labeling configuration: which labels there are, what stands for them, and what may be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import Element

from labelstudio_backend.config_tags import (
    DRAWING_TAGS,
    KIND_OF_SHAPE,
    KIND_OF_TAG,
    POINTING_TAGS,
    Kind,
    fill_dynamic_labels,
    has_dynamic_labels,
    is_false,
    is_true,
    labels_of,
    parse_xml,
    prompts_of,
    tag_of,
    targets_of,
    threshold_of,
    value_of_label,
)
from labelstudio_backend.image_source import ImageSource
from tcl_core.errors import ImageError, SettingsError, TclError, VocabularyError
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.files import background_names_from_text

__all__ = [
    "BACKGROUND_NAMES",
    "Control",
    "Kind",
    "LabelingConfig",
    "ProjectConfig",
    "check_prompt",
    "find_prompt_field",
    "parse_labeling_config",
    "parse_project_config",
]

BACKGROUND_NAMES = frozenset({"background", "bg"})
"""Labels of these names (in any case) without prompts stand for what no other label wins."""

_INDEX_FLAG = "{{idx}}"
_MOST_PAIRS = 300_000
"""Images times tags: each image is read by a look at every tag."""


@dataclass(frozen=True)
class Control:
    """A tag that regions of one kind are drawn with.

    Attributes:
        name: the tag's name, a result's ``from_name``.
        kind: what it draws.
        labels: its labels' values, without blanks at their ends.
        skipped: ``model_skip="true"``: nothing is predicted for it.
        holes_only: ``model_regions="holes"``: only regions with a hole are predicted for it.
        written: what stands in a result for each label: the alias or the value, exactly as in the configuration; by
            default the values.
        labels_name: the ``Labels`` tag that holds the labels of a ``Polygon``, ``Brush`` or ``Rectangle``; ``None``
            for a tag with labels of its own.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    skipped: bool = False
    holes_only: bool = False
    written: tuple[str, ...] = ()
    labels_name: str | None = None

    def written_as(self, label: str) -> str:
        """What stands in this tag's results for one of its labels."""
        return self.written[self.labels.index(label)] if self.written else label


@dataclass(frozen=True)
class LabelingConfig:
    """What of a labeling configuration matters for predictions on one of its images.

    Attributes:
        image_name: name of the ``Image`` tag, a result's ``to_name``.
        source: where a task's data says the image is.
        controls: the tags that draw on that image.
        labels: prompts (none: the value itself) and threshold of each label, by its value; a value that stands in
            several tags is one label, whatever its aliases are.
        background: whether pixels may stay without a label (``model_background`` of the outermost tag).
        background_threshold: score that a label must reach against the background; ``None`` takes the model's.
        background_names: prompts that compete and leave what they win without a label (``model_background_names`` of
            the outermost tag); ``None`` takes the method's.
        background_label: the label that stands for what no other label wins, if there is one.
        background_skipped: whether nothing is drawn for it, which is the default.
        prompt_name: name of the ``TextArea`` for prompts, if there is one.
        spellings: label by what stands for it in results, by the tag's name.
        item_index: number of the page, where the image is one of several in one tag.
    """

    image_name: str
    source: ImageSource
    controls: tuple[Control, ...]
    labels: Mapping[str, tuple[tuple[str, ...], float | None]]
    background: bool = True
    background_threshold: float | None = None
    background_names: tuple[str, ...] | None = None
    background_label: str | None = None
    background_skipped: bool = False
    prompt_name: str | None = None
    spellings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    item_index: int | None = None

    @property
    def image_key(self) -> str:
        """The task's key that holds the image, or whatever else the tag says instead."""
        return self.source.value.removeprefix("$")

    @property
    def values(self) -> tuple[str, ...]:
        """Values of the labels that have prompts; value k belongs to label k of the vocabulary (from 0)."""
        return tuple(self.labels)

    @property
    def drawing(self) -> tuple[Control, ...]:
        """The tags that predictions are drawn with."""
        return tuple(control for control in self.controls if not control.skipped)

    def label_of(self, from_name: object, written: str) -> str | None:
        """The value of the label that an annotator drew with; ``None`` where there is no such label.

        Args:
            from_name: the tag's name as a result says it; what is no known name looks in all.
            written: what stands in the result: a value or an alias.
        """
        own = self.spellings.get(from_name) if isinstance(from_name, str) else None
        tags = list(self.spellings.values()) if own is None else [own]
        for spelling in (written, written.strip()):
            for names in tags:
                if spelling in names:
                    return names[spelling]
        return None

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


@dataclass(frozen=True)
class ProjectConfig:
    """A labeling configuration, image by image.

    Attributes:
        images: every ``Image`` tag that something is drawn on, in the order of the configuration.
        dynamic: the configuration itself, where labels come from each task's data (``<Labels value="$labels">``).
        max_names: most labels and prompts together; ``None`` takes any number.
    """

    images: tuple[LabelingConfig, ...]
    dynamic: str = ""
    max_names: int | None = None

    def for_task(self, data: Mapping[str, object]) -> ProjectConfig:
        """The configuration with the labels of a task; itself, where all tasks have the same.

        Raises:
            SettingsError: the task's data has no such labels.
            VocabularyError: a label or prompt cannot be used.
        """
        if not self.dynamic:
            return self
        root = parse_xml(self.dynamic)
        fill_dynamic_labels(root, data)
        return _read_project(root, self.max_names)

    @property
    def values(self) -> tuple[str, ...]:
        """The labels of all images, each once."""
        return tuple(dict.fromkeys(value for image in self.images for value in image.values))

    def image_of(self, to_name: object, from_name: object) -> LabelingConfig:
        """The image that an annotator worked on.

        Args:
            to_name: name of the image's tag, as a request says it.
            from_name: name of the tag that was used; it decides where the image's name is missing.

        Returns:
            The image's configuration with its real names, if it is one of a ``Repeater``; the first image where no
            name says which.
        """
        for image in self.images:
            if (found := image.source.index_in(image.image_name, to_name)) is not None:
                return _renamed(image, found)
        for image in self.images:
            names = (image.prompt_name, *image.spellings)
            for name in names:
                if name is not None and (found := image.source.index_in(name, from_name)) is not None:
                    return _renamed(image, found)
        return self.images[0]

    def images_of(self, data: Mapping[str, object]) -> list[tuple[LabelingConfig, object]]:
        """The images of a task, each with its configuration and with what the task says about where it is.

        Pages of one tag, and the images of a ``Repeater``, come one by one. Where the task does not say where the image
        of a tag is, an `ImageError` stands in its place, and a `SettingsError` where it does not say its labels.
        """
        found: list[tuple[LabelingConfig, object]] = []
        try:
            images = self.for_task(data).images
        except TclError as error:
            return [(self.images[0], error)]
        for image in images:
            try:
                for index, page, url in image.source.places(data, image.image_name):
                    found.append((replace(_renamed(image, index), item_index=page), url))
            except ImageError as error:
                found.append((_renamed(image, 0), error))
        return found


def _renamed(image: LabelingConfig, index: int) -> LabelingConfig:
    """A configuration in a ``Repeater``, with the names of one of its images."""
    name = image.source.name_at
    if image.source.repeated is None:
        return image
    return replace(
        image,
        image_name=name(image.image_name, index),
        controls=tuple(replace(control, name=name(control.name, index)) for control in image.controls),
        spellings={name(tag, index): names for tag, names in image.spellings.items()},
        prompt_name=None if image.prompt_name is None else name(image.prompt_name, index),
    )


def parse_labeling_config(xml: str) -> LabelingConfig:
    """Read the first image of a labeling configuration; see :func:`parse_project_config`."""
    return parse_project_config(xml).images[0]


def parse_project_config(xml: str, max_names: int | None = None) -> ProjectConfig:
    """Read a labeling configuration.

    The labels of an ``Image`` are those of all ``PolygonLabels``, ``BrushLabels`` and ``RectangleLabels`` that point to
    it. Where there are none, they are those of its ``Labels``, which its ``Polygon``, ``Brush`` or ``Rectangle`` draws:
    the first of them that is not ``smartOnly``, unless ``model_skip`` says otherwise. A label's
    prompts are in its ``predicted_values`` (separated by commas), its threshold in its own
    ``model_score_threshold`` or that of its tag; a label of several tags unites their prompts. The outermost tag may
    say ``model_background="false"`` or give the threshold of the background, and ``model_background_names`` may say
    auto, none, or names separated by commas.

    Args:
        xml: the project's configuration.
        max_names: most labels and prompts together; ``None`` takes any number.

    Raises:
        SettingsError: it is not XML, has no image or no label to predict, more names than that, or a threshold is no
            number from 0 to 1.
        VocabularyError: a label or prompt cannot be used.
    """
    root = parse_xml(xml)
    project = _read_project(root, max_names)
    return replace(project, dynamic=xml, max_names=max_names) if has_dynamic_labels(root) else project


def _read_project(root: Element, max_names: int | None) -> ProjectConfig:
    if max_names is not None:
        _check_names(root, max_names)
    repeaters = _repeaters(root)
    tags = [tag for tag in root.iter() if tag_of(tag) in (*KIND_OF_TAG, *KIND_OF_SHAPE, "labels")]
    images = []
    for image in root.iter():
        name = image.get("name", "")
        if tag_of(image) == "image" and (found := _drawing([tag for tag in tags if name in targets_of(tag)])):
            images.append(_read_image(root, image, found, repeaters.get(image)))
    if not images:
        raise SettingsError(
            "the labeling configuration has no PolygonLabels, BrushLabels or RectangleLabels for an Image, and no "
            "Labels with a Polygon, Brush or Rectangle; add one"
        )
    return ProjectConfig(tuple(images))


def _drawing(tags: list[Element]) -> list[tuple[Element, Element]]:
    """The tags that draw on an image, each with the tag that holds its labels."""
    own = [(tag, tag) for tag in tags if tag_of(tag) in KIND_OF_TAG]
    held = [tag for tag in tags if tag_of(tag) == "labels"]
    return own or [(tag, labels) for tag in tags if tag_of(tag) in KIND_OF_SHAPE for labels in held]


def find_prompt_field(xml: str) -> tuple[str, str] | None:
    """Names of the first text area for prompts and of its image, in a configuration that cannot be used otherwise.

    Args:
        xml: the project's configuration.

    Returns:
        The names that they have in the first image of a ``Repeater``; ``None`` where there is no such text area.
    """
    try:
        root = parse_xml(xml)
        repeaters = _repeaters(root)
    except SettingsError:
        return None
    images = {tag.get("name", ""): tag for tag in root.iter() if tag_of(tag) == "image"}
    for tag in root.iter():
        if tag_of(tag) != "textarea" or is_true(tag, "perRegion") or not tag.get("name"):
            continue
        for target in targets_of(tag):
            if target in images:
                repeater = repeaters.get(images[target])
                flag = None if repeater is None else repeater.get("indexFlag") or _INDEX_FLAG
                names = tag.get("name", ""), target
                return names if flag is None else (names[0].replace(flag, "0"), names[1].replace(flag, "0"))
    return None


def _check_names(root: Element, max_names: int) -> None:
    """Refuse what would take minutes, before anything is made of it."""
    names = sum(1 + label.get("predicted_values", "").count(",") for label in root.iter() if tag_of(label) == "label")
    if names > max_names:
        raise SettingsError(
            f"the labeling configuration has {names} labels and prompts, more than {max_names}; remove some, or raise "
            "max_names in the server's settings"
        )
    tags = sum(1 for _ in root.iter())
    images = sum(tag_of(tag) == "image" for tag in root.iter())
    if images * tags > _MOST_PAIRS:
        raise SettingsError(
            f"the labeling configuration has {images} images among {tags} tags, which takes too long to read; use a "
            "<Repeater> for many images"
        )


def _repeaters(root: Element) -> dict[Element, Element]:
    """The repeater around each tag that has one.

    Raises:
        SettingsError: a repeater stands in another.
    """
    inside: dict[Element, Element] = {}
    for repeater in root.iter():
        if tag_of(repeater) != "repeater":
            continue
        for tag in repeater.iter():
            if tag is repeater:
                continue
            if tag_of(tag) == "repeater":
                raise SettingsError("the labeling configuration: a <Repeater> in another one is not supported")
            inside[tag] = repeater
    return inside


def _read_image(
    root: Element, image: Element, tags: list[tuple[Element, Element]], repeater: Element | None
) -> LabelingConfig:
    image_name = image.get("name", "")
    source = ImageSource.read(
        image_name,
        image.get("value", ""),
        image.get("valueList", ""),
        None if repeater is None else (repeater.get("on", ""), repeater.get("indexFlag", "") or _INDEX_FLAG),
    )
    labels: dict[str, tuple[tuple[str, ...], float | None]] = {}
    controls: list[Control] = []
    background: tuple[str, float | None, bool] | None = None
    skipped = _skipped(tags)
    for tag, holder in tags:
        written: dict[str, str] = {}
        for label in labels_of(holder):
            value = value_of_label(label)
            if source.repeated is not None and source.repeated[1] in value:
                raise SettingsError(
                    f"the labeling configuration: <Label value={value!r}> changes with the {source.repeated[1]} of its "
                    "<Repeater>, which is not supported; give all pages the same labels"
                )
            prompts = prompts_of(label)
            threshold = threshold_of(label, f"<Label value={value!r}>")
            written.setdefault(value, label.get("alias") or label.get("value") or "")
            if value.casefold() in BACKGROUND_NAMES and not prompts:
                background = background or (value, threshold, not is_false(label, "model_skip"))
                continue
            if threshold is None:
                threshold = threshold_of(holder, f"<{holder.tag} name={holder.get('name')!r}>")
            known = labels.get(value, ((), None))
            united = tuple(dict.fromkeys((*known[0], *prompts)))
            labels[value] = (united, known[1] if known[1] is not None else threshold)
        controls.append(
            Control(
                name=tag.get("name", ""),
                kind={**KIND_OF_TAG, **KIND_OF_SHAPE}[tag_of(tag)],
                labels=tuple(written),
                skipped=tag in skipped,
                holes_only=tag.get("model_regions", "all").strip().lower() == "holes",
                written=tuple(written.values()),
                labels_name=None if holder is tag else holder.get("name", ""),
            )
        )
    if not labels and not has_dynamic_labels(root):
        raise SettingsError("the labeling configuration has no label to predict; add a <Label value=...>")
    spoken = root.get("model_background", "").strip().lower()
    without = spoken == "false"
    threshold = None if spoken in ("true", "false") else threshold_of(root, "the outermost tag", "model_background")
    config = LabelingConfig(
        image_name=image_name,
        source=source,
        controls=tuple(controls),
        labels=labels,
        background=not without,
        background_threshold=background[1] if background and background[1] is not None and not without else threshold,
        background_names=_background_names(root, without),
        background_label=background[0] if background else None,
        background_skipped=background[2] if background else False,
        prompt_name=_prompt_name(root, image_name),
        spellings=_spellings(root, image_name),
    )
    if labels:
        config.vocabulary()
    return config


def _skipped(tags: list[tuple[Element, Element]]) -> list[Element]:
    """Tags that nothing is predicted for: of several shapes for the same labels, all but the first."""
    skipped: list[Element] = []
    drawn: Element | None = None
    for tag, holder in tags:
        if is_true(tag, "model_skip"):
            skipped.append(tag)
        elif holder is not tag and not is_false(tag, "model_skip"):
            if is_true(tag, "smartOnly") or drawn not in (None, tag):
                skipped.append(tag)
            else:
                drawn = tag
    return skipped


def _spellings(root: Element, image_name: str) -> dict[str, dict[str, str]]:
    """What stands for each label in the results of each tag on an image, also of tags that nothing is drawn with."""
    found: dict[str, dict[str, str]] = {}
    pointing = [tag for tag in root.iter() if image_name in targets_of(tag)]
    shared: dict[str, str] = {}
    for tag in pointing:
        if tag_of(tag) in POINTING_TAGS:
            names = found.setdefault(tag.get("name", ""), {})
            for label in labels_of(tag):
                for spelling in (label.get("alias"), label.get("value"), value_of_label(label)):
                    if spelling:
                        names.setdefault(spelling, value_of_label(label))
                        names.setdefault(spelling.strip(), value_of_label(label))
            if tag_of(tag) == "labels":
                shared |= {spelling: name for spelling, name in names.items() if spelling not in shared}
    if shared:
        # What is drawn with these has the label that is chosen in a Labels.
        found |= {tag.get("name", ""): shared for tag in pointing if tag_of(tag) in DRAWING_TAGS}
    return found


def _prompt_name(root: Element, image_name: str) -> str | None:
    """The text area for prompts: the first on the image that does not describe single regions."""
    for tag in root.iter():
        if tag_of(tag) == "textarea" and image_name in targets_of(tag) and not is_true(tag, "perRegion"):
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
