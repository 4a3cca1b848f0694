"""Several texts in one line with commas between them, as cells and fields show them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tcl_core.vocabulary.files import background_names_from_text

__all__ = ["background_names", "background_text", "join_texts", "split_texts"]

# A text in quotation marks up to the next comma, or else all that there is up to it.
_PART = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,]*?))\s*(,|\Z)')


def join_texts(texts: Iterable[str]) -> str:
    """Write texts into one line; those with commas of their own stand in quotation marks, doubled within.

    >>> join_texts(["sky, blue", "car"])
    '"sky, blue", car'
    """
    return ", ".join(_quoted(text) if "," in text or text.startswith('"') else text for text in texts)


def split_texts(line: str) -> tuple[str, ...]:
    """The inverse of `join_texts`; a quotation mark that does not enclose a text is part of it.

    >>> split_texts('"sky, blue", car, 5" screen')
    ('sky, blue', 'car', '5" screen')
    """
    parts: list[str] = []
    place = 0
    while True:
        found = _PART.match(line, place)
        assert found is not None
        quoted, plain, comma = found.groups()
        parts.append(plain if quoted is None else quoted.replace('""', '"').strip())
        if not comma:
            return tuple(parts)
        place = found.end()


def background_text(names: tuple[str, ...] | None) -> str:
    """Names that compete with the labels as one line: ``auto`` for ``None``, ``none`` for no name.

    >>> background_text(None), background_text(()), background_text(("auto",))
    ('auto', 'none', '"auto"')
    """
    if not names:
        return "auto" if names is None else "none"
    line = join_texts(names)
    return line if background_names_from_text(line) else _quoted(line)


def background_names(line: str) -> tuple[str, ...] | None:
    """The inverse of `background_text`; an empty line is ``auto``.

    >>> background_names(" none"), background_names('"auto"'), background_names("")
    ((), ('auto',), None)
    """
    word = background_names_from_text(line or "auto")
    return split_texts(line) if word else word


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'
