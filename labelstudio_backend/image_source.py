"""Where a task's data says its images are: what the attributes of an ``Image`` tag mean, as Label Studio reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tcl_core.errors import ImageError, SettingsError

__all__ = ["ImageSource", "value_of"]

_VARIABLE = re.compile(r"\$[A-Za-z0-9_\[\].{}]+")
_STEP = re.compile(r"[^.\[\]]+")
_MAX_IMAGES = 1000
_MOST_DIGITS = 9


def value_of(expression: str, data: Mapping[str, object]) -> object:
    """What an attribute stands for in a task; ``None`` where the task has no such thing.

    Args:
        expression: such as ``$image``, ``$meta.image``, ``$images[0]`` or ``/data/local-files/?d=$file``.
        data: the task's data.

    >>> value_of("$images[1].url", {"images": ["a", {"url": "b"}]}), value_of("/d/$f.png", {"f.png": "1"})
    ('b', '/d/1')
    """
    whole = expression.removeprefix("$")
    if whole != expression and (whole in data or _VARIABLE.fullmatch(expression)):
        return _get(data, whole)
    missing = [name for name in _VARIABLE.findall(expression) if _get(data, name[1:]) is None]
    return None if missing else _VARIABLE.sub(lambda found: str(_get(data, found.group()[1:])), expression)


def _get(data: Mapping[str, object], path: str) -> object:
    """Follow a path of keys and numbers; a key that is spelled like a path comes first."""
    if path in data:
        return data[path]
    place: object = data
    for step in _STEP.findall(path):
        if isinstance(place, Mapping):
            place = place.get(step)
        elif isinstance(place, Sequence) and not isinstance(place, str) and step.isdecimal():
            # Python refuses to read numbers of thousands of digits.
            number = int(step[:_MOST_DIGITS])
            place = place[number] if len(step) <= _MOST_DIGITS and number < len(place) else None
        else:
            return None
    return place


@dataclass(frozen=True)
class ImageSource:
    """Where a task's data says the images of one ``Image`` tag are.

    Attributes:
        value: the tag's ``value`` or ``valueList``.
        pages: whether that is a list, each of whose images is a page (``valueList``).
        repeated: the list and the index flag of the ``Repeater`` around the tag, such as ``("$pages", "{{idx}}")``.
    """

    value: str
    pages: bool = False
    repeated: tuple[str, str] | None = None

    @classmethod
    def read(cls, name: str, value: str, value_list: str, repeated: tuple[str, str] | None) -> ImageSource:
        """From the attributes of a tag.

        Args:
            name: of the tag.
            value: its ``value``.
            value_list: its ``valueList``, which comes before ``value``.
            repeated: ``on`` and ``indexFlag`` of the repeater around it.

        Raises:
            SettingsError: they name no key of a task.
        """
        found = cls(value_list or value, bool(value_list), repeated)
        for attribute, written in (
            ("valueList" if value_list else "value", found.value),
            *([("on", repeated[0])] if repeated else []),
        ):
            if not _VARIABLE.search(written) and not (written.startswith("$") and len(written) > 1):
                where = "<Repeater>" if attribute == "on" else f"<Image name={name!r}>"
                raise SettingsError(
                    f"the labeling configuration: {where} has the {attribute} {written!r}; name the task's key, such "
                    "as $image"
                )
        return found

    def name_at(self, name: str, index: int) -> str:
        """The name that a tag has in one of the repetitions."""
        return name if self.repeated is None else name.replace(self.repeated[1], str(index))

    def index_in(self, name: str, found: object) -> int | None:
        """Which repetition a real name belongs to (0 without a repeater); ``None`` where it is another tag's."""
        if not isinstance(found, str):
            return None
        if self.repeated is None or self.repeated[1] not in name:
            return 0 if found == name else None
        pattern = "([0-9]{1,6})".join(map(re.escape, name.split(self.repeated[1])))
        match = re.fullmatch(pattern, found)
        return int(match.group(1)) if match else None

    def places(self, data: Mapping[str, object], name: str) -> Iterator[tuple[int, int | None, object]]:
        """The images of a task.

        Args:
            data: the task's data.
            name: of the tag, for the message.

        Yields:
            Number of the repetition, number of the page (``None`` where the tag has only one), and the address.

        Raises:
            ImageError: the task names none, or more than a thousand.
        """
        count = 1
        if self.repeated is not None:
            listed = value_of(self.repeated[0], data)
            if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
                raise ImageError(f"the task has no list {self.repeated[0][1:]!r} in its data")
            count = len(listed)
        found: list[tuple[int, int | None, object]] = []
        for index in range(min(count, _MAX_IMAGES + 1)):
            value = value_of(self.name_at(self.value, index), data)
            if value is None:
                raise ImageError(f"the task has no {self.name_at(self.value, index).removeprefix('$')!r} in its data")
            if self.pages:
                urls = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
                found += [(index, page, url) for page, url in enumerate(urls[: _MAX_IMAGES + 1])]
            else:
                # Without pages, the editor shows the first image of a list.
                first = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
                found.append((index, None, first))
            # A long list that every repetition names would grow a thousandfold.
            if len(found) > _MAX_IMAGES:
                break
        if not found or len(found) > _MAX_IMAGES:
            count_said = f"more than {_MAX_IMAGES}" if found else "no"
            raise ImageError(f"the task has {count_said} images for {name!r}; give it 1 to {_MAX_IMAGES}")
        yield from found
