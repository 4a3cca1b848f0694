"""Checked dataclasses, and what is wrong with a value in one sentence of this package's own errors.

Files and settings are described by pydantic models. What pydantic reports is a list of findings with links and dumps of
the input; a user needs the first of them, the place it is about, and what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeGuard, TypeVar, cast, dataclass_transform

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator

from tcl_core.errors import TclError

__all__ = [
    "FiniteNumber",
    "KeysOf",
    "StrictFields",
    "Text",
    "WholeNumber",
    "checked",
    "explain",
    "is_finite_number",
    "validated",
]

T = TypeVar("T")

WholeNumber = Annotated[int, Field(strict=True)]
"""An integer; neither a boolean nor a number with a decimal point."""
FiniteNumber = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A number that is neither infinite nor NaN, and no boolean."""
Text = Annotated[str, Field(min_length=1)]
"""Text that is not empty."""


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether what a JSON file holds is a number that a double can hold, and neither NaN nor infinite.

    Example:
        >>> [is_finite_number(value) for value in (1, 2.5, True, "1", float("inf"), 10**400)]
        [True, True, False, False, False, False]
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


_WORDS = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "path_type": "a path",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}
_UNKNOWN = {"extra_forbidden", "invalid_key", "unexpected_keyword_argument"}
_MISSING = {"missing", "missing_argument"}
_QUOTES = "'"


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(what: str, error: type[TclError]) -> Callable[[type[T]], type[T]]:
    """A frozen dataclass whose values are checked, also by its constructor and :func:`dataclasses.replace`.

    Args:
        what: begins every message, such as ``metadata``.
        error: raised instead of pydantic's error.
    """
    config = ConfigDict(extra="forbid")

    def decorate(cls: type[T]) -> type[T]:
        made = pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)
        validate = made.__init__

        @functools.wraps(validate)
        def init(self: Any, *args: Any, **values: Any) -> None:
            try:
                validate(self, *args, **values)
            except ValidationError as found:
                raise error(explain(found, what, made)) from None

        made.__init__ = init  # type: ignore[method-assign]
        return cast(type[T], made)

    return decorate


def validated(kind: type[T], entry: Mapping[Any, Any], what: str, error: type[TclError]) -> T:
    """Read a mapping as a checked dataclass or pydantic model.

    Args:
        kind: the dataclass or model.
        entry: as it stood in a file.
        what: begins the message, such as the file's path.
        error: raised where a value is not valid.
    """
    try:
        return cast(T, _adapter(cast(Any, kind)).validate_python(dict(entry)))
    except ValidationError as found:
        raise error(explain(found, what, kind)) from None


def explain(error: ValidationError, what: str, kind: type) -> str:
    """The first finding as one sentence: place, what would be right, and what is there.

    Args:
        error: pydantic's.
        what: begins the sentence.
        kind: dataclass or model that was validated; its keys are listed where a key is unknown.
    """
    found = error.errors(include_url=False)
    traced = [_trace(item["loc"], kind) for item in found]
    places = [other for other, _ in traced]
    first, (place, holder) = found[0], traced[0]
    together = [item for item, other in zip(found, places, strict=True) if other == place]
    if first["type"] in _UNKNOWN | _MISSING:
        parent = place[:-1]
        beside = [item for item, other in zip(found, places, strict=True) if other[:-1] == parent]
        unknown = sorted(str(item["loc"][-1]) for item in beside if item["type"] in _UNKNOWN)
        missing = sorted(str(item["loc"][-1]) for item in beside if item["type"] in _MISSING)
        where = _prefix(what, parent)
        if unknown:
            keys = _keys(holder)
            near = [match for name in unknown for match in difflib.get_close_matches(name, keys, n=1)]
            hint = f"; did you mean {' and '.join(dict.fromkeys(near))}?" if near else ""
            return (
                f"{where}: unknown keys: {_short(', '.join(unknown))}; the keys are {', '.join(keys) or 'none'}{hint}"
            )
        if isinstance(place[-1], int):
            return f"{where}: too few values, number {place[-1] + 1} is missing"
        return f"{where}: missing keys: {', '.join(missing)}"
    sentences = list(dict.fromkeys(_sentence(item) for item in together))
    if not sentences[0].startswith("must "):
        return f"{_prefix(what, place)}: {sentences[0]}"
    text = " or ".join([sentences[0], *(sentence.removeprefix("must be ") for sentence in sentences[1:])])
    subject = f"{what}: {_dotted(place)}" if place else what
    return f"{subject} {text}, not {_short(reprlib.repr(first['input']))}"


