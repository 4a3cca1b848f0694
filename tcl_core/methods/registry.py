"""The table of methods, filled by a decorator and by installed packages.

A package brings a method by an entry point of the group ``tcl_annotate.methods``: its name is the method's, its value
the class, such as ``my_package.method:MyMethod``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tcl_core.errors import SettingsError
from tcl_core.methods.base import Method
from tcl_core.methods.trainable import Trainable
from tcl_core.plugins import installed, load, package_of
from tcl_core.towers.base import Tower

__all__ = [
    "ENTRY_POINTS",
    "create_method",
    "list_methods",
    "method_class",
    "needs_weights",
    "refuse_without_weights",
    "register_method",
    "runs_on_a_clip",
]

ENTRY_POINTS = "tcl_annotate.methods"

_METHODS: dict[str, type[Method]] = {}
MethodClass = TypeVar("MethodClass", bound=type[Method])


def register_method(name: str) -> Callable[[MethodClass], MethodClass]:
    """Class decorator that makes a method known under ``name``.

    Raises:
        ValueError: another class has the name, or it is not made of letters, digits and hyphens.
    """
    if not name.replace("-", "").isalnum():
        raise ValueError(f"the method name {name!r} must be made of letters, digits and hyphens")

    def register(method: MethodClass) -> MethodClass:
        if _METHODS.setdefault(name, method) is not method:
            raise ValueError(f"the method name {name!r} is taken by {_METHODS[name].__qualname__}")
        method.name = name
        return method

    return register


def list_methods() -> list[str]:
    """Names of all methods, sorted; those of installed packages are not imported for this.

    Example:
        >>> "tcl" in list_methods()
        True
    """
    return sorted({*_METHODS, *installed(ENTRY_POINTS)})


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        SettingsError: the name is unknown, or the package that brings the method cannot be imported.
    """
    if name in _METHODS:
        return _METHODS[name]
    point = installed(ENTRY_POINTS).get(name)
    if point is None:
        raise SettingsError(f"There is no method {name!r}; the methods are: {', '.join(list_methods())}.")
    found = load(point, "The method", Method, subclass=True)
    try:
        return register_method(name)(found)
    except ValueError as error:
        raise SettingsError(
            f"The method {name!r} of the package {package_of(point)} cannot be used: {error}."
        ) from error


def runs_on_a_clip(kind: type[Method]) -> bool:
    """Whether a method needs a CLIP alone, as far as its class tells: those that are trained or fitted need weights.

    Example:
        >>> [name for name in ("maskclip", "tcl") if runs_on_a_clip(method_class(name))]
        ['maskclip']
    """
    return kind.tower_names == ("clip",) and not kind.fitted_by and not issubclass(kind, Trainable)


def refuse_without_weights(method: str) -> None:
    """Refuse a method on a CLIP alone if it needs learned tensors, before the CLIP is downloaded.

    Raises:
        SettingsError: it does; or there is no such method.
    """
    kind = method_class(method)
    if kind.tower_names != ("clip",):
        raise SettingsError(f"The method {method!r} does not run on a CLIP alone; use a model of its own.")
    if not runs_on_a_clip(kind):
        raise needs_weights(kind, "which a CLIP does not have")


def needs_weights(kind: type[Method], why: str) -> SettingsError:
    """What to say where a method's learned tensors are missing; ``why`` is a clause."""
    made = f", which '{kind.fitted_by}' makes" if kind.fitted_by else ""
    return SettingsError(
        f"The method {kind.name!r} needs learned tensors, {why}; use a model file of {kind.name!r}{made}."
    )


def create_method(name: str, towers: Mapping[str, Tower], config: Mapping[str, Any] | None = None) -> Method:
    """Build a method on frozen towers, with its parameters as they are before training.

    Args:
        name: one of :func:`list_methods`.
        towers: by the names in the method's ``tower_names``.
        config: settings of the method (``Method.config_to_dict``); ``None`` takes the paper's.

    Raises:
        SettingsError: the name or a setting is unknown, a setting is out of range, or a tower is missing.
    """
    kind = method_class(name)
    if missing := sorted(set(kind.tower_names) - set(towers)):
        raise SettingsError(f"The method {name!r} needs the towers {', '.join(missing)}, which are missing.")
    taken = (*kind.tower_names, *(tower for tower in kind.optional_tower_names if tower in towers))
    return kind.from_config({tower: towers[tower] for tower in taken}, config or {})
