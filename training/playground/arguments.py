"""Types of command-line arguments that say in a sentence what is wrong, before any work is done."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

__all__ = ["at_least", "json_settings"]


def at_least(least: int) -> Callable[[str], int]:
    """The type of a whole number that is not too small.

    Example:
        >>> at_least(1)("3")
        3
        >>> at_least(1)("0")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: '0' is not a whole number of at least 1
    """

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number


def json_settings(text: str) -> dict[str, Any]:
    """The type of settings by name, as a JSON object.

    Example:
        >>> json_settings('{"regions": 2}')
        {'regions': 2}
        >>> json_settings("regions=2")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: 'regions=2' is not a JSON object, such as {"regions": 2}
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object, such as {{"regions": 2}}')
    return found
