"""Options of a method: named, checked, documented, each with what it affects."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from tcl_core.errors import SettingsError

__all__ = ["Affects", "MethodOptions", "OptionRow", "option", "preset", "values_from_texts"]

Affects = Literal["features", "scores"]
"""What is computed anew when an option changes: everything, or the scores alone."""


def option(default: Any, description: str, *, affects: Affects, **limits: Any) -> Any:
    """A field of `MethodOptions`.

    Args:
        default: value where nobody says another.
        description: one line for the list of options.
        affects: ``"features"`` if cached features depend on it, else ``"scores"``.
        **limits: of pydantic's ``Field``, such as ``ge`` and ``le``.
    """
    return Field(default, description=description, json_schema_extra={"affects": affects}, **limits)


class OptionRow(BaseModel):
    """One line of a list of options.

    Attributes:
        name: as the user writes it.
        value: in force.
        range: in words, empty where there is no limit.
        affects: see `Affects`.
        description: one line.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    value: Any
    range: str
    affects: Affects
    description: str


class MethodOptions(BaseModel):
    """Values of a method's options; a sub-class names them as fields made by `option`.

    Example:
        >>> class Options(MethodOptions):
        ...     sigma: float = option(5.0, "Width of the window in patches.", affects="features", ge=0)
        >>> Options().changed({"sigma": "2.5"}).sigma
        2.5
        >>> Options().affecting("features")
        {'sigma': 5.0}
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """These options with other values; texts are read as the option's type.

        Raises:
            SettingsError: an option is unknown, or its value is of another type or out of range.
        """
        known = type(self).model_fields
        for name in values:
            if name not in known:
                listed = ", ".join(known) or "none"
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise SettingsError(f"option {name!r}: the method has no such option; it has: {listed}.{hint}")
            if isinstance(values[name], bool) and known[name].annotation is not bool:
                raise SettingsError(f"option {name} is {values[name]!r}: expected a number or text, not true or false.")
        try:
            return type(self)(**{**self.model_dump(), **values})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise SettingsError(f"option {name} is {first['input']!r}: {_lowered(first['msg'])}.") from None

    def affecting(self, what: Affects) -> dict[str, Any]:
        """The options that affect features, or scores alone, as plain JSON values."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name, kind in self._affects().items() if kind == what}

    def rows(self) -> list[OptionRow]:
        """The list of options with their values."""
        values, affects = self.model_dump(mode="json"), self._affects()
        return [
            OptionRow(
                name=name,
                value=values[name],
                range=_range(field.annotation, field.metadata),
                affects=affects[name],
                description=field.description or "",
            )
            for name, field in type(self).model_fields.items()
        ]

    @classmethod
    def _affects(cls) -> dict[str, Affects]:
        found: dict[str, Affects] = {}
        for name, field in cls.model_fields.items():
            extra = field.json_schema_extra
            kind = extra.get("affects") if isinstance(extra, dict) else None
            if kind not in ("features", "scores"):
                raise TypeError(f"{cls.__name__}.{name}: make options with tcl_core.methods.option")
            found[name] = kind  # type: ignore[assignment]
        return found


Options = TypeVar("Options", bound=MethodOptions)


def preset(kind: type[Options], name: str, **defaults: Any) -> type[Options]:
    """The same options with other defaults, for methods that differ in nothing else.

    Args:
        kind: whose options.
        name: of the new class.
        **defaults: by the options' names.

    Example:
        >>> class Options(MethodOptions):
        ...     sigma: float = option(5.0, "Width of the window in patches.", affects="features", ge=0)
        >>> Narrow = preset(Options, "Narrow", sigma=2.0)
        >>> Narrow().rows()[0].value, Narrow().rows()[0].range
        (2.0, 'float, at least 0')
    """
    fields: dict[str, Any] = {}
    for field_name, value in defaults.items():
        field = copy(kind.model_fields[field_name])
        field.default = value
        fields[field_name] = (field.annotation, field)
    return create_model(name, __base__=kind, __module__=kind.__module__, **fields)


def values_from_texts(texts: Iterable[str], source: str) -> dict[str, str]:
    """``NAME=VALUE`` texts as a mapping; the method judges names and values.

    Args:
        texts: one for each option.
        source: where they were written, which begins the message.

    Raises:
        SettingsError: a text is not of this form, or a name comes twice.

    Example:
        >>> values_from_texts(["kp_weight=0.2", " unit_points = 196"], "--option")
        {'kp_weight': '0.2', 'unit_points': '196'}
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals):
            raise SettingsError(f"{source} {text.strip()}: write NAME=VALUE, such as kp_weight=0.2")
        if name in values:
            raise SettingsError(f"{source} {name}: is given twice; pass it once")
        values[name] = value
    return values


def _range(annotation: Any, limits: list[Any]) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    words = [
        f"{word} {getattr(limit, sign):g}"
        for limit in limits
        for sign, word in signs.items()
        if getattr(limit, sign, None) is not None
    ]
    kind = [annotation.__name__] if isinstance(annotation, type) else []
    if get_origin(annotation) is Literal:
        kind = ["one of " + ", ".join(map(str, get_args(annotation)))]
    return ", ".join(kind + words)


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:].rstrip(".")