@dataclasses.dataclass(frozen=True)
class KeysOf:
    """Annotation: a dictionary that is checked as a pydantic model, and stays a dictionary with the given keys.

    Attributes:
        model: the model.
        or_empty: whether an empty dictionary is right, too.
    """

    model: type[BaseModel]
    or_empty: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        checks = [AfterValidator(_as_dict), *([WrapValidator(_unless_empty)] if self.or_empty else [])]
        return handler.generate_schema(Annotated[self.model, *checks])


class StrictFields:
    """Annotation: a plain dataclass that may be written as a mapping, whose values are not converted."""

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        schema: dict[str, Any] = dict(handler.resolve_ref_schema(handler(source)))
        # The same dataclass may be used elsewhere with other rules.
        schema.pop("ref", None)
        return {**schema, "strict": False, "config": {**schema.get("config", {}), "strict": True}}


def _unless_empty(value: Any, check: Callable[[Any], Any]) -> Any:
    return {} if value == {} else check(value)


def _as_dict(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(exclude_unset=True)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _sentence(item: Mapping[str, Any]) -> str:
    context = item.get("ctx", {})
    if item["type"] == "value_error":
        return str(context["error"])
    if item["type"] == "union_tag_not_found":
        return f"missing keys: {context['discriminator'].strip(_QUOTES)}"
    if item["type"] == "union_tag_invalid":
        known = context["expected_tags"]
        return f"{context['discriminator'].strip(_QUOTES)} is {context['tag']!r}, which is none of {known}"
    if item["type"] in _WORDS:
        return "must be " + _WORDS[item["type"]].format(**context)
    return re.sub(r"^[\w ]*?\bshould\b", "must", item["msg"])


def _trace(loc: tuple[int | str, ...], kind: Any) -> tuple[tuple[int | str, ...], Any]:
    """The location without the names of a union's members, which are no part of the file, and what its last part is in.

    What holds the last part is ``None`` where it is not known.
    """
    place: list[int | str] = []
    holder = None
    for number, part in enumerate(loc):
        tagged = _tagged(kind)
        if tagged:
            kind = tagged.get(str(part))
            continue
        keys = _keys(kind)
        # Arguments that are given by position are reported by it.
        name = keys[part] if number == 0 and isinstance(part, int) and part < len(keys) else part
        place.append(name)
        holder, kind = kind, _step(kind, name)
        if _is_choice(kind):
            break
    return tuple(place), holder


def _step(kind: Any, part: int | str) -> Any:
    """The annotation of what lies under ``part``; ``None`` where it is not known."""
    kind = _plain(kind)
    if typing.get_origin(kind) in (dict, Mapping):
        return typing.get_args(kind)[1]
    if typing.get_origin(kind) is list:
        return typing.get_args(kind)[0]
    return typing.get_type_hints(kind, include_extras=True).get(str(part)) if _keys(kind) else None


def _tagged(kind: Any) -> dict[str, Any]:
    """The members of a union that a key chooses between, by that key's value; empty for anything else."""
    if typing.get_origin(kind) is not Annotated:
        return {}
    key = next((key for extra in kind.__metadata__ if (key := getattr(extra, "discriminator", None))), None)
    if key is None:
        return {}
    members = _members(kind.__origin__)
    return {value: member for member in members for value in typing.get_args(typing.get_type_hints(member)[key])}


def _keys(kind: Any) -> list[str]:
    kind = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _plain(kind: Any) -> Any:
    """Without ``Annotated`` and ``None``; with the model of :class:`KeysOf`."""
    while True:
        if typing.get_origin(kind) is Annotated:
            kind = next((extra.model for extra in kind.__metadata__ if isinstance(extra, KeysOf)), kind.__origin__)
        elif _members(kind) and not _is_choice(kind):
            kind = _members(kind)[0]
        else:
            return kind


def _members(kind: Any) -> list[Any]:
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return [member for member in typing.get_args(kind) if member is not type(None)] if union else []


def _is_choice(kind: Any) -> bool:
    return len(_members(kind)) > 1


def _dotted(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))


def _prefix(what: str, place: tuple[int | str, ...]) -> str:
    return f"{what}: {_dotted(place)}" if place else what


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
