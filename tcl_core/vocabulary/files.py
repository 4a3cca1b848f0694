"""Reading vocabularies from label files and from ``--label`` options, with errors that name the location."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tcl_core.errors import VocabularyError
from tcl_core.vocabulary.labels import Label

__all__ = [
    "background_names_from_text",
    "labels_from_options",
    "labels_from_values",
    "read_vocabulary_file",
    "vocabulary_arguments",
]

_MAX_BYTES = 4 * 1024 * 1024
_TOP_KEYS = ("labels", "background", "templates")
_LABEL_KEYS = ("name", "prompts", "threshold", "color", "value")
_HEX_COLOR = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")

_UNQUOTED_COLOR = re.compile(r"[:\[,]\s+#[0-9a-fA-F]{3}")


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, which by itself lets the last of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = (key_node.tag, key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise VocabularyError(
                    f"line {line}: the key {key_node.value!r} is written twice; remove one of the two"
                )
            seen.add(key)
        for key_node, value_node in node.value:
            _refuse_comment(value_node, f"the key {getattr(key_node, 'value', '')!r}")
        return super().construct_mapping(node, deep=deep)

    def construct_sequence(self, node: yaml.SequenceNode, deep: bool = False) -> list[Any]:
        for item in node.value:
            _refuse_comment(item, "the entry")
        return super().construct_sequence(node, deep=deep)


def _refuse_comment(node: yaml.Node, what: str) -> None:
    """Raise where nothing but a comment stands in a value's place, for it was meant as the value (``color: #ff0000``).

    An empty value without a comment, ``null`` and ``~`` stand for nothing on purpose.
    """
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:null" or node.value != "":
        return
    mark = node.start_mark
    if mark.buffer is None:
        return
    rest = re.split(r"[\r\n\0\x85\u2028\u2029]", mark.buffer[mark.pointer :], maxsplit=1)[0].strip()
    if rest.startswith("#"):
        raise VocabularyError(
            f"line {mark.line + 1}: {what} has no value, because '#' starts a comment in YAML; "
            f'put the value in quotes, such as "{rest}"'
        )


def read_vocabulary_file(path: Path) -> Any:
    """Read the plain data of a label file; see :meth:`Vocabulary.from_file`.

    Raises:
        VocabularyError: if it cannot be read or holds a mistake.
    """
    try:
        if path.is_dir():
            raise VocabularyError(f"{path}: is a folder; give a label file such as labels.yaml")
        if not path.exists():
            raise VocabularyError(f"{path}: label file not found; check the path")
        if path.stat().st_size > _MAX_BYTES:
            raise VocabularyError(f"{path}: is larger than {_MAX_BYTES // 2**20} MiB, so it is not a label file")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VocabularyError(f"{path}: cannot be read ({reason})") from error
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        hint = "; put colors in quotes, because '#' starts a comment" if _UNQUOTED_COLOR.search(text) else ""
        raise VocabularyError(f"{path}: {place}not valid YAML ({problem}){hint}") from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise VocabularyError(f"{path}: not valid YAML ({problem})") from error
    return data


def labels_from_options(options: Sequence[str]) -> tuple[Label, ...]:
    """Labels of ``--label`` options: ``NAME`` or ``NAME=PROMPT,PROMPT``.

    Raises:
        VocabularyError: if an option holds a mistake; the message quotes the option.
    """
    labels: list[Label] = []
    given_by: dict[str, str] = {}
    for option in options:
        where = f'--label "{option}"'
        name, equals, prompts = option.partition("=")
        if not equals and "," in name:
            parts = [part.strip() for part in name.split(",") if part.strip()]
            several = " ".join(f'--label "{part}"' for part in parts)
            raise VocabularyError(
                f"{where}: a label without prompts cannot contain commas; write {several} for several labels, "
                f'or --label "NAME={",".join(parts)}" for one label with several prompts'
            )
        try:
            label = Label(name, tuple(prompts.split(",")) if equals else ())
        except VocabularyError as error:
            raise VocabularyError(f"{where}: {error}") from error
        key = unicodedata.normalize("NFC", label.name)
        if key.casefold() == "background":
            raise VocabularyError(
                f"{where}: {label.name!r} is not a label, but stands for pixels without a label; "
                "use --background or --background-threshold"
            )
        if key in given_by:
            raise VocabularyError(
                f'{where}: the label {label.name!r} is already defined by --label "{given_by[key]}"; '
                "rename or remove one of the two"
            )
        given_by[key] = option
        labels.append(label)
    return tuple(labels)


def labels_from_values(values: object) -> tuple[Label, ...]:
    """Labels as Python code writes them; see :meth:`Vocabulary.from_labels`.

    Raises:
        VocabularyError: if they hold a mistake; the message begins with the place.
    """
    if isinstance(values, Mapping):
        if "labels" in values and set(values) <= set(_TOP_KEYS):
            raise VocabularyError(
                "labels: 'labels' is a key of label files, not a label; use Vocabulary.from_dict for what a label "
                "file holds"
            )
        return tuple(_label_of_value(name, value) for name, value in values.items())
    if not isinstance(values, (list, tuple)):
        raise VocabularyError(
            f"labels: expected a dict such as {{'Seat': ['chair', 'sofa']}}, a list of names or a Vocabulary, found "
            f"{_describe(values)}; read a label file with Vocabulary.from_file"
        )
    return tuple(
        value if isinstance(value, Label) else _parse_label(value, f"labels[{index}]")
        for index, value in enumerate(values)
    )


def _label_of_value(name: object, value: object) -> Label:
    where = f"labels[{name!r}]"
    if isinstance(value, Mapping):
        _check_keys(value, _LABEL_KEYS[1:], where)
        return _parse_label({**value, "name": name}, where)
    return _parse_label({"name": name, "prompts": value}, where)


def vocabulary_arguments(
    data: object,
) -> tuple[tuple[Label, ...], bool, float | None, str | None, tuple[str, ...] | None]:
    """The arguments of a `Vocabulary` from the plain data of a label file; see :meth:`Vocabulary.from_dict`.

    Returns:
        Labels, whether there is background, its threshold, the name of the template set, and the background's names.

    Raises:
        VocabularyError: if it holds a mistake; the message begins with the field.
    """
    if data is None:
        raise VocabularyError("labels: the file is empty; list the labels, one per line as '- name'")
    if isinstance(data, Mapping):
        _check_keys(data, _TOP_KEYS, "")
        if "labels" not in data:
            raise VocabularyError("labels: this key is missing; list the labels under it")
        entries = data["labels"]
    else:
        entries, data = data, {}
    if entries is None or entries == []:
        raise VocabularyError("labels: the list is empty; add at least one label")
    if not isinstance(entries, (list, tuple)):
        raise VocabularyError(f"labels: expected a list, found {_describe(entries)}; start each label with '- '")
    labels = tuple(_parse_label(entry, f"labels[{index}]") for index, entry in enumerate(entries))
    background, threshold, names = _parse_background(data.get("background", True))
    templates = data.get("templates")
    if templates is not None and not isinstance(templates, str):
        raise VocabularyError(f"templates: expected the name of a template set, found {_describe(templates)}")
    return labels, background, threshold, templates, names


def _parse_label(entry: object, where: str) -> Label:
    if isinstance(entry, str):
        if "=" in entry:
            name, _, prompts = entry.partition("=")
            raise VocabularyError(
                f"{where}: {entry!r} is the syntax of the option --label; "
                f"write {{name: {name.strip()}, prompts: [{prompts}]}}"
            )
        entry = {"name": entry}
    if not isinstance(entry, Mapping):
        hint = "; put it in quotes" if isinstance(entry, (bool, int, float)) else ""
        raise VocabularyError(f"{where}: expected a name or a mapping, found {_describe(entry)}{hint}")
    _check_keys(entry, _LABEL_KEYS, where)
    if "name" not in entry:
        raise VocabularyError(f"{where}.name: this key is missing; give the label a name")
    try:
        texts: tuple[Any, ...] = _parse_prompts(entry["prompts"]) if "prompts" in entry else ()
        return Label(entry["name"], texts, entry.get("threshold"), _parse_color(entry.get("color")), entry.get("value"))
    except VocabularyError as error:
        raise VocabularyError(f"{where}.{error}") from error


def _parse_prompts(value: object) -> tuple[Any, ...]:
    if isinstance(value, str) and "," not in value:
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise VocabularyError(f"prompts: expected a list such as [sofa, couch], found {_describe(value)}")
    if not value:
        raise VocabularyError("prompts: the list is empty; write a prompt, or remove the key to use the name")
    return tuple(value)


def _parse_color(value: object) -> Any:
    if isinstance(value, str) and (match := _HEX_COLOR.fullmatch(value.strip())):
        return tuple(int(part, 16) for part in match.groups())
    # The empty value of YAML stands for "no color"; whatever else it is, Label checks it.
    return value


def background_names_from_text(text: str) -> tuple[str, ...] | None:
    """The names of an option: ``auto`` for the method's own, ``none``, or names with commas between them.

    Examples:
        >>> background_names_from_text("sky, wall"), background_names_from_text("none")
        (('sky', 'wall'), ())
        >>> background_names_from_text("auto") is None
        True
    """
    word = text.strip().casefold()
    if word in ("auto", "none"):
        return None if word == "auto" else ()
    return tuple(part.strip() for part in text.split(","))


def _parse_background(value: object) -> tuple[bool, float | None, tuple[str, ...] | None]:
    if isinstance(value, Mapping):
        _check_keys(value, ("threshold", "names"), "background")
        threshold = value.get("threshold")
        if threshold is not None and not isinstance(threshold, float):
            raise VocabularyError(
                f"background.threshold: expected a number between 0 and 1 such as 0.45, found {_describe(threshold)}"
            )
        return True, threshold, _parse_background_names(value.get("names"))
    if isinstance(value, bool):
        return value, None, None
    if isinstance(value, float):
        return True, value, None
    # 0 and 1 could mean false and true as well as thresholds.
    raise VocabularyError(
        "background: expected true, false or a threshold between 0 and 1 such as 0.45, or a mapping with threshold and "
        f"names, found {_describe(value)}"
    )


def _parse_background_names(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) and "," not in value:
        return background_names_from_text(value)
    if not isinstance(value, (list, tuple)):
        raise VocabularyError(
            f"background.names: expected auto, none, or a list such as [sky, wall], found {_describe(value)}"
        )
    return tuple(value)


def _check_keys(mapping: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in mapping:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        place = f"{where}.{key}" if where else f"{key}"
        raise VocabularyError(f"{place}: unknown key{hint}; the keys are {', '.join(known)}")


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{str(value).lower()} (true or false)"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"{value!r}"
