"""Files in which any one part is something that nobody expects there."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

__all__ = ["ODD", "odd_copies"]

ODD = ("1e400", "1" + 400 * "0", "1e30", "-1", "[[]]", '{"a": 1}', "null", '"x"')
"""JSON values; the first is infinite for Python, the second fits no float, the third is far outside any image."""
_MARK = "which will be odd"


def odd_copies(value: Any) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """JSON texts of a value with one part replaced.

    Args:
        value: JSON value.

    Yields:
        Keys that lead to the part, what stands there now, and the text.
    """
    for place in list(_places(value)):
        changed = copy.deepcopy(value)
        part = changed
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = _MARK
        text = json.dumps(changed)
        for odd in ODD:
            yield place, odd, text.replace(f'"{_MARK}"', odd)


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*place, key)
        yield from _places(part, (*place, key))
