"""The table of methods, filled by a decorator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tcl_core.errors import SettingsError
from tcl_core.methods.base import Method
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["create_method", "list_methods", "register_method"]

_METHODS: dict[str, type[Method]] = {}
MethodClass = TypeVar("MethodClass", bound=type[Method])


def register_method(name: str) -> Callable[[MethodClass], MethodClass]:
    """Class decorator that makes a method known under ``name``.

    Raises:
        ValueError: another class has the name.
    """

    def register(method: MethodClass) -> MethodClass:
        if _METHODS.setdefault(name, method) is not method:
            raise ValueError(f"the method name {name!r} is taken by {_METHODS[name].__qualname__}")
        return method

    return register


def list_methods() -> list[str]:
    """Names of the registered methods, sorted.

    Example:
        >>> "tcl" in list_methods()
        True
    """
    return sorted(_METHODS)


def create_method(name: str, clip: FrozenClip, config: Mapping[str, Any] | None = None) -> Method:
    """Build a method on a frozen CLIP, with its parameters as they are before training.

    Args:
        name: one of :func:`list_methods`.
        clip: the frozen towers.
        config: settings of the method (``Method.config_to_dict``); ``None`` takes the paper's.

    Raises:
        SettingsError: the name or a setting is unknown, or a setting is out of range.
    """
    if name not in _METHODS:
        raise SettingsError(f"There is no method {name!r}; the methods are: {', '.join(list_methods())}.")
    return _METHODS[name].from_config(clip, config or {})
